"""Part files: the vectors of a stretch of rows, whole or not there, and what is known of them without reading them."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from twn_lightning.errors import DataError
from twn_lightning.files import replacing

if TYPE_CHECKING:
    from twn_lightning.encoder import Encoding

log = logging.getLogger(__name__)

VECTOR_DTYPES = ("float32", "float16")

COLUMNS = ("id", "vector", "thinks", "thought", "num_reasoning_tokens", "gate_probability", "truncated")
"""Of a part."""

_ABOUT = b"twn_part"
_CHECKSUM = {"page_checksum_verification": True}


@dataclass(frozen=True)
class PartFacts:
    """What a part's footer says.

    Attributes:
        part: Its number.
        first: Number of its first row.
        stop: Number behind its last row.
        made_of: Digest of the manifest that it belongs to.
        made: Names this making of it; another one of the same rows has another name.
        num_rows: Rows with a vector.
        num_errors: Rows without one.
        num_thinking: Rows that thought.
        num_reasoning_tokens: Tokens they wrote.
        num_truncated: Rows whose text was cut.
        seconds: That it took.
        reasons: Kinds of errors, and how many of each.
    """

    part: int
    first: int
    stop: int
    made_of: str
    made: str = ""
    num_rows: int = 0
    num_errors: int = 0
    num_thinking: int = 0
    num_reasoning_tokens: int = 0
    num_truncated: int = 0
    seconds: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)


@dataclass
class PartRows:
    """Rows of a part that are done.

    Attributes:
        ids: Of the rows with a vector; the other lists have as many entries.
        vectors: ``(rows, D)`` of each call of the encoder.
        thinks: Whether the row thought.
        thought: What.
        num_reasoning_tokens: Its tokens.
        gate_probability: That thinking helps.
        truncated: Whether the text was cut.
        errors: Rows without a vector: id, row and error.
        reasons: Kinds of errors.
    """

    ids: list[str] = field(default_factory=list)
    vectors: list[NDArray[np.float32]] = field(default_factory=list)
    thinks: list[bool] = field(default_factory=list)
    thought: list[str] = field(default_factory=list)
    num_reasoning_tokens: list[int] = field(default_factory=list)
    gate_probability: list[float] = field(default_factory=list)
    truncated: list[bool] = field(default_factory=list)
    errors: list[dict[str, object]] = field(default_factory=list)
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, encoding: Encoding, places: Sequence[int], ids: Sequence[str]) -> None:
        """Takes rows of an encoding.

        Args:
            encoding: What the encoder gave.
            places: Rows of it.
            ids: As many.
        """
        truncated = set(encoding.truncated)
        self.ids += ids
        self.vectors.append(encoding.vectors[list(places)].numpy())
        self.thinks += encoding.thinks[list(places)].tolist()
        self.thought += [encoding.thoughts[place] for place in places]
        self.num_reasoning_tokens += encoding.num_reasoning_tokens[list(places)].tolist()
        self.gate_probability += encoding.gate_probability[list(places)].tolist()
        self.truncated += [place in truncated for place in places]


def part_path(folder: Path, part: int) -> Path:
    """Where a part is."""
    return folder / f"part-{part:05d}.parquet"


def errors_path(folder: Path, part: int) -> Path:
    """Where its rows without a vector are named, if it has any."""
    return folder / f"part-{part:05d}.errors.jsonl"


def write_part(folder: Path, rows: PartRows, facts: PartFacts, *, dim: int, dtype: str) -> PartFacts:
    """Writes a part; its errors first, so that what has its part file is complete.

    Args:
        folder: Where.
        rows: What is in it.
        facts: What its rows do not say.
        dim: D.
        dtype: Of the stored vectors: float32 or float16.

    Returns:
        All facts.

    Raises:
        DataError: It cannot be written.
    """
    facts = replace(
        facts,
        num_rows=len(rows.ids),
        num_errors=len(rows.errors),
        num_thinking=sum(rows.thinks),
        num_reasoning_tokens=sum(rows.num_reasoning_tokens),
        num_truncated=sum(rows.truncated),
        reasons=dict(rows.reasons),
    )
    vectors = np.concatenate([np.empty((0, dim), np.float32), *rows.vectors]).astype(dtype)
    table = pa.table(
        {
            "id": pa.array(rows.ids, pa.string()),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dim),
            "thinks": pa.array(rows.thinks, pa.bool_()),
            "thought": pa.array(rows.thought, pa.string()),
            "num_reasoning_tokens": pa.array(rows.num_reasoning_tokens, pa.int32()),
            "gate_probability": pa.array(rows.gate_probability, pa.float32()),
            "truncated": pa.array(rows.truncated, pa.bool_()),
        }
    ).replace_schema_metadata({_ABOUT: json.dumps(asdict(facts)).encode()})
    named = errors_path(folder, facts.part)
    try:
        if rows.errors:
            with replacing(named) as temporary:
                temporary.write_text("".join(json.dumps(error, ensure_ascii=False) + "\n" for error in rows.errors), encoding="utf-8")
        else:
            named.unlink(missing_ok=True)
        with replacing(part_path(folder, facts.part)) as temporary:
            pq.write_table(table, temporary, use_dictionary=False, compression="zstd", write_page_checksum=True, store_schema=True)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{folder}: part {facts.part} cannot be written ({error}): make room there, and run the command again.") from error
    return facts


def read_facts(folder: Path, part: int, *, made_of: str) -> PartFacts | None:
    """What a part's footer says; None if it is not there, or of another manifest. Few bytes are read."""
    try:
        about = (pq.read_schema(part_path(folder, part)).metadata or {}).get(_ABOUT)
        facts = PartFacts(**json.loads(about)) if about is not None else None
    except (OSError, pa.ArrowException, TypeError, ValueError):
        return None
    return facts if facts is not None and facts.made_of == made_of and facts.part == part else None


