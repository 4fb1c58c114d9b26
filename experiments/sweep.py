"""python -m experiments.sweep rivals reward --run mini --seeds 1,2,3 --jobs 2

Trains each variant of the ablations named (or of all; base stands for the base runs alone) with each seed, and prints a table for each
ablation: mean over seeds and tasks with its 95 % interval, and the difference to the base run, paired by query. ``--variants k1,k16`` trains
those variants alone. A run is
``<run>-<ablation>-<variant>-s<seed>``, the base run ``<run>-s<seed>``, each a process of its own whose output goes to ``train.log`` in its
folder. Steps that runs have in common are trained once. Ctrl-C stops all of them, the same command goes on, and what is finished is not
trained again. ``--collect`` copies the records of finished runs to docs/results/records. A base run takes as long as `make train`;
``--profile smoke`` shows that it works.
An ablation is a module ``ablation_<name>.py`` with VARIANTS (variant → overrides), or READS (variant → mode in the base runs' records).
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import logging
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from experiments.command_line import CONFIG, PROFILE, add_settings, new_parser, prepare_process, require_sources, run_command, settings
from experiments.comparison import MODES, OWN, Records, Row, compare, compare_modes, comparison_markdown, comparison_table
from experiments.record import RECORD, read_record
from experiments.runs import RunFolder, write_atomically
from experiments.scheduler import LOG, Job, Launch, launch_process, run_jobs
from twn_lightning.configs.run import RunConfig
from twn_lightning.errors import ConfigError, TwnError

log = logging.getLogger(__name__)

_MODULES = {path.stem.removeprefix("ablation_"): path.stem for path in sorted(Path(__file__).parent.glob("ablation_*.py"))}
_CONTENTS = {name: vars(importlib.import_module(f"experiments.{module}")) for name, module in _MODULES.items()}
ABLATIONS: Mapping[str, Mapping[str, Sequence[str]]] = {name: found["VARIANTS"] for name, found in _CONTENTS.items() if "VARIANTS" in found}
"""Ablation → variant → overrides."""
OWN_MODES: Mapping[str, Mapping[str, str]] = {name: found["MODES"] for name, found in _CONTENTS.items() if "VARIANTS" in found and "MODES" in found}
"""Ablation → variant → the mode it is compared in, if that is not auto."""
READS: Mapping[str, Mapping[str, str]] = {name: found["READS"] for name, found in _CONTENTS.items() if "READS" in found}
"""Ablation without training → variant → mode in the base runs' records."""
REFERENCES: Mapping[str, str] = {name: found["REFERENCE"] for name, found in _CONTENTS.items() if "READS" in found}
"""Ablation without training → the variant that the others are compared with."""
RECORDS = Path(__file__).parents[1] / "docs" / "results" / "records"


@dataclass(frozen=True)
class Plan:
    """What a sweep consists of.

    Attributes:
        base: The base runs' name, without the seed.
        ablations: Names of those asked for.
        jobs: One for each run, the base runs first.
        runs: Ablation ("" for the base) → variant → seed → the run's name; a variant whose settings are the base's is the base run.
    """

    base: str
    ablations: tuple[str, ...]
    jobs: tuple[Job, ...]
    runs: Mapping[str, Mapping[str, Mapping[int, str]]]


def main(arguments: Sequence[str]) -> None:
    """Check everything without torch, then train what is not finished, and print the tables.

    Raises:
        TwnError: Something the user can mend; also that runs failed, after the others have finished.
    """
    parser = new_parser("sweep", __doc__)
    parser.add_argument("--seeds", default="1,2,3", help="seeds, with commas between (default: 1,2,3)")
    parser.add_argument("--variants", metavar="A,B", help="of the ablations named, these variants alone (default: all)")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; several run with one thread each (default: 1)")
    parser.add_argument("--collect", action="store_true", help="copy the records of finished runs to docs/results/records")
    parser.add_argument("--records", type=Path, default=RECORDS, help="where --collect puts them")
    parser.add_argument("--no-training", action="store_true", help="print the tables of the runs that are finished")
    add_settings(parser)
    parsed = parser.parse_intermixed_args(arguments)
    plan = make_plan(parsed)
    if not parsed.no_training:
        for job in plan.jobs:
            require_sources(job.folder.config)
            job.folder.check("all")
    prepare_process()
    launch = None if parsed.no_training else launch_process(single_threaded=parsed.jobs > 1)
    failures = run_sweep(plan, launch, num_parallel=parsed.jobs)
    if parsed.collect:
        collect(plan, parsed.records)
    if failures:
        shown = "\n".join(f"  {name}: {line}" for name, line in failures.items())
        raise TwnError(
            f"{len(failures)} of {len(plan.jobs)} runs failed ({LOG} in their folders says more); the same command tries them again:\n{shown}"
        )


