"""The table a reader wants: per task and group, each think mode's score and what the thinking cost."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from twn_lightning.errors import DataError
from twn_lightning.evaluation.evaluate import MODES, TaskResult
from twn_lightning.evaluation.unreadable import unreadable_words

_COLUMNS = ("kind", "metric", "queries", "candidates", *MODES, "think rate", "tokens/query", "ties %", "seconds")


@dataclass(frozen=True)
class TaskLabel:
    """A task that a report should hold, and the groups it counts in."""

    name: str
    kind: str
    modality: str
    subgroup: str


@dataclass(frozen=True)
class ReportRow:
    """One task's figures, or a group's means of them.

    Attributes:
        name: Of the task or group.
        kind: ``composing``, ``plain`` or empty; empty for groups.
        modality: Empty for groups.
        subgroup: Empty for groups.
        metric: Headline metric; for a group that of its tasks, ``mixed`` if they differ.
        num_queries: Of the task, unreadable ones too; the group's sum, like the next three.
        num_candidates: Each once; 0 in reports of earlier versions.
        num_unreadable_queries: Those that could not be opened, and count 0 points.
        num_unreadable_candidates: Those that could not be opened, and are found by nobody.
        scores: Mode → 0 to 100.
        think_rate: Mode → share of inputs that think, 0 to 1.
        tokens_per_query: Mode → reasoning tokens of queries and candidates divided by the number of queries.
        tie_rate: Largest of the modes, 0 to 1.
        seconds: Of encoding.
        revision: Digest of the data the figures are from, where there is one; of a group, of its tasks' ones together.
    """

    name: str
    kind: str
    modality: str
    subgroup: str
    metric: str
    num_queries: int
    scores: dict[str, float]
    think_rate: dict[str, float]
    tokens_per_query: dict[str, float]
    tie_rate: float
    seconds: float
    revision: str = ""
    num_candidates: int = 0
    num_unreadable_queries: int = 0
    num_unreadable_candidates: int = 0

    @property
    def label(self) -> str:
        """The name; a task of which something could not be opened says so."""
        if self.is_whole:
            return self.name
        return f"{self.name}, incomplete ({unreadable_words(self.num_unreadable_queries, self.num_unreadable_candidates)})"

    @property
    def is_whole(self) -> bool:
        """Whether every query and every candidate could be opened."""
        return not (self.num_unreadable_queries or self.num_unreadable_candidates)


@dataclass(frozen=True)
class GroupRow:
    """A mean over tasks.

    Attributes:
        row: The plain mean of each figure.
        num_tasks: How many tasks there are.
        num_expected: How many there should be.
        num_partial: How many of those that are there hold something unreadable.
    """

    row: ReportRow
    num_tasks: int
    num_expected: int
    num_partial: int = 0

    @property
    def label(self) -> str:
        """The group's name; a mean that lacks tasks says so."""
        if not self.is_complete:
            partly = f", {self.num_partial} in part" if self.num_partial else ""
            return f"{self.row.name}, incomplete ({self.num_tasks - self.num_partial} of {self.num_expected}{partly})"
        return f"{self.row.name} (mean of {self.num_tasks})"

    @property
    def is_complete(self) -> bool:
        """Whether every task it is the mean of is there, with all its queries and candidates."""
        return self.num_tasks >= self.num_expected and not self.num_partial


