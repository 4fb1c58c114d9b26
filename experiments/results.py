"""Evaluates a model on tasks and leaves the table in the run's folder, on the terminal and in MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from matplotlib.figure import Figure

from experiments.build import build_decoding
from experiments.display import has_room, progress, report_table, show
from experiments.runs import write_atomically
from experiments.tracking import TrackingLogger
from twn_lightning.configs.run import RunConfig
from twn_lightning.evaluation.encode import KnownItems
from twn_lightning.evaluation.evaluate import Mode, TaskResult, ThinkSides, evaluate_task
from twn_lightning.evaluation.figures import task_bars
from twn_lightning.evaluation.report import Report, task_labels, write_prediction_files
from twn_lightning.evaluation.task import RetrievalTask
from twn_lightning.models.dual_lora import DualLoRAModel


def evaluate_tasks(
    config: RunConfig,
    model: DualLoRAModel,
    tasks: Sequence[RetrievalTask],
    *,
    threshold: float | None = None,
    think_sides: ThinkSides | None = None,
) -> list[TaskResult]:
    """Every think mode on each task, with a progress bar over tasks.

    Args:
        config: The run's settings.
        model: The trained model.
        tasks: What to evaluate on.
        threshold: Replaces the gate's own.
        think_sides: Replaces the settings' own.
    """
    results = []
    known: KnownItems = {}
    with progress("evaluating tasks", shown=config.trainer.progress_bar) as advance:
        for number, task in enumerate(tasks):
            results.append(
                evaluate_task(
                    model,
                    task,
                    modes=cast("tuple[Mode, ...]", config.evaluation.modes),
                    think_sides=think_sides or config.evaluation.think_sides,
                    threshold=threshold,
                    batch_size=config.evaluation.batch_size,
                    decoding=build_decoding(config.decoding),
                    known=known,
                )
            )
            advance(number + 1, len(tasks))
    return results


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
    """The report's numbers under metric names: ``test/DigitSum/auto``, ``test/DigitSum/think_rate``, ``test/DigitSum/tokens_always``, …"""
    numbers: dict[str, float] = {}
    for row in [*report.rows, *(group.row for group in report.groups())]:
        name = f"{prefix}/{row.name}"
        numbers.update({f"{name}/{mode}": score for mode, score in row.scores.items()})
        numbers.update({f"{name}/tokens_{mode}": tokens for mode, tokens in row.tokens_per_query.items()})
        numbers[f"{name}/think_rate"] = row.think_rate.get("auto", 0.0)
        numbers[f"{name}/ties"] = row.tie_rate
        numbers[f"{name}/seconds"] = row.seconds
    return numbers


def save_report(report: Report, tasks: Sequence[RetrievalTask], results: Sequence[TaskResult], folder: Path, figures: Mapping[str, Figure]) -> None:
    """Write ``report.json``, ``report.md``, ``figures/`` and ``predictions/`` into a folder."""
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    for name, figure in {"scores.png": task_bars(report), **figures}.items():
        figure.savefig(folder / "figures" / name, dpi=120)
    for task, result in zip(tasks, results, strict=True):
        mode = "auto" if "auto" in result.modes else next(iter(result.modes))
        labels = [query.labels for query in task.queries]
        write_prediction_files(folder / "predictions", result, labels, mode=mode, keys=[query.key for query in task.queries])
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
