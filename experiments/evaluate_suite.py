"""What is evaluated, and how it is shown: the tasks of a suite, checked before a model is loaded, and the means that a report of them has."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datamodules.mini.suite import data_revision
from datamodules.mmeb.profiles import PROFILES
from datamodules.mmeb.suite import check_suite
from datamodules.mmeb.table import TABLE, UNCHANGED, TaskRow, select
from experiments.build import build_tasks
from experiments.display import progress
from experiments.mmeb_tasks import TasksInTurn, given_instructions
from experiments.runs import write_atomically
from twn_lightning.configs.run import RunConfig
from twn_lightning.distributed import gather_objects, rank
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.evaluation.report import TaskLabel, task_labels
from twn_lightning.evaluation.task import RetrievalTask

log = logging.getLogger(__name__)

WHOLES: dict[str, tuple[str, ...]] = {
    f"All-{len(TABLE)}": tuple(TABLE),
    f"All-{len(UNCHANGED)}": tuple(name for name in TABLE if name in UNCHANGED),
}
"""The means over MMEB-V2: all its tasks, and those whose files were never exchanged."""

_PROBLEMS_SHOWN = 12
_PROFILED = ("layout", "default_instruction", "num_frames", "min_pixels", "max_pixels", "max_video_pixels", "padding_side", "max_prompt_tokens")


@dataclass(frozen=True)
class Suite:
    """What a report is made of.

    Attributes:
        title: For people.
        tasks: Those that are evaluated; each may be opened as it is asked for.
        names: Of these tasks, in order.
        expected: All tasks that belong to the suite.
        wholes: See `Report.wholes`.
        revisions: Task → digest of its data.
        tags: What else the figures depend on, for report and tracker.
        shares_candidates: Whether tasks share so few and so small candidates that what is encoded for one is kept for all.
    """

    title: str
    tasks: Sequence[RetrievalTask]
    names: tuple[str, ...]
    expected: tuple[TaskLabel, ...]
    wholes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    revisions: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    shares_candidates: bool = False


def profile_changes(config: RunConfig) -> dict[str, str | int]:
    """What the profile says about prompts, by the names that `BackboneConfig` and `ProcessorOptions` share; what it leaves to the run is left out.

    Raises:
        ConfigError: A profile or instructions of MMEB-V2 are set for another suite.
    """
    if config.data.suite != "mmeb_v2":
        if config.evaluation.instructions:
            raise ConfigError(
                f"evaluation.instructions is {config.evaluation.instructions!r}, a file for the tasks of MMEB-V2, but data.suite is "
                f"{config.data.suite}: leave it out, or set data.suite=mmeb_v2 and data.root=FOLDER."
            )
        if config.evaluation.profile != "trained":
            raise ConfigError(
                f"evaluation.profile is {config.evaluation.profile}, which is a way to show MMEB-V2, but data.suite is {config.data.suite}: "
                "set evaluation.profile=trained, or data.suite=mmeb_v2 and data.root=FOLDER."
            )
        return {}
    profile = PROFILES[config.evaluation.profile]
    return {name: value for name in _PROFILED if (value := getattr(profile, name)) is not None}


def open_suite(config: RunConfig, folder: Path, *, skip_missing: bool) -> Suite:
    """The test tasks of the settings' suite; the files of MMEB-V2 are checked first, by one rank for all.

    Args:
        config: The run's settings.
        folder: Gets ``check.md``, what the check found.
        skip_missing: Leaves tasks out whose files are faulty; what proves unreadable later is the evaluation's to skip.

    Raises:
        ConfigError: There is no suite, or ``data.tasks`` or the file of instructions names what it does not have.
        DataError: Something is missing.
    """
    if config.data.suite == "none":
        raise ConfigError("data.suite is none, so there are no test tasks: set data.suite=mini, or data.suite=mmeb_v2 and data.root=FOLDER.")
    if config.data.suite == "mini":
        tasks = build_tasks(config, "test", max_queries=config.evaluation.max_queries)
        names = tuple(task.name for task in tasks)
        return Suite("Test tasks", tasks, names, task_labels(tasks), tags={"data_revision": data_revision()}, shares_candidates=True)
    root, chosen, instructions = Path(config.data.root), select(config.data.tasks), given_instructions(config)
    if not root.is_dir():
        raise DataError(f"data.root is {str(root)!r}, but there is no such folder: name the one that holds the data sets and media of MMEB-V2.")
    found = gather_objects(_check(config, root, chosen, folder) if rank() == 0 else None)[0]
    assert found is not None
    if found.problems and not skip_missing:
        if rank() != 0:
            raise SystemExit(1)  # the first rank says what is wrong
        raise DataError(_refusal(found, root))
    rows = [row for row in chosen if row.name not in found.problems]
    if not rows:
        raise DataError(_refusal(found, root))
    if found.problems:
        log.warning("Left out, since their files are faulty: %s (%s says what is wrong).", ", ".join(found.problems), folder / "check.md")
    tags = {"suite": "MMEB-V2", "profile": config.evaluation.profile, **found.versions}
    if instructions.texts:
        tags["instructions"] = str(instructions)
    if config.evaluation.max_queries is not None:
        tags["max_queries"] = f"{config.evaluation.max_queries} of each task"
    tags |= {f"note on {name}": "; ".join(notes) for name, notes in found.notes.items()}
    tags |= {f"missing {name}": problems[0] for name, problems in found.problems.items()}
    profile, max_queries = PROFILES[config.evaluation.profile], config.evaluation.max_queries
    return Suite(
        title=f"MMEB-V2, profile {config.evaluation.profile}",
        tasks=TasksInTurn(root, rows, profile=profile, max_queries=max_queries, instructions=instructions.texts),
        names=tuple(row.name for row in rows),
        expected=tuple(TaskLabel(name=row.name, kind="", modality=row.modality, subgroup=row.subgroup) for row in TABLE.values()),
        wholes=WHOLES,
        revisions=found.revisions,
        tags=tags,
    )


@dataclass(frozen=True)
class _Found:
    """What the check of the files found, as strings, which travel between ranks."""

    problems: dict[str, list[str]]
    revisions: dict[str, str]
    versions: dict[str, str]
    notes: dict[str, list[str]]


def _check(config: RunConfig, root: Path, rows: Sequence[TaskRow], folder: Path) -> _Found:
    with progress("checking the files of MMEB-V2", shown=config.trainer.progress_bar) as advance:
        check = check_suite(root, rows, open_media=False, progress=advance)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "check.md", check.markdown())
    num_notes = sum(len(notes) for notes in check.notes.values())
    log.info("%d tasks checked: %d problems, %d notes, in %s", len(rows), len(check.problems), num_notes, folder / "check.md")
    problems: dict[str, list[str]] = {}
    for problem in check.problems:
        problems.setdefault(problem.task, []).append(str(problem))
    versions = {f"files of {name}": f"{version.version} ({version.repo}, {version.digest[:8]})" for name, version in check.page_versions.items()}
    notes = {name: [str(note) for note in found] for name, found in check.notes.items() if found}
    return _Found(problems, dict(check.revision), versions, notes)


def _refusal(found: _Found, root: Path) -> str:
    """The problems, those of many tasks in turn, and the ways out."""
    lines = [problem for problems in found.problems.values() for problem in problems[:1]]
    lines += [problem for problems in found.problems.values() for problem in problems[1:]]
    more = len(lines) - _PROBLEMS_SHOWN
    shown = "\n".join(f"  {line}" for line in lines[:_PROBLEMS_SHOWN]) + (f"\n  … and {more} more" if more > 0 else "")
    return (
        f"{len(found.problems)} of the tasks of MMEB-V2 in {root} cannot be evaluated:\n{shown}\n"
        "Mend that (python -m experiments.check_data lists all of it), choose other tasks with --tasks, or evaluate what is there with "
        "--skip-missing: means are then called incomplete."
    )
