"""Evaluates a model on tasks and leaves the table in the run's folder, on the terminal and in MLflow."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from matplotlib.figure import Figure

from experiments.build import build_decoding
from experiments.display import ProgressLines, has_room, progress, report_table, show
from experiments.runs import write_atomically
from experiments.tracking import TrackingLogger
from twn_lightning.configs.run import RunConfig
from twn_lightning.distributed import rank
from twn_lightning.evaluation.encode import KnownItems, ProgressCallback
from twn_lightning.evaluation.evaluate import Mode, TaskResult, ThinkSides, evaluate_task
from twn_lightning.evaluation.figures import task_bars
from twn_lightning.evaluation.report import Report, task_labels
from twn_lightning.evaluation.report_files import write_prediction_files
from twn_lightning.evaluation.store import VectorStore
from twn_lightning.evaluation.task import RetrievalTask
from twn_lightning.models.dual_lora import DualLoRAModel


def evaluate_tasks(
    config: RunConfig,
    model: DualLoRAModel,
    tasks: Sequence[RetrievalTask],
    *,
    predictions: Path,
    threshold: float | None = None,
    think_sides: ThinkSides | None = None,
    store: VectorStore | None = None,
    shares_candidates: bool = False,
) -> list[TaskResult]:
    """Every think mode on each task, with a progress bar over tasks; all ranks share the encoding.

    Each task is asked for once, and of its result only figures are kept.

    Args:
        config: The run's settings.
        model: The trained model.
        tasks: What to evaluate on.
        predictions: Folder that gets each task's ranking and score files as soon as it is done.
        threshold: Replaces the gate's own.
        think_sides: Replaces the settings' own.
        store: Vectors on disk, which are not encoded again.
        shares_candidates: Keeps what was encoded, for later tasks with the same candidates.
    """
    results = []
    known: KnownItems | None = {} if shares_candidates else None
    with progress("evaluating tasks", shown=config.trainer.progress_bar and rank() == 0) as advance:
        for number in range(len(tasks)):
            task = tasks[number]
            result = evaluate_task(
                model,
                task,
                modes=cast("tuple[Mode, ...]", config.evaluation.modes),
                think_sides=think_sides or config.evaluation.think_sides,
                threshold=threshold,
                batch_size=config.evaluation.batch_size,
                max_batch_tokens=config.evaluation.max_batch_tokens,
                decoding=build_decoding(config.decoding),
                known=known,
                store=store,
                over_ranks=True,
                progress=_lines_of(task.name) if config.trainer.progress_bar and rank() == 0 else None,
            )
            if rank() == 0:
                save_predictions(task, result, predictions)
            modes = {mode: dataclasses.replace(figures, top=()) for mode, figures in result.modes.items()}
            results.append(dataclasses.replace(result, modes=modes))
            advance(number + 1, len(tasks))
    return results


def _lines_of(name: str) -> ProgressCallback:
    """A line now and then while a task is encoded, none at its end: the bar over tasks says that."""
    lines = ProgressLines(name)

    def advance(done: int, total: int) -> None:
        if done < total:
            lines.advance(done, total)

    return advance


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

    A mean that lacks tasks stands under ``test/incomplete/``.
    """
    numbers: dict[str, float] = {}
    named = [(row.name, row) for row in report.rows]
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
    """Write ``report.json``, ``report.md``, ``figures/`` and ``predictions/`` into a folder."""
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