def whole_part(folder: Path, part: int, *, made_of: str, dim: int) -> PartFacts | None:
    """A part's facts, after all of it was read and compared with its checksums; None if it is to be made.

    What is damaged is named in the log and removed.

    Raises:
        DataError: The file is a table that is no part of any run.
    """
    path = part_path(folder, part)
    if not path.exists():
        return None
    facts = read_facts(folder, part, made_of=made_of)
    if facts is None and _is_foreign(path):
        raise DataError(f"{path} was not written by `twn embed`, which would replace it: move it away, or choose another --out.")
    why = "it has no footer of this run" if facts is None else _fault(folder, facts, dim=dim)
    if why:
        log.warning("%s is damaged (%s): it is made again.", path, why)
        path.unlink(missing_ok=True)
        return None
    return facts


def part_batches(folder: Path, parts: Iterable[int], columns: Sequence[str]) -> Iterator[Mapping[str, Any]]:
    """Columns of parts as Arrow arrays, some thousand rows at a time.

    Raises:
        DataError: A part cannot be read.
    """
    for part in parts:
        path = part_path(folder, part)
        try:
            with pq.ParquetFile(path, pre_buffer=False, **_CHECKSUM) as file:
                for batch in file.iter_batches(4096, columns=list(columns)):
                    yield dict(zip(batch.schema.names, batch.columns, strict=True))
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path} cannot be read ({error}): run the command again, which makes it anew.") from error


def vectors_of(column: pa.FixedSizeListArray) -> NDArray[np.floating[Any]]:
    """A column of vectors as an array, ``(rows, D)``."""
    values: NDArray[np.floating[Any]] = column.flatten().to_numpy(zero_copy_only=False)
    return values.reshape(len(column), -1) if len(column) else values.reshape(0, column.type.list_size)


def _is_foreign(path: Path) -> bool:
    """Whether a file is a whole table that says nothing of being a part; what cannot be read is a part that is damaged."""
    try:
        return _ABOUT not in (pq.read_schema(path).metadata or {})
    except (OSError, pa.ArrowException):
        return False


def _fault(folder: Path, facts: PartFacts, *, dim: int) -> str:
    """What is wrong with a part; empty if nothing."""
    try:
        columns = list(part_batches(folder, [facts.part], COLUMNS))
        num_named = errors_path(folder, facts.part).read_bytes().count(b"\n") if facts.num_errors else 0
    except (DataError, OSError) as error:
        return str(error)
    num_rows = sum(len(batch["id"]) for batch in columns)
    if num_rows != facts.num_rows or num_named != facts.num_errors or num_rows + num_named != facts.stop - facts.first:
        return f"it has {num_rows} vectors and {num_named} errors"
    if any(batch["vector"].type.list_size != dim for batch in columns):
        return f"its vectors have not {dim} numbers"
    return ""
