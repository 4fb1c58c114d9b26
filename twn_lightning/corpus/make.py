"""Makes parts: rows in, vectors out, a file at the end; whoever is killed on the way has lost that part and no other."""

from __future__ import annotations

import time
import uuid
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from twn_lightning.corpus.manifest import lock
from twn_lightning.corpus.parts import PartFacts, PartRows, part_path, read_facts, write_part
from twn_lightning.corpus.plan import Job
from twn_lightning.corpus.rows import CorpusRow, reason_of
from twn_lightning.corpus.sources import RowReader
from twn_lightning.errors import ConfigError, DataError

if TYPE_CHECKING:
    from twn_lightning.encoder import Encoder, EncoderInput, Encoding

_MOST_BYTES = 256 << 20
"""Words and decoded pictures that are handed to the encoder at once."""


class PartMaker:
    """Makes parts, one after the other.

    Args:
        encoder: The job's.
        job: The plan.

    Raises:
        ConfigError: The encoder is not the job's.
    """

    def __init__(self, encoder: Encoder, job: Job) -> None:
        own = encoder.provenance() | {"dim": str(encoder.dim)}
        others = [f"{name} is {own.get(name)}, not {value}" for name, value in job.model.items() if own.get(name) != value]
        if others:
            raise ConfigError(f"This worker has another model than {job.folder} is made with ({'; '.join(others)}): run all workers alike.")
        self._encoder = encoder
        self._job = job
        self._reader = RowReader(job.corpus)
        self._failed = dict(_failed(job)) if job.settings.retry_errors else {}

    def make(self, part: int) -> PartFacts | None:
        """Makes a part and writes it down.

        Returns:
            Its facts; None if another process is at it.

        Raises:
            DataError: The input cannot be read any further, the part cannot be written, or a row is unusable and the settings are strict.
        """
        job = self._job
        claim = lock(job.folder, part_path(job.folder, part).stem, timeout=0)
        try:
            claim.acquire()
        except filelock.Timeout:
            return None
        try:
            facts = read_facts(job.folder, part, made_of=job.made_of)
            if facts is None or facts == self._failed.get(part):  # else another process has made it meanwhile
                return self._make(part)
            return facts
        finally:
            Path(claim.lock_file).unlink(missing_ok=True)
            claim.release()

    def _make(self, part: int) -> PartFacts:
        job, started = self._job, time.perf_counter()
        path = part_path(job.folder, part)
        for left in job.folder.glob(f".{path.stem}.*.part"):  # what a killed process wrote of it
            left.unlink(missing_ok=True)
        first, stop = job.bounds(part)
        rows = PartRows()
        for stretch in _stretches(self._reader.take(first, stop)):
            self._encode(stretch, rows)
        facts = PartFacts(part, first, stop, job.made_of, uuid.uuid4().hex[:12], seconds=round(time.perf_counter() - started, 3))
        return write_part(job.folder, rows, facts, dim=job.dim, dtype=job.settings.dtype)

    def _encode(self, stretch: Sequence[CorpusRow], rows: PartRows) -> None:
        errors = {row.number: row.error for row in stretch if row.value is None}
        inputs = {row.number: row.value for row in stretch if row.value is not None}
        if inputs:
            encoding = self._encoding(list(inputs.values()))
            finite = encoding.vectors.isfinite().all(dim=1).tolist()
            for place, number in enumerate(inputs):
                if place in encoding.errors or not finite[place]:
                    errors[number] = encoding.errors.get(place, "its vector is not finite")
            places = [place for place, number in enumerate(inputs) if number not in errors]
            rows.add(encoding, places, [row.id for row in stretch if row.number not in errors])
        for row in stretch:
            if row.number in errors:
                self._note(row, errors[row.number], rows)

    def _encoding(self, inputs: list[EncoderInput]) -> Encoding:
        settings = self._job.settings
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # what is skipped or cut is counted here
            return self._encoder.encode(
                inputs,
                side=settings.side,
                instruction=settings.instruction,
                think=settings.think,
                budget=settings.budget,
                batch_size=settings.batch_size,
                show_progress=False,
                on_error="skip",
                return_thoughts=True,
            )

    def _note(self, row: CorpusRow, error: str, rows: PartRows) -> None:
        if self._job.settings.strict:
            raise DataError(f"Row {row.number} (id {row.id}): {error} Without --strict such rows are left out and named in a file.")
        rows.errors.append({"id": row.id, "row": row.number, "error": error})
        rows.reasons[reason_of(error)] += 1


def _failed(job: Job) -> Iterator[tuple[int, PartFacts]]:
    """Parts of a job that have errors now."""
    for part in range(job.num_parts):
        facts = read_facts(job.folder, part, made_of=job.made_of)
        if facts is not None and facts.num_errors:
            yield part, facts


def _stretches(rows: Iterator[CorpusRow]) -> Iterator[list[CorpusRow]]:
    """Rows whose words and pictures fit into memory together."""
    stretch: list[CorpusRow] = []
    size = 0
    for row in rows:
        if stretch and size + row.size > _MOST_BYTES:
            yield stretch
            stretch, size = [], 0
        stretch.append(row)
        size += row.size
    if stretch:
        yield stretch
