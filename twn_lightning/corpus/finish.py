"""What is done with the parts when they are there: counted, searched for ids that occur twice, joined into one array."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from twn_lightning.corpus.manifest import Totals, lock, update_manifest
from twn_lightning.corpus.parts import part_batches, read_facts, vectors_of
from twn_lightning.corpus.plan import Job
from twn_lightning.errors import DataError
from twn_lightning.files import replacing

Format: TypeAlias = Literal["parquet", "npy"]

VECTORS, IDS = "vectors.npy", "ids.parquet"

_HASHES_AT_ONCE = 1 << 23
_MOST_EXAMPLES = 5


def finish(job: Job, *, output: Format = "parquet") -> dict[str, Any]:
    """Counts the parts that are there, whoever made them; if they are all, looks for duplicate ids and writes arrays.

    Args:
        job: The plan.
        output: "npy" adds vectors.npy, ``(rows, D)``, and ids.parquet with the id of each of its rows.

    Returns:
        The manifest.

    Raises:
        DataError: A part cannot be read, or an array cannot be written.
    """
    facts = [read_facts(job.folder, part, made_of=job.made_of) for part in range(job.num_parts)]
    totals = Totals.of([one for one in facts if one is not None])
    is_complete = totals.num_parts == job.num_parts
    about: dict[str, object] = {}
    if is_complete and job.corpus.has_own_ids:
        about["duplicate_ids"] = duplicate_ids(job, num_rows=totals.num_rows)
    with lock(job.folder):
        if is_complete and output == "npy":
            _write_arrays(job, num_rows=totals.num_rows)
        return update_manifest(job.folder, totals, about, is_complete=is_complete)


def duplicate_ids(job: Job, *, num_rows: int) -> dict[str, object]:
    """How many rows have the id of an earlier row, and some of these ids.

    Memory: 64 MiB. Hashes of ids are compared, a share of them at a time; for each eight million rows the ids are read once more.

    Args:
        job: Whose parts are there.
        num_rows: In them.

    Raises:
        DataError: A part cannot be read.
    """
    num_passes = -(-num_rows // _HASHES_AT_ONCE)
    count, examples = 0, Counter[str]()
    for number in range(num_passes):
        own = [hashes[hashes % num_passes == number] for hashes, _ in _hashed_ids(job)]
        unique, times = np.unique(np.concatenate(own), return_counts=True)
        count += int((times - 1).sum())
        twice = unique[times > 1][:_MOST_EXAMPLES]
        if len(twice) and len(examples) < _MOST_EXAMPLES:
            for hashes, ids in _hashed_ids(job):
                examples.update(ids[place] for place in np.flatnonzero(np.isin(hashes, twice)))
    return {"rows": count, "examples": dict(examples.most_common(_MOST_EXAMPLES))}


def _hashed_ids(job: Job) -> Iterator[tuple[NDArray[np.int64], list[str]]]:
    """Python's own hashes of strings, which differ from process to process, and the strings."""
    for batch in part_batches(job.folder, range(job.num_parts), ["id"]):
        ids = batch["id"].to_pylist()
        yield np.fromiter(map(hash, ids), np.int64, len(ids)), ids


def _write_arrays(job: Job, *, num_rows: int) -> None:
    vectors, ids = job.folder / VECTORS, job.folder / IDS
    shape, dtype = (num_rows, job.dim), np.dtype(job.settings.dtype)
    if ids.is_file() and vectors.is_file() and _has(vectors, shape, dtype):
        return
    try:
        with replacing(vectors) as temporary, replacing(ids) as names, pq.ParquetWriter(names, pa.schema([("id", pa.string())])) as writer:
            array = open_memmap(temporary, mode="w+", dtype=dtype, shape=shape)
            row = 0
            for batch in part_batches(job.folder, range(job.num_parts), ["id", "vector"]):
                array[row : row + len(batch["id"])] = vectors_of(batch["vector"])
                writer.write_table(pa.table({"id": batch["id"]}))
                row += len(batch["id"])
            assert row == num_rows, "the footers have counted them"
            array.flush()
    except OSError as error:
        raise DataError(f"{vectors} cannot be written ({error}): make room there, and run the command again.") from error


def _has(path: Path, shape: tuple[int, int], dtype: np.dtype[Any]) -> bool:
    try:
        array = open_memmap(path, mode="r")
    except (OSError, ValueError):
        return False
    return bool(array.shape == shape and array.dtype == dtype)
