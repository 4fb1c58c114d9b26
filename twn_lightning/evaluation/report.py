"""The table a reader wants: per task and group, each think mode's score and what the thinking cost."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeAlias

from twn_lightning.errors import DataError
from twn_lightning.evaluation.evaluate import MODES, TaskResult

JsonValue: TypeAlias = "str | int | float | bool | Sequence[JsonValue] | Mapping[str, JsonValue] | None"


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
        num_queries: Of the task; the group's sum.
        scores: Mode → 0 to 100.
        think_rate: Mode → share of inputs that think, 0 to 1.
        tokens_per_query: Mode → reasoning tokens of queries and candidates divided by the number of queries.
        tie_rate: Largest of the modes, 0 to 1.
        seconds: Of encoding.
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


@dataclass(frozen=True)
class GroupRow:
    """A mean over tasks.

    Attributes:
        row: The plain mean of each figure.
        num_tasks: How many tasks there are.
        num_expected: How many there should be.
    """

    row: ReportRow
    num_tasks: int
    num_expected: int

    @property
    def label(self) -> str:
        """The group's name; a mean that lacks tasks says so."""
        if self.num_tasks < self.num_expected:
            return f"{self.row.name}, incomplete ({self.num_tasks} of {self.num_expected})"
        return f"{self.row.name} (mean of {self.num_tasks})"


@dataclass(frozen=True)
class Report:
    """Figures of a suite of tasks.

    Attributes:
        rows: One for each task.
        expected: The tasks the suite consists of; a mean that lacks one is labelled.
        provenance: Whatever made the figures (bundle, data revision, split, decoding), as names and values.
    """

    rows: tuple[ReportRow, ...]
    expected: tuple[TaskLabel, ...]
    provenance: dict[str, str] = field(default_factory=dict)

    @classmethod
    def from_results(
        cls, results: Sequence[TaskResult], *, expected: Sequence[TaskLabel] | None = None, provenance: Mapping[str, str] | None = None
    ) -> Report:
        """A report of evaluated tasks.

        Args:
            results: One for each task.
            expected: The whole suite; what was evaluated, if None.
            provenance: See the class.

        Raises:
            DataError: Two results are of the same task.
        """
        rows = tuple(_row(result) for result in results)
        labels = tuple(TaskLabel(row.name, row.kind, row.modality, row.subgroup) for row in rows)
        if len({row.name for row in rows}) != len(rows):
            raise DataError("Two results are of the same task; a mean would count it twice.")
        return cls(rows=rows, expected=tuple(expected) if expected is not None else labels, provenance=dict(provenance or {}))

    def groups(self) -> list[GroupRow]:
        """Means by kind, by subgroup, by modality and over all tasks; a group none of whose tasks is there is left out."""
        keys: list[tuple[str, Callable[[TaskLabel | ReportRow], str]]] = [
            ("kind", lambda task: task.kind),
            ("subgroup", lambda task: task.subgroup),
            ("modality", lambda task: task.modality),
            ("all", lambda _: "all"),
        ]
        groups = []
        for _, key in keys:
            names = dict.fromkeys(key(label) for label in self.expected if key(label))
            for name in names:
                members = [row for row in self.rows if key(row) == name]
                if members:
                    expected = sum(key(label) == name for label in self.expected)
                    groups.append(GroupRow(row=_mean_row(name, members), num_tasks=len(members), num_expected=max(expected, len(members))))
        return groups

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
        head = "| {} | kind | metric | never | always | auto | oracle | think rate | tokens/query | ties % |"
        rule = "|---|---|---|---:|---:|---:|---:|---:|---:|---:|"
        lines = [head.format("task"), rule, *(_line(row, row.name) for row in self.rows)]
        groups = self.groups()
        if groups:
            lines += ["", head.format("group"), rule, *(_line(group.row, group.label) for group in groups)]
        missing = [label.name for label in self.expected if label.name not in {row.name for row in self.rows}]
        if missing:
            lines += ["", f"Missing: {', '.join(missing)}."]
        lines += ["", "Scores 0 to 100, ties against us. Think rate: auto. Tokens/query: reasoning tokens of both sides under auto (under always)."]
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
            )
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"This is not a report written by evaluation ({error}): evaluate again to get one.") from error


def task_labels(tasks: Iterable[object]) -> tuple[TaskLabel, ...]:
    """Labels of anything that has a name, kind, modality and subgroup, such as a `RetrievalTask`."""
    return tuple(TaskLabel(*(str(getattr(task, name)) for name in ("name", "kind", "modality", "subgroup"))) for task in tasks)


def _row(result: TaskResult) -> ReportRow:
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
    )


def _mean_dict(figures: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Means of the modes that every task has: a mean over some of the tasks would not be comparable."""
    return {mode: math.fsum(each[mode] for each in figures) / len(figures) for mode in MODES if all(mode in each for each in figures)}


def _line(row: ReportRow, label: str) -> str:
    scores = [f"{row.scores[mode]:.1f}" if mode in row.scores else "–" for mode in MODES]
    think_rate = f"{row.think_rate['auto']:.2f}" if "auto" in row.think_rate else "–"
    tokens = [f"{row.tokens_per_query[mode]:.1f}" if mode in row.tokens_per_query else "–" for mode in ("auto", "always")]
    cells = [label, row.kind, row.metric, *scores, think_rate, f"{tokens[0]} ({tokens[1]})", f"{100 * row.tie_rate:.1f}"]
    return "| " + " | ".join(cells) + " |"


def write_prediction_files(
    folder: Path, result: TaskResult, labels: Sequence[Mapping[str, float]], *, mode: str, keys: Sequence[str] = ()
) -> tuple[Path, Path]:
    """``<task>_pred.jsonl`` and ``<task>_score.json`` in the form that VLM2Vec's scorer reads and writes.

    Args:
        folder: Made if it is not there.
        result: Of one task.
        labels: Of each query, in order: candidate key → grade.
        mode: Whose ranking to write.
        keys: Of each query, in order; written beside the ranking if given.

    Returns:
        The two files.

    Raises:
        DataError: The mode was not evaluated, the labels are not of this task, or the folder cannot be written.
    """
    chosen = next((figures for name, figures in result.modes.items() if name == mode), None)
    if chosen is None or len(labels) != len(chosen.top):
        raise DataError(f"Task {result.name} has no ranking of {len(labels)} queries in mode {mode}; it was evaluated in {', '.join(result.modes)}.")
    lines = []
    for number, (prediction, grades) in enumerate(zip(chosen.top, labels, strict=True)):
        line: dict[str, JsonValue] = {"prediction": list(prediction), "label": list(grades), "rel_scores": list(grades.values())}
        if keys:
            line["query"] = keys[number]
        lines.append(json.dumps(line, ensure_ascii=False))
    score = {
        **chosen.metrics,
        result.metric.replace("ndcg", "ndcg_linear"): chosen.score / 100.0,
        "mode": mode,
        "tie_rate": chosen.tie_rate,
        "num_pred": len(chosen.top),
        "num_data": result.num_queries,
    }
    predictions, scores = folder / f"{result.name}_pred.jsonl", folder / f"{result.name}_score.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        predictions.write_text("\n".join(lines) + "\n", encoding="utf-8")
        scores.write_text(json.dumps(score, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error.strerror}): choose another folder.") from error
    return predictions, scores