def make_plan(parsed: argparse.Namespace) -> Plan:
    """The runs that the arguments ask for, each with its checked settings.

    Raises:
        ConfigError: An ablation, seed or setting is wrong.
    """
    words = [word for word in parsed.overrides if "=" not in word]
    given = [word for word in parsed.overrides if "=" in word]
    ablations, seeds = _ablations(words), _seeds(parsed.seeds)
    chosen = _chosen(ablations, parsed.variants)
    if parsed.jobs < 1:
        raise ConfigError(f"--jobs is {parsed.jobs}, but it counts runs at a time: choose 1 or more.")
    if any(word.startswith(("seed=", "name=")) for word in given):
        raise ConfigError("A sweep sets seed and name itself: give --seeds 1,2,3 and --run NAME instead.")
    threads = ["trainer.num_threads=1"] if parsed.jobs > 1 else []

    def job(name: str, overrides: Sequence[str], seed: int) -> Job:
        values = [*threads, *given, *overrides, f"seed={seed}"]
        config = settings(argparse.Namespace(**{**vars(parsed), "run": name, "overrides": values}))
        files = ["--config", parsed.config or CONFIG, "--profile", parsed.profile or PROFILE, "--run", name]
        return Job(RunFolder(config), (sys.executable, "-m", "experiments.train", "all", "--share", *files, *values))

    base = settings(argparse.Namespace(**{**vars(parsed), "overrides": given})).name
    jobs = {seed: job(f"{base}-s{seed}", [], seed) for seed in seeds}
    if jobs[seeds[0]].folder.config.data.suite == "none":
        raise ConfigError("data.suite is none, but a sweep compares its runs on the suite's test tasks: set data.suite=mini.")
    all_jobs = list(jobs.values())
    runs: dict[str, dict[str, dict[int, str]]] = {"": {"base": {seed: jobs[seed].name for seed in seeds}}}
    for seed in seeds:
        for ablation in ablations:
            for variant, overrides in chosen[ablation].items():
                own = job(f"{base}-{ablation}-{variant}-s{seed}", overrides, seed)
                is_base = _settings_alone(own.folder.config) == _settings_alone(jobs[seed].folder.config)
                runs.setdefault(ablation, {}).setdefault(variant, {})[seed] = jobs[seed].name if is_base else own.name
                if not is_base:
                    all_jobs.append(own)
    return Plan(base=base, ablations=ablations, jobs=tuple(all_jobs), runs=runs)


def run_sweep(plan: Plan, launch: Launch | None, *, num_parallel: int) -> dict[str, str]:
    """Finish the runs, then print the tables and record them in MLflow.

    Args:
        plan: Of `make_plan`.
        launch: Starts a run; None trains nothing.
        num_parallel: Runs at a time.

    Returns:
        The failed runs, each with the last line of its log.
    """
    from experiments.sweep_display import sweep_display
    from experiments.tracking import Tracking

    config = plan.jobs[0].folder.config
    folder = Path(config.output_dir).resolve() / f"{plan.base}-sweep"
    folder.mkdir(parents=True, exist_ok=True)
    failures: dict[str, str] = {}
    # Opened before the runs are: they would all make the store's tables at once.
    tracking = Tracking(dataclasses.replace(config, name=folder.name), folder)
    with tracking.running():
        if launch is not None:
            with sweep_display() as display, stopped_by_sigterm():
                failures = run_jobs(plan.jobs, num_parallel=num_parallel, launch=launch, display=display)
        records = finished_records(plan)
        for ablation in plan.ablations:
            rows, modes = ablation_rows(plan, ablation, records)
            _show(ablation, rows, modes, folder)
            for row in rows:
                logger = tracking.child(f"{ablation}/{row.variant}", {"ablation": ablation, "variant": row.variant})
                logger.log_metrics(row.metrics())
                logger.finalize("success")
            if rows:
                tracking.parent.log_artifact(folder / f"{ablation}.md", "tables")
    return failures


