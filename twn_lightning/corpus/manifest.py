"""embedding.json: what a folder of vectors was made of, so that nobody goes on with something else, and how far it is."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from twn_lightning import __version__
from twn_lightning.corpus.parts import PartFacts
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.files import replacing

MANIFEST = "embedding.json"
LOCKS = ".locks"

_FORMAT = 1
_MOST_REASONS = 20


def digest_of(made_of: Mapping[str, object]) -> str:
    """Names what vectors are made of; where its files lie does not count."""
    return hashlib.blake2b(json.dumps(sorted(_compared(made_of)), default=str).encode(), digest_size=16).hexdigest()


def lock(folder: Path, name: str = MANIFEST, *, timeout: float = -1) -> FileLock:
    """A lock of a folder, which its holder's death frees.

    Args:
        folder: Whose.
        name: Of the lock.
        timeout: Seconds to wait; -1 for ever.
    """
    return FileLock(folder / LOCKS / f"{name}.lock", timeout=timeout)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a folder; None if there is none.

    Raises:
        DataError: It cannot be read.
    """
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}): embed everything anew into another --out.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != _FORMAT:
        raise DataError(f"{path} is no manifest of this version (format {_FORMAT}): choose another --out.")
    return manifest


def begin_manifest(folder: Path, made_of: Mapping[str, object], about: Mapping[str, object]) -> None:
    """Writes the manifest, or makes sure that the one that is there says the same; to be called under `lock`.

    Args:
        folder: Of the parts.
        made_of: Everything that the vectors depend on.
        about: What else is to be known.

    Raises:
        ConfigError: The folder was made of something else; says of what.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        started = {"started": _now(), "ended": None, "complete": False}
        _write(folder, {"format": _FORMAT, "twn_lightning": __version__, **about, **started, "made_of": made_of})
        return
    old, new = dict(_compared(manifest["made_of"])), dict(_compared(json.loads(json.dumps(made_of, default=str))))
    differences = [f"{key} was {old.get(key, 'not there')}, is {new.get(key, 'not there')}" for key in {**old, **new} if old.get(key) != new.get(key)]
    if differences:
        raise ConfigError(
            f"{folder} holds vectors that were made otherwise ({'; '.join(differences[:5])}{'; …' * (len(differences) > 5)}): "
            "go on with the same input, settings and model, or choose another --out."
        )


@dataclass(frozen=True)
class Totals:
    """What has become of the rows so far.

    Attributes:
        num_parts: Parts that there are.
        num_rows: Rows with a vector.
        num_errors: Rows without one.
        num_thinking: Rows that thought.
        num_reasoning_tokens: Tokens they wrote.
        num_truncated: Rows whose text was cut.
        seconds: That the parts took, one after the other.
        reasons: Kinds of errors, the most frequent first.
    """

    num_parts: int
    num_rows: int
    num_errors: int
    num_thinking: int
    num_reasoning_tokens: int
    num_truncated: int
    seconds: float
    reasons: dict[str, int]

    @classmethod
    def of(cls, parts: Sequence[PartFacts]) -> Totals:
        """Sums of parts."""
        reasons = Counter[str]()
        for part in parts:
            reasons.update(part.reasons)
        return cls(
            num_parts=len(parts),
            num_rows=sum(part.num_rows for part in parts),
            num_errors=sum(part.num_errors for part in parts),
            num_thinking=sum(part.num_thinking for part in parts),
            num_reasoning_tokens=sum(part.num_reasoning_tokens for part in parts),
            num_truncated=sum(part.num_truncated for part in parts),
            seconds=round(sum(part.seconds for part in parts), 3),
            reasons=dict(reasons.most_common(_MOST_REASONS)),
        )

    @property
    def think_rate(self) -> float:
        """Share of the rows with a vector that thought; 0 of none."""
        return self.num_thinking / self.num_rows if self.num_rows else 0.0

    @property
    def rows_per_second(self) -> float:
        """Of one worker; 0 before the first part."""
        return (self.num_rows + self.num_errors) / self.seconds if self.seconds else 0.0


def update_manifest(folder: Path, totals: Totals, about: Mapping[str, object], *, is_complete: bool) -> dict[str, Any]:
    """Writes down how far the folder is; to be called under `lock`.

    Args:
        folder: Of the parts.
        totals: Of the parts that are there.
        about: What else has become known.
        is_complete: Whether these are all.

    Returns:
        The manifest.
    """
    manifest = read_manifest(folder)
    assert manifest is not None, "it is written before the first part"
    counts = {**vars(totals), "think_rate": round(totals.think_rate, 4), "rows_per_second": round(totals.rows_per_second, 2)}
    ended = (manifest["ended"] or _now()) if is_complete else None
    manifest |= {**about, "complete": is_complete, "ended": ended, "counts": counts}
    _write(folder, manifest)
    return manifest


def _write(folder: Path, manifest: Mapping[str, object]) -> None:
    with replacing(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")


def _compared(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    """What two manifests are compared by: names with dots, and plain values."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _compared(inner, f"{key}.{name}" if key else str(name)) if name != "path" else ()
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _compared(inner, f"{key}[{number}]")
    else:
        yield key, value


def _now() -> str:
    return datetime.datetime.now(tz=datetime.UTC).isoformat(timespec="seconds")
