"""`twn embed` over the workers of a Ray cluster: the same parts, made by a Ray Data pool of actors, each of which has the model loaded once."""

from __future__ import annotations

import functools
import importlib
import json
import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

from twn_lightning.corpus.embed import Outcome, Progress, run
from twn_lightning.corpus.finish import Format
from twn_lightning.corpus.make import PartMaker
from twn_lightning.corpus.manifest import LOCKS
from twn_lightning.corpus.parts import PartFacts, part_path
from twn_lightning.corpus.plan import EmbedSettings, Job, prepare
from twn_lightning.corpus.sources import Input
from twn_lightning.encoder import Encoder
from twn_lightning.errors import ConfigError, DataError, TwnError

_MOST_TRIES = 3


def embed_with_ray(
    bundle: str | Path,
    source: Input,
    out: Path,
    *,
    num_workers: int,
    settings: EmbedSettings | None = None,
    output: Format = "parquet",
    device: str | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """`corpus.embed.embed_corpus` with a pool of workers; the folder is the same, and either goes on with what the other has begun.

    Ray is started on this machine, or reached at RAY_ADDRESS, unless it is running; each worker takes a GPU if the cluster has one. A worker that
    is killed is started anew and makes its part again. Bundle, input and folder must be reachable under the same paths on all machines.

    Args:
        bundle: Folder that training left.
        source: What is embedded; see `sources.open_inputs`.
        out: Folder for the parts.
        num_workers: Each has its own model.
        settings: How.
        output: "npy" adds arrays when all parts are there.
        device: Of the workers; None takes a GPU if there is one.
        progress: Told after each part.

    Raises:
        ConfigError: Ray is not installed, a setting is not to be had, or the folder holds vectors that were made otherwise.
        CheckpointError: The bundle cannot be loaded.
        DataError: An input cannot be read any further, or the folder cannot be written; strict: a row is unusable; a worker failed.
    """
    ray = _ray()
    if num_workers < 1:
        raise ConfigError(f"num_workers is {num_workers}, but somebody must do the work: choose at least 1.")
    has_started = not ray.is_initialized()
    if has_started:
        ray.init(log_to_driver=False, logging_level="warning", include_dashboard=False)
    try:
        num_gpus = int(ray.cluster_resources().get("GPU", 0) > 0)
        planned = ray.remote(num_gpus=num_gpus)(_plan).remote(Path(bundle).resolve(), source, out.resolve(), settings or EmbedSettings(), device)
        job = _result(ray, planned)
        make = functools.partial(_make, ray, Path(bundle).resolve(), job, num_workers=num_workers, num_gpus=num_gpus, device=device)
        return run(job, make, output=output, progress=progress)
    finally:
        if has_started:
            ray.shutdown()


def _plan(bundle: Path, source: Input, out: Path, settings: EmbedSettings, device: str | None) -> Job:
    """Runs on a worker: what a vector depends on is asked where vectors are made."""
    return prepare(Encoder.from_pretrained(bundle, device=device), source, out, settings)


class _Worker:
    """An actor. What the user can mend goes back as words: an exception would be taken for a reason to try again.

    Args:
        bundle: Loaded with the first part.
        job: The plan.
        device: Where to run.
        run_name: Names this run; other runs' failures do not count.
    """

    def __init__(self, bundle: Path, job: Job, device: str | None, run_name: str) -> None:
        self._load = functools.partial(Encoder.from_pretrained, bundle, device=device)
        self._job = job
        self._run_name = run_name
        self._maker: PartMaker | None = None

    def __call__(self, row: Mapping[str, Any]) -> dict[str, object]:
        part = int(row["part"])
        tries = self._job.folder / LOCKS / f"{part_path(self._job.folder, part).stem}.{self._run_name}.tries"
        with tries.open("a") as file:  # a death leaves it behind
            file.write(".")
        try:
            if tries.stat().st_size > _MOST_TRIES:
                raise DataError(f"Part {part} has ended {_MOST_TRIES} workers, probably for want of memory: choose a smaller --batch-size.")
            self._maker = self._maker or PartMaker(self._load(), self._job)
            facts = self._maker.make(part)
        except TwnError as error:
            return {"part": part, "facts": "", "error": str(error)}
        finally:
            tries.unlink(missing_ok=True)
        return {"part": part, "facts": "" if facts is None else json.dumps(asdict(facts)), "error": ""}


def _make(
    ray: ModuleType, bundle: Path, job: Job, parts: Sequence[int], *, num_workers: int, num_gpus: int, device: str | None
) -> Iterator[PartFacts | None]:
    """Facts of parts as they are made."""
    if not parts:
        return
    data = importlib.import_module("ray.data")
    data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # it warns that the bars were disabled
    rows = data.from_items(
        [{"part": part} for part in parts], override_num_blocks=len(parts)
    ).map(  # a killed worker costs the part it was at
        _Worker,
        fn_constructor_args=(bundle, job, device, uuid.uuid4().hex[:12]),
        compute=data.ActorPoolStrategy(size=min(num_workers, len(parts))),
        num_gpus=num_gpus,
    )
    try:
        for row in rows.iter_rows():
            if row["error"]:
                raise DataError(row["error"])
            yield PartFacts(**json.loads(row["facts"])) if row["facts"] else None
    except ray.exceptions.RayTaskError:
        raise  # a mistake of ours
    except ray.exceptions.RayError as error:
        raise DataError(f"The workers of Ray have failed ({error}): what they have made stays; run the command again.") from error


def _result(ray: ModuleType, reference: object) -> Job:
    try:
        job = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, TwnError):
            raise error.cause from None
        raise
    assert isinstance(job, Job)
    return job


def _ray() -> ModuleType:
    try:
        return importlib.import_module("ray")
    except ImportError:
        raise ConfigError("Sharing the work out needs the package ray: pip install 'twn-lightning[ray]'.") from None
