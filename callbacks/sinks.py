"""Where callbacks write: every logger of the trainer, and whatever it offers beyond numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from lightning.pytorch import Trainer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@runtime_checkable
class ArtifactLogger(Protocol):
    """A logger that also keeps texts and figures as files of the run."""

    def log_text(self, name: str, text: str) -> None:
        """Keeps a text under a file name (folders allowed)."""

    def log_figure(self, name: str, figure: Figure) -> None:
        """Keeps a figure under a file name."""


def log_metrics(trainer: Trainer, metrics: Mapping[str, float]) -> None:
    """Logs numbers now, in any hook and at any step, and shows them to callbacks that monitor a metric.

    Args:
        trainer: Its loggers receive the numbers at the count of optimiser steps done.
        metrics: Full names ("validation/digits/always").
    """
    for logger in trainer.loggers:
        logger.log_metrics(dict(metrics), step=trainer.global_step)
    trainer.callback_metrics.update({name: torch.tensor(float(value)) for name, value in metrics.items()})


def log_text(trainer: Trainer, name: str, text: str) -> None:
    """Keeps a text in every logger that can; the others are passed over."""
    for logger in trainer.loggers:
        if isinstance(logger, ArtifactLogger):
            logger.log_text(name, text)


def log_figure(trainer: Trainer, name: str, figure: Figure) -> None:
    """Keeps a figure in every logger that can; the others are passed over."""
    for logger in trainer.loggers:
        if isinstance(logger, ArtifactLogger):
            logger.log_figure(name, figure)


class StepClock:
    """Says when another interval of optimiser steps is over, once for each step however many batches a step takes.

    Args:
        every_n_steps: Length of the interval; 0 for never.
    """

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps
        self.last_step = 0
        """Optimiser steps at the last interval's end."""

    def start(self, step: int) -> None:
        """Begins at a step (of a resumed run: where it goes on)."""
        self.last_step = step

    def is_due(self, step: int) -> bool:
        """Whether an interval ends at this step; asking again at the same step says no."""
        if self.every_n_steps <= 0 or step == self.last_step or step % self.every_n_steps:
            return False
        self.last_step = step
        return True