def ablation_rows(plan: Plan, ablation: str, records: Mapping[str, Records]) -> tuple[list[Row], tuple[str, ...]]:
    """An ablation's rows, and the modes that are columns of its table."""
    base = records.get("/base", {})
    if ablation in READS:
        reads = READS[ablation]
        return (compare_modes(base, reads, reference=REFERENCES[ablation]) if base else []), (OWN,)
    variants = {variant: records.get(f"{ablation}/{variant}", {}) for variant in ABLATIONS[ablation]}
    return compare(variants, base, modes=OWN_MODES.get(ablation, {})), MODES


def finished_records(plan: Plan) -> dict[str, Records]:
    """The records of the runs that are finished, by seed, by ``ablation/variant``; the base runs are ``/base``."""
    finished = {job.name: read_record(job.folder.path / RECORD) for job in plan.jobs if job.is_finished()}
    return {
        f"{ablation}/{variant}": {seed: finished[run] for seed, run in seeds.items() if run in finished}
        for (ablation, variant), seeds in _places(plan)
    }


def collect(plan: Plan, folder: Path) -> list[Path]:
    """Copy the records of finished runs as ``<run>.json``, each with the ablation and variant that it belongs to.

    Args:
        plan: Whose runs.
        folder: Where to.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    places = {run: place for place, seeds in reversed(list(_places(plan))) for run in seeds.values()}  # a base run is no other's variant
    copied = []
    for job in plan.jobs:
        if job.is_finished():
            ablation, variant = places[job.name]
            record = dataclasses.replace(read_record(job.folder.path / RECORD), ablation=ablation, variant=variant)
            copied.append(folder / f"{job.name}.json")
            write_atomically(copied[-1], record.to_json())
    log.info("%d records in %s", len(copied), folder)
    return copied


@contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """The block takes SIGTERM, and SIGINT where the shell had it ignored, for Ctrl-C: the runs are stopped and keep their state."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {sig: signal.signal(sig, stop) for sig in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for sig, handler in before.items():
            signal.signal(sig, handler)


def _places(plan: Plan) -> Iterator[tuple[tuple[str, str], Mapping[int, str]]]:
    """Each ablation and variant with its runs by seed, the base first."""
    for ablation, variants in plan.runs.items():
        for variant, seeds in variants.items():
            yield (ablation, variant), seeds


def _show(ablation: str, rows: Sequence[Row], modes: Sequence[str], folder: Path) -> None:
    from experiments.display import show

    if not rows:
        show(f"{ablation}: no run of it is finished in {folder.parent}")
        return
    reference = REFERENCES.get(ablation, "base, auto")
    show(comparison_table(f"Ablation {ablation}", rows, modes=modes, reference=reference))
    write_atomically(folder / f"{ablation}.md", comparison_markdown(rows, modes=modes, reference=reference))


def _ablations(words: Sequence[str]) -> tuple[str, ...]:
    known = sorted({*ABLATIONS, *READS})
    if not words:
        raise ConfigError(f"Which ablation? Name some of {', '.join(known)}, or all, or base for the base runs alone.")
    for word in words:
        if word not in (*known, "all", "base"):
            hint = _hint(word, [*known, "all", "base"])
            raise ConfigError(f"There is no ablation {word!r}.{hint} Available: all, base, {', '.join(known)}.")
    return tuple(known) if "all" in words else tuple(dict.fromkeys(word for word in words if word != "base"))


def _chosen(ablations: Sequence[str], text: str | None) -> dict[str, dict[str, Sequence[str]]]:
    """Ablation → variant → overrides, of the variants named with commas between; None for all."""
    every = {ablation: dict(ABLATIONS.get(ablation, {})) for ablation in ablations}
    if text is None:
        return every
    names = [name.strip() for name in text.split(",")]
    known = list(dict.fromkeys(variant for variants in every.values() for variant in variants))
    for name in names:
        if name not in known:
            available = ", ".join(known) or "none, since none trains"
            raise ConfigError(f"--variants names {name!r}, which no ablation asked for has.{_hint(name, known)} Available: {available}.")
    return {ablation: {name: overrides for name, overrides in variants.items() if name in names} for ablation, variants in every.items()}


def _hint(word: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""


def _seeds(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ConfigError(f"--seeds is {text!r}, but seeds are whole numbers from 0 with commas between, e.g. --seeds 1,2,3.")
    return tuple(dict.fromkeys(int(part) for part in parts))


def _settings_alone(config: RunConfig) -> RunConfig:
    return dataclasses.replace(config, name="any")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
