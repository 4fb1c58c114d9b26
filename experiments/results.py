"""Evaluates a model on tasks and leaves the table in the run's folder, on the terminal and in MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from experiments.display import has_room, report_table, show
from experiments.runs import write_atomically
from experiments.tracking import TrackingLogger
from twn_lightning.evaluation.evaluate import TaskResult
from twn_lightning.evaluation.figures import task_bars
from twn_lightning.evaluation.report import Report, task_labels
from twn_lightning.evaluation.report_files import remove_prediction_files, write_prediction_files
from twn_lightning.evaluation.task import RetrievalTask


def budget_line(results: Sequence[TaskResult], *, budget: float) -> str:
    """What was asked for and what the gate spent, in reasoning tokens a query, the candidates' included; mean over tasks.

    Args:
        results: With the modes auto and, to say how dear always thinking is, always.
        budget: As it was asked for.
    """
    spent = {
        mode: sum(result.modes[mode].reasoning_tokens / result.num_queries for result in results) / len(results)
        for mode in ("auto", "always")
        if all(mode in result.modes for result in results)
    }
    parts = [f"budget: {budget:g} reasoning tokens a query asked for"]
    if "auto" in spent:
        parts.append(f"{spent['auto']:.1f} spent at threshold {results[0].threshold:.4f}")
    if "always" in spent:
        parts.append(f"always thinking costs {spent['always']:.1f}")
    return ", ".join(parts)


def make_report(tasks: Sequence[RetrievalTask], results: Sequence[TaskResult], provenance: Mapping[str, str]) -> Report:
    """The report of a whole suite."""
    return Report.from_results(results, expected=task_labels(tasks), provenance=provenance)


def report_metrics(report: Report, prefix: str = "test") -> dict[str, float]:
    """The report's numbers under metric names: ``test/DigitSum/auto``, ``test/DigitSum/think_rate``, ``test/DigitSum/tokens_always``, …

    A mean that lacks tasks stands under ``test/incomplete/``, and so does a task of which something could not be opened.
    """
    numbers: dict[str, float] = {}
    named = [(row.name if row.is_whole else f"incomplete/{row.name}", row) for row in report.rows]
    named += [(group.row.name if group.is_complete else f"incomplete/{group.row.name}", group.row) for group in report.groups()]
    for given, row in named:
        name = f"{prefix}/{given}"
        numbers.update({f"{name}/{mode}": score for mode, score in row.scores.items()})
        numbers.update({f"{name}/tokens_{mode}": tokens for mode, tokens in row.tokens_per_query.items()})
        if "auto" in row.think_rate:
            numbers[f"{name}/think_rate"] = row.think_rate["auto"]
        numbers[f"{name}/ties"] = row.tie_rate
        numbers[f"{name}/seconds"] = row.seconds
    return numbers


def save_report(report: Report, tasks: Sequence[RetrievalTask], results: Sequence[TaskResult], folder: Path, figures: Mapping[str, Figure]) -> None:
    """Write ``report.json``, ``report.md``, ``figures/`` and ``predictions/``, in place of those of an earlier evaluation, into a folder."""
    remove_prediction_files(folder / "predictions")
    for task, result in zip(tasks, results, strict=True):
        save_predictions(task, result, folder / "predictions")
    write_report(report, folder, figures)


def save_predictions(task: RetrievalTask, result: TaskResult, folder: Path) -> None:
    """Write a task's ranking and score files: of the gate's own mode, or of the first one there is."""
    mode = "auto" if "auto" in result.modes else next(iter(result.modes))
    labels = [query.labels for query in task.queries]
    write_prediction_files(folder, result, labels, mode=mode, keys=[query.key for query in task.queries])


def write_report(report: Report, folder: Path, figures: Mapping[str, Figure]) -> None:
    """Write ``report.json``, ``report.md`` and ``figures/`` into a folder."""
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for name, figure in {"scores.png": task_bars(report), **figures}.items():
        figure.savefig(folder / "figures" / name, dpi=120)
    write_atomically(folder / "report.md", report.markdown())
    write_atomically(folder / "report.json", report.to_json())


def log_report(report: Report, folder: Path, logger: TrackingLogger, parent: TrackingLogger | None = None) -> None:
    """Record numbers and files in MLflow; the parent run gets the groups' numbers too."""
    numbers = report_metrics(report)
    logger.log_metrics(numbers)
    for name in ("report.json", "report.md", "figures", "predictions"):
        logger.log_artifact(folder / name)
    if parent is not None:
        parent.log_metrics(numbers)
        parent.log_artifact(folder / "report.md")
        parent.log_artifact(folder / "figures")


def show_report(report: Report, title: str) -> None:
    """Print the table."""
    show(report_table(report, title, wide=has_room()))
