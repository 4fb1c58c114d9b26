"""A user's own pairs: a text file of one JSON object a line.

    {"query": {"text": "…", "image": "a.jpg"}, "positive": "…", "negatives": ["…"], "query_cot": "…", "positive_cot": "…", "key": "…"}

A query, positive or negative is an object of ``text``, ``image`` (a path or a list of paths), ``video`` (a file, or a folder of frames) and
``instruction``, or a plain string, which stands for its text. Paths are relative to the file's folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from datamodules.mixing import did_you_mean
from twn_lightning.batches import Item, Pair
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.media import check_image, check_video, frame_files

_log = logging.getLogger(__name__)

_ROW_KEYS = ("query", "positive", "negatives", "query_cot", "positive_cot", "key")
_ITEM_KEYS = ("text", "image", "video", "instruction")
_MESSAGES_SHOWN = 5

JsonObject: TypeAlias = dict[str, object]


@dataclass(frozen=True)
class JsonlOptions:
    """How a file of pairs is read."""

    path: Path
    """The file."""
    name: str = ""
    """Name of the source in weights and logs; empty takes the file's name without its ending."""
    with_cot: bool = False
    """Every row must hold both chains of thought (stage cot_sft learns to write them)."""
    on_error: Literal["raise", "skip"] = "raise"
    """What a faulty row does: raise names the first one and stops; skip leaves faulty rows out and reports how many and why."""
    check_media: Literal["open", "exists"] = "open"
    """open reads the header of every picture and the first frame of every video before training; exists only looks whether the files are there."""
    query_instruction: str = ""
    """Instruction of the queries that bring none."""
    positive_instruction: str = ""
    """Instruction of the positives and negatives that bring none."""

    def __post_init__(self) -> None:
        for field, value, known in (("on_error", self.on_error, ("raise", "skip")), ("check_media", self.check_media, ("open", "exists"))):
            if value not in known:
                raise ConfigError(f"{field} is {value!r}. {did_you_mean(value, known)}")


class JsonlSource:
    """The rows of one file, checked when it is opened; media are decoded when a batch is made.

    Args:
        name: The source's name.
        pairs: The rows.
        digest: Digest of the rows and of the sizes of their media files.
        skipped: What was wrong with each row that was left out.
    """

    def __init__(self, name: str, pairs: tuple[Pair, ...], *, digest: str, skipped: tuple[str, ...] = ()) -> None:
        self._name = name
        self._pairs = pairs
        self._digest = digest
        self.skipped = skipped

    @property
    def name(self) -> str:
        """The source's name."""
        return self._name

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Pair:
        return self._pairs[index]

    def digest(self) -> str:
        """Hexadecimal digest of the rows and of the sizes of their media files."""
        return self._digest


def load_jsonl(options: JsonlOptions) -> JsonlSource:
    """The pairs of a JSONL file.

    Raises:
        DataError: The file is missing or holds no usable row, or (``on_error="raise"``) a row is faulty; names file, line and field.
    """
    path = Path(options.path)
    name = options.name or path.stem
    if not path.is_file():
        raise DataError(f"{path}: this data file does not exist: correct its path, or create it (one JSON object with query and positive a line).")
    pairs: list[Pair] = []
    lines_of_keys: dict[str, int] = {}
    skipped: list[str] = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            pair = _Row(options, path, name, number).parse(line)
            if pair.key in lines_of_keys:
                raise DataError(
                    f"{path}, line {number}: key is {pair.key!r}, as on line {lines_of_keys[pair.key]}: give each line a key of its own, or none."
                )
        except DataError as error:
            if options.on_error == "raise":
                raise
            skipped.append(str(error))
            continue
        lines_of_keys[pair.key] = number
        pairs.append(pair)
    _report(path, len(pairs), skipped)
    if not pairs:
        why = f"all {len(skipped)} rows are faulty; the first: {skipped[0]}" if skipped else "it is empty"
        raise DataError(f"{path}: this data file holds no usable row ({why}): write one JSON object with query and positive a line.")
    return JsonlSource(name, tuple(pairs), digest=_digest(pairs, path.parent), skipped=tuple(skipped))


