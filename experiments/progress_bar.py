"""Lightning's progress bar in this package's words: the stage instead of an epoch's number, and the loss alone."""

from __future__ import annotations

import datamodules  # noqa: F401  (first: it prepares the import of torchvision, on which lightning depends)

# isort: split
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar


class StageProgressBar(RichProgressBar):
    """A bar over a stage's steps.

    Args:
        title: What is being trained.
    """

    def __init__(self, title: str) -> None:
        super().__init__(refresh_rate=4)
        self.title = title

    def _get_train_description(self, current_epoch: int) -> str:
        return self.title

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, int | str | float | dict[str, float]]:
        """What the bar shows beside the steps, without the logger's version."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics
