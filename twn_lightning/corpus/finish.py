"""What is done with the parts when they are there: counted, searched for ids that occur twice, joined into one array."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from twn_lightning.corpus.manifest import Totals, lock, update_manifest
from twn_lightning.corpus.parts import PartFacts, part_batches, read_facts, vectors_of
from twn_lightning.corpus.plan import IDS, VECTORS, Job
from twn_lightning.errors import DataError
from twn_lightning.files import replacing

Format: TypeAlias = Literal["parquet", "npy"]

_HASHES_AT_ONCE = 1 << 23
_MOST_EXAMPLES = 5
_JOINED_OF = b"twn_joined_of"


def finish(job: Job, *, output: Format = "parquet") -> dict[str, Any]:
    """Counts the parts that are there, whoever made them; if they are all, looks for duplicate ids and writes arrays.

    Args:
        job: The plan.
        output: "npy" adds vectors.npy, ``(rows, D)``, and ids.parquet with the id of each of its rows; those that are there follow the parts anyway.

    Returns:
        The manifest.

    Raises:
        DataError: A part cannot be read, or an array cannot be written.
    """
    with lock(job.folder):  # from the counting on: of two that finish, the later one has counted more
        facts = [one for part in range(job.num_parts) if (one := read_facts(job.folder, part, made_of=job.made_of)) is not None]
        totals = Totals.of(facts)
        is_complete = totals.num_parts == job.num_parts
        about: dict[str, object] = {}
        if is_complete and job.corpus.has_own_ids:
            about["duplicate_ids"] = duplicate_ids(job, num_rows=totals.num_rows)
        joined_of = _joined_of(job.folder)
        if is_complete and (output == "npy" or joined_of) and joined_of != _digest(facts):
            _write_arrays(job, num_rows=totals.num_rows, joined_of=_digest(facts))
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


def _write_arrays(job: Job, *, num_rows: int, joined_of: str) -> None:
    vectors, ids = job.folder / VECTORS, job.folder / IDS
    schema = pa.schema([("id", pa.string())], metadata={_JOINED_OF: joined_of})
    try:
        with replacing(ids) as names, replacing(vectors) as temporary, pq.ParquetWriter(names, schema) as writer:
            array = open_memmap(temporary, mode="w+", dtype=np.dtype(job.settings.dtype), shape=(num_rows, job.dim))
            row = 0
            for batch in part_batches(job.folder, range(job.num_parts), ["id", "vector"]):
                array[row : row + len(batch["id"])] = vectors_of(batch["vector"])
                writer.write_table(pa.table({"id": batch["id"]}, schema=schema))
                row += len(batch["id"])
            assert row == num_rows, "the footers have counted them"
            array.flush()
    except OSError as error:
        raise DataError(f"{vectors} cannot be written ({error}): make room there, and run the command again.") from error


def _joined_of(folder: Path) -> str:
    """Digest of the parts that the arrays in a folder were joined of; empty if there are none of ours."""
    try:
        about = pq.read_schema(folder / IDS).metadata or {}
    except (OSError, pa.ArrowException):
        return ""
    return about.get(_JOINED_OF, b"").decode() if (folder / VECTORS).is_file() else ""


def _digest(facts: Sequence[PartFacts]) -> str:
    """Of parts, each as it was made."""
    return hashlib.blake2b(json.dumps([asdict(one) for one in facts]).encode(), digest_size=16).hexdigest()
