"""MMEB-V2 as the framework reads it: tasks to evaluate, and a check of all files before a model is loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datamodules.mmeb.files import Reading, read_task
from datamodules.mmeb.instructions import check_instructions
from datamodules.mmeb.profiles import PROFILES, Profile
from datamodules.mmeb.reading import Problem
from datamodules.mmeb.table import TaskRow
from twn_lightning.errors import DataError
from twn_lightning.evaluation.task import RetrievalTask

_log = logging.getLogger(__name__)

_PROBLEMS_SHOWN = 5
_PROBLEMS_LISTED = 20


def open_task(
    root: Path, row: TaskRow, *, profile: Profile, max_queries: int | None = None, instructions: Mapping[str, str] | None = None
) -> RetrievalTask:
    """A task with its queries and candidates. Media are found but not opened; a page is decoded when its item is asked for.

    Args:
        root: Folder of all data sets and media.
        row: The task.
        profile: How it is shown.
        max_queries: Evenly chosen from the task's queries, if it has more; a global corpus stays whole, so that hits are as hard as ever.
        instructions: Wording in place of that of the files or of the table: by task name for queries, by ``task/candidate`` for candidates, and for
            MomentSeeker's queries with a picture or a clip by ``MomentSeeker/image`` and ``MomentSeeker/video``.

    Raises:
        ConfigError: ``instructions`` names something that no task has.
        DataError: A file or a medium is missing, or a row is faulty; names the first ones and the command that lists all.
    """
    check_instructions(instructions or {})
    reading = read_task(Path(root), row, profile=profile, instructions=instructions or {}, max_queries=max_queries, with_digest=False)
    if reading.problems:
        first = "\n".join(f"  {problem}" for problem in reading.problems[:_PROBLEMS_SHOWN])
        more = len(reading.problems) - _PROBLEMS_SHOWN
        rest = f"\n  … and {more} more" if more > 0 else ""
        raise DataError(
            f"Task {row.name} has {len(reading.problems)} faults in its files:\n{first}{rest}\n"
            "`python -m experiments.check_data` lists those of all tasks; mend them, or leave the task out."
        )
    for what, count in reading.counts.items():
        _log.info("%s: %d %s.", row.name, count, what)
    return RetrievalTask(
        name=row.name,
        modality=row.modality,
        subgroup=row.subgroup,
        metric=row.metric,
        scope=row.scope,
        queries=reading.queries,
        candidates=reading.candidates,
    )


@dataclass(frozen=True)
class TaskCounts:
    """Sizes of a task.

    Attributes:
        num_queries: Usable rows.
        num_candidates: Candidates of all rows together, each once.
        num_published: Rows of the published file.
    """

    num_queries: int
    num_candidates: int
    num_published: int


@dataclass(frozen=True)
class PageVersion:
    """Which files of a task that was corrected are there.

    The digests of the published files are not known here, so the name of the data set decides; the digest of what was read stands beside it, by which
    two reports can be told to have used the same files.

    Attributes:
        repo: The data set that is read.
        version: ``corrected`` or ``former``.
        digest: Of its rows and the sizes of its pages.
    """

    repo: str
    version: str
    digest: str


@dataclass(frozen=True)
class SuiteCheck:
    """What a check of the files found.

    Attributes:
        problems: What has to be mended, by task in the table's order.
        notes: Task → what was noticed and is no fault.
        counts: Task → sizes.
        page_versions: Task → version of its files, for the two tasks whose files were corrected.
        revision: Task → digest of what it is made from; tasks whose tables cannot be read have none.
    """

    problems: tuple[Problem, ...]
    notes: Mapping[str, tuple[str, ...]]
    counts: Mapping[str, TaskCounts]
    page_versions: Mapping[str, PageVersion]
    revision: Mapping[str, str]

    @property
    def is_complete(self) -> bool:
        """Whether nothing has to be mended."""
        return not self.problems

    def markdown(self) -> str:
        """A table of all tasks, and below it the problems and the notes; of each task at most 20 problems."""
        found = {name: [problem for problem in self.problems if problem.task == name] for name in self.counts}
        num_whole = sum(1 for problems in found.values() if not problems)
        lines = [f"{num_whole} of {len(self.counts)} tasks are complete; {len(self.problems)} problems.", ""]
        lines += ["| task | queries | of | candidates | problems | revision |", "|---|--:|--:|--:|--:|---|"]
        for name, counts in self.counts.items():
            sizes = f"{counts.num_queries:,} | {counts.num_published:,} | {counts.num_candidates:,}"
            lines.append(f"| {name} | {sizes} | {len(found[name])} | {self.revision.get(name, '–')[:12]} |")
        for name, version in self.page_versions.items():
            lines += ["", f"{name}: the {version.version} files ({version.repo}, {version.digest[:12]})."]
        for name, problems in found.items():
            if problems:
                more = len(problems) - _PROBLEMS_LISTED
                rest = [f"* … and {more} more"] if more > 0 else []
                lines += ["", f"**{name}**", "", *(f"* {problem}" for problem in problems[:_PROBLEMS_LISTED]), *rest]
        noted = [f"* {name}: {note}." for name, notes in self.notes.items() for note in notes]
        return "\n".join([*lines, *(["", "Notes:", "", *noted] if noted else [])]) + "\n"


def check_suite(root: Path, rows: Sequence[TaskRow], *, open_media: bool, progress: Callable[[int, int], None] | None = None) -> SuiteCheck:
    """Reads the files of tasks without a model and lists what is wrong with them.

    Missing folders, configurations, splits and columns, empty tables, rows without a label, missing media (each once, with the first row that names
    it), and with ``open_media`` those that cannot be read.

    Args:
        root: Folder of all data sets and media.
        rows: The tasks.
        open_media: Whether every picture's header and every clip's first frame is read.
        progress: Called with how many tasks are done and how many there are.
    """
    problems: list[Problem] = []
    notes: dict[str, tuple[str, ...]] = {}
    counts: dict[str, TaskCounts] = {}
    versions: dict[str, PageVersion] = {}
    revision: dict[str, str] = {}
    for done, row in enumerate(rows, start=1):
        reading = _read_whole(Path(root), row)
        if open_media:
            reading.check_media()
        problems += reading.problems
        counts[row.name] = TaskCounts(len(reading.queries), len(reading.candidates), row.num_queries)
        if reading.num_rows:
            revision[row.name] = reading.digest(Path(root))
        if row.former_repo and reading.num_rows:
            versions[row.name] = PageVersion(reading.repo, "corrected" if reading.repo == row.repo else "former", revision[row.name])
        notes[row.name] = _notes(reading)
        if progress is not None:
            progress(done, len(rows))
    return SuiteCheck(
        problems=tuple(problems),
        notes={name: found for name, found in notes.items() if found},
        counts=counts,
        page_versions=versions,
        revision=revision,
    )


def data_revision(root: Path, rows: Sequence[TaskRow]) -> dict[str, str]:
    """Task → digest of what it is made from: its rows, and names and sizes of its media. Instructions and profiles do not count.

    Raises:
        DataError: The tables of a task cannot be read.
    """
    found: dict[str, str] = {}
    for row in rows:
        reading = _read_whole(Path(root), row)
        if not reading.num_rows:
            raise DataError(f"Task {row.name} cannot be read: {reading.problems[0]}")
        found[row.name] = reading.digest(Path(root))
    return found


def _read_whole(root: Path, row: TaskRow) -> Reading:
    return read_task(root, row, profile=PROFILES["trained"], instructions={}, max_queries=None, with_digest=True)


def _notes(reading: Reading) -> tuple[str, ...]:
    task = reading.task
    notes = [f"{count:,} {what}" for what, count in reading.counts.items()]
    if reading.num_rows and reading.num_rows != task.num_queries:
        notes.append(f"{reading.num_rows:,} rows, where the published file has {task.num_queries:,}")
    if reading.repo != task.repo:
        notes.append(f"the files are those before the correction ({reading.repo}): download {task.repo} to compare with scores on the corrected ones")
    return tuple(notes)
