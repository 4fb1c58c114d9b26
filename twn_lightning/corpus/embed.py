"""The core of `twn embed`: plans a folder of parts, makes those that are missing, and says how far it is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from twn_lightning.corpus.finish import Format, finish
from twn_lightning.corpus.make import PartMaker
from twn_lightning.corpus.manifest import Totals
from twn_lightning.corpus.parts import PartFacts
from twn_lightning.corpus.plan import EmbedSettings, Job, prepare, sorted_out
from twn_lightning.corpus.sources import Input

if TYPE_CHECKING:
    from twn_lightning.encoder import Encoder

Progress: TypeAlias = Callable[[int, int], None]
"""Called with how many rows are done and how many there are, at the beginning and after every part."""


@dataclass(frozen=True)
class Outcome:
    """What a run has done.

    Attributes:
        manifest: Of the folder, whoever made its parts.
        made: Sums of the parts that this run made.
        num_kept: Parts that were there.
        num_busy: Parts that another process was at.
        seconds: That the run took.
    """

    manifest: dict[str, Any]
    made: Totals
    num_kept: int
    num_busy: int
    seconds: float


def embed_corpus(
    encoder: Encoder,
    source: Input,
    out: Path,
    *,
    settings: EmbedSettings | None = None,
    shard: tuple[int, int] = (0, 1),
    output: Format = "parquet",
    progress: Progress | None = None,
) -> Outcome:
    """Embeds files into a folder of parts; goes on where an earlier run with the same arguments was stopped.

    Memory holds the rows of one part, of which words and pictures in cells are read 256 MiB at a time.

    Args:
        encoder: From a bundle.
        source: What is embedded; see `sources.open_inputs`.
        out: Folder for the parts.
        settings: How.
        shard: (n, of): make only parts whose number is n modulo of. Several runs, of different shards or the same, may go on at once.
        output: "npy" adds arrays when all parts are there.
        progress: Told after each part.

    Raises:
        ConfigError: A setting is not to be had, or the folder holds vectors that were made otherwise.
        DataError: An input cannot be read any further, or the folder cannot be written; strict: a row is unusable.
    """
    job = prepare(encoder, source, out, settings or EmbedSettings())
    maker = PartMaker(encoder, job)
    return run(job, lambda parts: map(maker.make, parts), shard=shard, output=output, progress=progress)


def run(
    job: Job,
    make: Callable[[Sequence[int]], Iterable[PartFacts | None]],
    *,
    shard: tuple[int, int] = (0, 1),
    output: Format = "parquet",
    progress: Progress | None = None,
) -> Outcome:
    """Makes a job's missing parts.

    Args:
        job: The plan.
        make: Makes parts of these numbers; gives the facts of each, in any order, or None for one that another process is at.
        shard: See `embed_corpus`.
        output: See `embed_corpus`.
        progress: See `embed_corpus`.

    Raises:
        DataError: See `embed_corpus`.
    """
    started = time.perf_counter()
    kept, missing = sorted_out(job, shard)
    done = sum(one.stop - one.first for one in kept)
    num_rows = done + sum(stop - first for first, stop in map(job.bounds, missing))
    tell = progress or (lambda done, total: None)
    tell(done, num_rows)
    made = []
    num_busy = 0
    for facts in make(missing):
        if facts is None:
            num_busy += 1
            continue
        made.append(facts)
        done += facts.stop - facts.first
        tell(done, num_rows)
    manifest = finish(job, output=output)
    return Outcome(manifest, Totals.of(made), num_kept=len(kept), num_busy=num_busy, seconds=round(time.perf_counter() - started, 3))