@dataclass(frozen=True)
class _Row:
    """Reads one line; knows where it stands, for the messages."""

    options: JsonlOptions
    path: Path
    name: str
    number: int

    def parse(self, line: bytes) -> Pair:
        row = self._object(line)
        self._known(row, _ROW_KEYS, "")
        for field in ("query", "positive"):
            if field not in row:
                raise self._error(field, 'is missing: a pair needs both, as in {"query": "…", "positive": "…"}')
        negatives = row.get("negatives", [])
        if not isinstance(negatives, list):
            raise self._error("negatives", f"is {_shown(negatives)}: write a list of items, or leave it out")
        instruction = self.options.positive_instruction
        return Pair(
            query=self._item(row["query"], "query", self.options.query_instruction),
            positive=self._item(row["positive"], "positive", instruction),
            negatives=tuple(self._item(value, f"negatives[{index}]", instruction) for index, value in enumerate(negatives)),
            query_cot=self._thought(row, "query_cot"),
            positive_cot=self._thought(row, "positive_cot"),
            source=self.name,
            key=self._text(row, "key", "") or f"{self.name}:{self.number}",
        )

    def _object(self, line: bytes) -> JsonObject:
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except json.JSONDecodeError as error:
            raise DataError(
                f"{self.path}, line {self.number}, column {error.colno}: no valid JSON ({error.msg}): write one object a line, in double quotes."
            ) from error
        except UnicodeDecodeError as error:
            raise DataError(f"{self.path}, line {self.number}: no valid UTF-8 ({error.reason}): save the file as UTF-8.") from error
        if not isinstance(row, dict):
            raise DataError(f'{self.path}, line {self.number}: is {_shown(row)}: write an object, as in {{"query": "…", "positive": "…"}}.')
        return row

    def _item(self, value: object, field: str, instruction: str) -> Item:
        if isinstance(value, str):
            value = {"text": value}
        if not isinstance(value, dict):
            raise self._error(field, f"is {_shown(value)}: write a text in quotes, or an object of {', '.join(_ITEM_KEYS)}")
        self._known(value, _ITEM_KEYS, f"{field}.")
        text = self._text(value, "text", f"{field}.")
        images = self._images(value.get("image"), f"{field}.image")
        video = self._video(value.get("video"), f"{field}.video")
        if not (text.strip() or images or video):
            raise self._error(field, f"is {_shown(value)}, which shows nothing: give it a text, an image or a video")
        return Item(text=text, images=images, video=video, instruction=self._text(value, "instruction", f"{field}.") or instruction)

    def _images(self, value: object, field: str) -> tuple[Path, ...]:
        if value is None:
            return ()
        listed = value if isinstance(value, list) else [value]
        return tuple(self._medium(path, field, check_image) for path in listed)

    def _video(self, value: object, field: str) -> Path | None:
        return None if value is None else self._medium(value, field, check_video)

    def _medium(self, value: object, field: str, check: Callable[[Path], None]) -> Path:
        if not isinstance(value, str) or not value:
            raise self._error(field, f"is {_shown(value)}: write the path of a file, relative to {self.path.parent}")
        medium = self.path.parent / value
        if not medium.exists():
            raise self._error(field, f"names {value!r}, but {medium} does not exist: put the file there, or correct the path")
        if self.options.check_media == "open":
            try:
                check(medium)
            except DataError as error:
                raise DataError(f"{self.path}, line {self.number}: {field}: {error}") from error
        return medium

    def _thought(self, row: JsonObject, field: str) -> str:
        text = self._text(row, field, "").strip()
        if self.options.with_cot and not text:
            state = "is empty" if field in row else "is missing"
            raise self._error(field, f"{state}, but this run learns to write thoughts: write one, or set on_error=skip to leave such rows out")
        return text

    def _text(self, row: JsonObject, field: str, prefix: str) -> str:
        value = row.get(field, "")
        if not isinstance(value, str):
            raise self._error(f"{prefix}{field}", f"is {_shown(value)}: write a text in quotes")
        return value

    def _known(self, row: JsonObject, known: tuple[str, ...], prefix: str) -> None:
        for field in row:
            if field not in known:
                raise self._error(f"{prefix}{field}", f"is not known. {did_you_mean(field, known)}")

    def _error(self, field: str, what: str) -> DataError:
        return DataError(f"{self.path}, line {self.number}: {field} {what}{'' if what[-1] in '.?' else '.'}")


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _report(path: Path, num_kept: int, skipped: list[str]) -> None:
    if not skipped:
        _log.info("%s: %d pairs.", path, num_kept)
        return
    shown = "\n".join(f"  {message}" for message in skipped[:_MESSAGES_SHOWN])
    more = f"\n  … and {len(skipped) - _MESSAGES_SHOWN} more" if len(skipped) > _MESSAGES_SHOWN else ""
    _log.warning("%s: %d of %d rows are left out, %d are used:\n%s%s", path, len(skipped), len(skipped) + num_kept, num_kept, shown, more)


def _digest(pairs: list[Pair], folder: Path) -> str:
    def file_with_size(path: Path) -> list[str | int]:
        files = frame_files(path) if path.is_dir() else [path]
        return [Path(os.path.relpath(path, folder)).as_posix(), *(file.stat().st_size for file in files)]

    hasher = hashlib.blake2b(digest_size=16)
    for pair in pairs:
        hasher.update(json.dumps(dataclasses.asdict(pair), sort_keys=True, default=file_with_size).encode() + b"\n")
    return hasher.hexdigest()
