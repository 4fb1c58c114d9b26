"""Every think mode on each task of a suite, and what of it cannot be opened."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import cast

from experiments.build import build_decoding
from experiments.display import ProgressLines, progress
from experiments.evaluate_suite import Suite
from experiments.results import save_predictions
from twn_lightning.configs.run import RunConfig
from twn_lightning.distributed import barrier, rank
from twn_lightning.errors import DataError
from twn_lightning.evaluation.encode import AUTOCAST, KnownItems, ProgressCallback
from twn_lightning.evaluation.evaluate import Mode, TaskResult, ThinkSides, evaluate_task
from twn_lightning.evaluation.report_files import remove_prediction_files
from twn_lightning.evaluation.store import VectorStore
from twn_lightning.evaluation.unreadable import NothingReadableError
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.thought_writers import ThoughtWriter

log = logging.getLogger(__name__)


def evaluate_tasks(  # noqa: PLR0913 -- all but three by keyword
    config: RunConfig,
    model: DualLoRAModel,
    suite: Suite,
    *,
    predictions: Path,
    threshold: float | None,
    think_sides: ThinkSides,
    store: VectorStore | None,
    writer: ThoughtWriter,
    skip_unreadable: bool,
) -> tuple[list[TaskResult], dict[str, str]]:
    """Evaluate a suite, with a progress bar over tasks; all ranks share the encoding.

    Each task is asked for once, and of its result only figures are kept.

    Args:
        config: The run's settings.
        model: The trained model.
        suite: What to evaluate on.
        predictions: Folder that gets each task's ranking and score files as soon as it is done, in place of those of an earlier evaluation.
        threshold: Replaces the gate's own.
        think_sides: Which sides may think.
        store: Vectors on disk, which are not encoded again.
        writer: Of the thoughts.
        skip_unreadable: A query or candidate that cannot be opened counts as `Unreadable` says; a task without a readable query is left out.

    Returns:
        A result for each task, and what was unreadable, as names and values for the report.

    Raises:
        DataError: An input cannot be opened, and is not to be skipped.
    """
    _make_room(predictions)
    results, faults = [], {}
    shown = config.trainer.progress_bar and rank() == 0
    known: KnownItems | None = {} if suite.shares_candidates else None
    with progress("evaluating tasks", shown=shown) as advance:
        for number, name in enumerate(suite.names):
            task = suite.tasks[number]
            try:
                result = evaluate_task(
                    model,
                    task,
                    modes=cast("tuple[Mode, ...]", config.evaluation.modes),
                    think_sides=think_sides,
                    threshold=threshold,
                    batch_size=config.evaluation.batch_size,
                    max_batch_tokens=config.evaluation.max_batch_tokens,
                    decoding=build_decoding(config.decoding),
                    known=known,
                    store=store,
                    over_ranks=True,
                    autocast=AUTOCAST[config.trainer.precision],
                    writer=writer,
                    skip_unreadable=skip_unreadable,
                    progress=_lines_of(name) if shown else None,
                )
            except NothingReadableError as error:
                faults[f"missing {name}"] = str(error)
                log.warning("%s", error)
                continue
            except DataError as error:
                way_out = "" if skip_unreadable else " With --skip-missing, what cannot be opened counts as not found."
                raise DataError(f"Task {name}: {error}{way_out}") from error
            faults |= _said(result)
            if rank() == 0:
                save_predictions(task, result, predictions)
            modes = {mode: dataclasses.replace(figures, top=()) for mode, figures in result.modes.items()}
            results.append(dataclasses.replace(result, modes=modes))
            advance(number + 1, len(suite.names))
    if not results:
        raise DataError("None of the tasks could be evaluated: their queries cannot be opened. Mend the files (python -m experiments.check_data).")
    return results, faults


def _make_room(predictions: Path) -> None:
    """Remove the predictions of an earlier evaluation, and say so."""
    if rank() == 0 and (count := remove_prediction_files(predictions)):
        log.info("removed %d files of an earlier evaluation from %s", count, predictions)
    barrier()


def _said(result: TaskResult) -> dict[str, str]:
    """What of a task was unreadable, for the report; all of it goes to the log."""
    if not result.unreadable:
        return {}
    for side, found in (("query", result.unreadable.queries), ("candidate", result.unreadable.candidates)):
        for key, why in found.items():
            log.warning("%s, %s %s: %s", result.name, side, key, why)
    first = next(iter((result.unreadable.queries or result.unreadable.candidates).values()))
    return {f"unreadable in {result.name}": f"{result.unreadable}, the first: {first}"}


def _lines_of(name: str) -> ProgressCallback:
    """A line now and then while a task is encoded, none at its end: the bar over tasks says that."""
    lines = ProgressLines(name)

    def advance(done: int, total: int) -> None:
        if done < total:
            lines.advance(done, total)

    return advance