@dataclass(frozen=True)
class Report:
    """Figures of a suite of tasks.

    Attributes:
        rows: One for each task.
        expected: The tasks the suite consists of; a mean that lacks one is labelled.
        provenance: Whatever made the figures (bundle, data revision, split, decoding), as names and values.
        wholes: Name → the tasks of a mean over the suite, such as ``All-78``; none given: ``all``, over every task.
    """

    rows: tuple[ReportRow, ...]
    expected: tuple[TaskLabel, ...]
    provenance: dict[str, str] = field(default_factory=dict)
    wholes: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def from_results(
        cls,
        results: Sequence[TaskResult],
        *,
        expected: Sequence[TaskLabel] | None = None,
        provenance: Mapping[str, str] | None = None,
        wholes: Mapping[str, Sequence[str]] | None = None,
        revisions: Mapping[str, str] | None = None,
    ) -> Report:
        """A report of evaluated tasks.

        Args:
            results: One for each task.
            expected: The whole suite; what was evaluated, if None.
            provenance: See the class.
            wholes: See the class.
            revisions: Task → digest of its data.

        Raises:
            DataError: Two results are of the same task.
        """
        rows = tuple(_row(result, (revisions or {}).get(result.name, "")) for result in results)
        labels = tuple(TaskLabel(row.name, row.kind, row.modality, row.subgroup) for row in rows)
        if len({row.name for row in rows}) != len(rows):
            raise DataError("Two results are of the same task; a mean would count it twice.")
        return cls(
            rows=rows,
            expected=tuple(expected) if expected is not None else labels,
            provenance=dict(provenance or {}),
            wholes={name: tuple(members) for name, members in (wholes or {}).items()},
        )

    def groups(self) -> list[GroupRow]:
        """Means by kind, by subgroup, by modality and over all tasks; a group none of whose tasks is there is left out."""
        labels = self._labels()
        members: list[tuple[str, list[str]]] = []
        keys: list[Callable[[TaskLabel], str]] = [lambda task: task.kind, lambda task: task.subgroup, lambda task: task.modality]
        for key in keys:
            names = dict.fromkeys(key(label) for label in labels if key(label))
            members += [(name, [label.name for label in labels if key(label) == name]) for name in names]
        members += [(name, list(tasks)) for name, tasks in self.wholes.items()] or [("all", [label.name for label in labels])]
        groups = []
        for name, tasks in members:
            rows = [row for row in self.rows if row.name in set(tasks)]
            if rows:
                num_partial = sum(1 for row in rows if not row.is_whole)
                groups.append(GroupRow(row=_mean_row(name, rows), num_tasks=len(rows), num_expected=len(tasks), num_partial=num_partial))
        return groups

    def _labels(self) -> list[TaskLabel]:
        """Every task that is expected, and every other one that is there."""
        expected = {label.name for label in self.expected}
        return [*self.expected, *(TaskLabel(row.name, row.kind, row.modality, row.subgroup) for row in self.rows if row.name not in expected)]

    def group(self, name: str) -> GroupRow:
        """The group of that name, such as ``composing`` or ``all``.

        Raises:
            DataError: There is none.
        """
        for group in self.groups():
            if group.row.name == name:
                return group
        raise DataError(f'The report has no group "{name}"; it has {", ".join(group.row.name for group in self.groups())}.')

    def markdown(self) -> str:
        """A table of tasks, then one of groups; tokens per query are those of auto, and in brackets of always."""
        has_revisions = any(row.revision for row in self.rows)
        columns = [*(f" {name} |" for name in _COLUMNS), *([" data |"] if has_revisions else [])]
        head = "| {} |" + "".join(columns)
        rule = "|---|---|---|" + "---:|" * (len(_COLUMNS) - 2) + "---|" * has_revisions
        lines = [head.format("task"), rule, *(_line(row, row.label, has_revisions) for row in self.rows)]
        groups = self.groups()
        if groups:
            lines += ["", head.format("group"), rule, *(_line(group.row, group.label, has_revisions) for group in groups)]
        missing = [label.name for label in self.expected if label.name not in {row.name for row in self.rows}]
        if missing:
            lines += ["", f"Missing: {', '.join(missing)}."]
        lines += ["", "Scores 0 to 100, ties against us. Think rate: auto. Tokens/query: reasoning tokens of both sides under auto (under always)."]
        if not all(row.is_whole for row in self.rows):
            lines += ["Unreadable queries count 0 points, unreadable candidates are found by nobody; means that hold such a task are incomplete."]
        lines += ["Data: digest of what the figures are from."] if has_revisions else []
        lines += [f"* {name}: {value}" for name, value in self.provenance.items()]
        return "\n".join(lines) + "\n"

    def to_json(self) -> str:
        """Everything, so that `from_json` gives an equal report."""
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report that `to_json` wrote.

        Raises:
            DataError: The text is not such a report.
        """
        try:
            data = json.loads(text)
            return cls(
                rows=tuple(ReportRow(**row) for row in data["rows"]),
                expected=tuple(TaskLabel(**label) for label in data["expected"]),
                provenance=dict(data["provenance"]),
                wholes={name: tuple(members) for name, members in data.get("wholes", {}).items()},
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"This is not a report written by evaluation ({error}): evaluate again to get one.") from error


def task_labels(tasks: Iterable[object]) -> tuple[TaskLabel, ...]:
    """Labels of anything that has a name, kind, modality and subgroup, such as a `RetrievalTask`."""
    return tuple(TaskLabel(*(str(getattr(task, name)) for name in ("name", "kind", "modality", "subgroup"))) for task in tasks)


def _row(result: TaskResult, revision: str) -> ReportRow:
    return ReportRow(
        name=result.name,
        kind=result.kind,
        modality=result.modality,
        subgroup=result.subgroup,
        metric=result.metric,
        num_queries=result.num_queries,
        scores={mode: figures.score for mode, figures in result.modes.items()},
        think_rate={mode: result.think_rate(mode) for mode in result.modes},
        tokens_per_query={mode: figures.reasoning_tokens / result.num_queries for mode, figures in result.modes.items()},
        tie_rate=max(figures.tie_rate for figures in result.modes.values()),
        seconds=result.seconds,
        revision=revision,
        num_candidates=result.num_candidates,
        num_unreadable_queries=len(result.unreadable.queries),
        num_unreadable_candidates=len(result.unreadable.candidates),
    )


def _mean_row(name: str, rows: Sequence[ReportRow]) -> ReportRow:
    metrics = {row.metric for row in rows}
    return ReportRow(
        name=name,
        kind="",
        modality="",
        subgroup="",
        metric=metrics.pop() if len(metrics) == 1 else "mixed",
        num_queries=sum(row.num_queries for row in rows),
        scores=_mean_dict([row.scores for row in rows]),
        think_rate=_mean_dict([row.think_rate for row in rows]),
        tokens_per_query=_mean_dict([row.tokens_per_query for row in rows]),
        tie_rate=math.fsum(row.tie_rate for row in rows) / len(rows),
        seconds=math.fsum(row.seconds for row in rows),
        revision=_joined_revision(rows),
        num_candidates=sum(row.num_candidates for row in rows),
        num_unreadable_queries=sum(row.num_unreadable_queries for row in rows),
        num_unreadable_candidates=sum(row.num_unreadable_candidates for row in rows),
    )


def _joined_revision(rows: Sequence[ReportRow]) -> str:
    if not all(row.revision for row in rows):
        return ""
    parts = sorted(f"{row.name} {row.revision}" for row in rows)
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=4).hexdigest()


def _mean_dict(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means of the modes that every task has: a mean over some of the tasks would not be comparable."""
    return {mode: math.fsum(each[mode] for each in figures) / len(figures) for mode in MODES if all(mode in each for each in figures)}


def _line(row: ReportRow, label: str, has_revisions: bool) -> str:
    scores = [f"{row.scores[mode]:.1f}" if mode in row.scores else "–" for mode in MODES]
    think_rate = f"{row.think_rate['auto']:.2f}" if "auto" in row.think_rate else "–"
    tokens = [f"{row.tokens_per_query[mode]:.1f}" if mode in row.tokens_per_query else "–" for mode in ("auto", "always")]
    costs = [think_rate, f"{tokens[0]} ({tokens[1]})", f"{100 * row.tie_rate:.1f}", f"{row.seconds:.1f}"]
    sizes = [f"{row.num_queries:,}", f"{row.num_candidates:,}" if row.num_candidates else "–"]
    cells = [label, row.kind, row.metric, *sizes, *scores, *costs, *([row.revision[:8]] if has_revisions else [])]
    return "| " + " | ".join(cells) + " |"
