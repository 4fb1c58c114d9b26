"""Lightning's progress bar in this package's words: the stage instead of an epoch's number, and the loss alone."""

from __future__ import annotations

import datamodules  # noqa: F401  (first: it prepares the import of torchvision, on which lightning depends)

# isort: split
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from experiments.display import ProgressLines, has_terminal


class StageProgressBar(RichProgressBar):
    """A bar over a stage's steps on standard error; a line now and then where that is no terminal.

    Args:
        title: What is being trained.
    """

    def __init__(self, title: str) -> None:
        super().__init__(refresh_rate=4, console_kwargs={"stderr": True})
        self.title = title
        self._lines: ProgressLines | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Chooses between bar and lines."""
        if self.is_enabled and not has_terminal():
            self.disable()
            self._lines = ProgressLines(self.title)
        super().on_train_start(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int) -> None:
        """Moves on."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)  # type: ignore[arg-type]
        if self._lines is not None:
            note = ", ".join(f"{name} {float(value):.3f}" for name, value in trainer.progress_bar_metrics.items())
            self._lines.advance(trainer.global_step, int(trainer.max_steps), note)

    def _get_train_description(self, current_epoch: int) -> str:
        return self.title

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, int | str | float | dict[str, float]]:
        """What the bar shows beside the steps, without the logger's version."""
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics
