"""Retrieval scores of evaluation tasks, while a stage trains and at its end."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.sinks import StepClock, log_metrics, log_text
from twn_lightning.distributed import world_size
from twn_lightning.errors import ConfigError
from twn_lightning.evaluation.encode import KnownItems
from twn_lightning.evaluation.evaluate import Mode, ThinkSides, evaluate_task
from twn_lightning.evaluation.report import Report, ReportRow
from twn_lightning.evaluation.task import RetrievalTask
from twn_lightning.models.outputs import Decoding
from twn_lightning.stages.base import StageModule

log = logging.getLogger(__name__)


class MmebEval(Callback):
    """Evaluates tasks of the MMEB form and logs what a reader of the final table would look at.

    Logs "<prefix>/<task>/<mode>" (score, 0 to 100), "<prefix>/<task>/<mode>_think_rate" and "…_tokens_per_query" of the modes that may
    think, "<prefix>/<task>/tie_rate" and "…/seconds"; and "<prefix>/mean/<group>/<mode>" of the groups, of which "all" is the mean of all
    tasks. Ties count against the model, and NaN is an error. Several ranks share the encoding (with a sharded model each encodes everything, for
    which it needs the others); the model's mode and the step's random numbers stay as they were.

    Args:
        tasks: What is evaluated, most often small subsets for validation.
        modes: Any of never, always, auto and oracle; one encoding pass serves all.
        every_n_steps: Optimiser steps between two evaluations; 0 for the end only.
        at_end: Also evaluate when the stage ends.
        batch_size: Items encoded together, at most.
        max_batch_tokens: Prompt tokens encoded together, padding included, at most; None for no limit.
        decoding: How thoughts are written; greedy if None.
        think_sides: Which side may think.
        autocast: Type of the matrix products, as in the stage's steps; None: that of the weights.
        prefix: First part of the names.

    Raises:
        ConfigError: There is no task.
    """

    def __init__(  # noqa: PLR0913 -- all but the tasks by keyword, with a default
        self,
        tasks: Sequence[RetrievalTask],
        *,
        modes: Sequence[Mode] = ("never", "always"),
        every_n_steps: int = 0,
        at_end: bool = True,
        batch_size: int = 32,
        max_batch_tokens: int | None = None,
        decoding: Decoding | None = None,
        think_sides: ThinkSides = "both",
        autocast: torch.dtype | None = None,
        prefix: str = "validation",
    ) -> None:
        if not tasks:
            raise ConfigError("There is no task to evaluate: name at least one in data.tasks, or leave the evaluation during training out.")
        self.tasks = tuple(tasks)
        self.modes = tuple(modes)
        self.at_end = at_end
        self.batch_size = batch_size
        self.max_batch_tokens = max_batch_tokens
        self.decoding = decoding
        self.think_sides = think_sides
        self.autocast = autocast
        self.prefix = prefix
        self.report: Report | None = None
        """What the last evaluation found."""
        self.report_step = -1
        """Optimiser steps done at the last evaluation."""
        self._clock = StepClock(every_n_steps)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._clock.start(trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int) -> None:
        """Evaluates at the end of an interval."""
        if self._clock.is_due(trainer.global_step):
            self.evaluate(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates the end, unless that was just done."""
        if self.at_end and self.report_step != trainer.global_step:
            self.evaluate(trainer, pl_module)
        if self.report is not None and trainer.is_global_zero:
            log_text(trainer, f"{self.prefix}/report.md", self.report.markdown())

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates the end of a run that was interrupted after its last step: resumed, it has nothing to train and no `on_train_end`."""
        if self.at_end and self.report_step != trainer.global_step and world_size() == 1:
            pl_module.to(trainer.strategy.root_device)  # Lightning has put it on the CPU by now
            self.on_train_end(trainer, pl_module)

    def evaluate(self, trainer: Trainer, pl_module: LightningModule) -> Report:
        """Evaluates all tasks now, logs, and keeps the report."""
        assert isinstance(pl_module, StageModule)
        log.info("%s, step %d: %d tasks, %s", self.prefix, trainer.global_step, len(self.tasks), " and ".join(self.modes))
        known: KnownItems = {}
        results = [
            evaluate_task(
                pl_module.model,
                task,
                modes=self.modes,
                think_sides=self.think_sides,
                batch_size=self.batch_size,
                max_batch_tokens=self.max_batch_tokens,
                decoding=self.decoding,
                device=pl_module.device,
                known=known,
                over_ranks=not pl_module.model.is_sharded,  # ranks with shares of each weight must all run everything
                autocast=self.autocast,
            )
            for task in self.tasks
        ]
        self.report = Report.from_results(results, provenance={"stage": pl_module.stage, "step": str(trainer.global_step)})
        self.report_step = trainer.global_step
        log_metrics(trainer, self.metrics(self.report))
        scores = self.report.group("all").row.scores
        log.info("%s, step %d: %s", self.prefix, trainer.global_step, ", ".join(f"{mode} {score:.1f}" for mode, score in scores.items()))
        return self.report

    def metrics(self, report: Report) -> dict[str, float]:
        """The numbers of a report by their full names."""
        metrics: dict[str, float] = {}
        for row in report.rows:
            metrics |= _figures(f"{self.prefix}/{row.name}", row)
            metrics |= {f"{self.prefix}/{row.name}/tie_rate": row.tie_rate, f"{self.prefix}/{row.name}/seconds": row.seconds}
        for group in report.groups():
            metrics |= _figures(f"{self.prefix}/mean/{group.row.name}", group.row)
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """The last report, for a resumed run that has nothing left to evaluate."""
        return {"report": None if self.report is None else self.report.to_json(), "report_step": self.report_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the last report up."""
        self.report = None if state_dict["report"] is None else Report.from_json(state_dict["report"])
        self.report_step = state_dict["report_step"]


def _figures(name: str, row: ReportRow) -> dict[str, float]:
    thinking = [mode for mode in row.scores if mode != "never"]
    return (
        {f"{name}/{mode}": score for mode, score in row.scores.items()}
        | {f"{name}/{mode}_think_rate": row.think_rate[mode] for mode in thinking}
        | {f"{name}/{mode}_tokens_per_query": row.tokens_per_query[mode] for mode in thinking}
    )
