"""How well the routing gate tells where thinking helps, on examples it does not train on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.sinks import StepClock, log_figure, log_metrics
from twn_lightning.batches import GateBatch
from twn_lightning.errors import ConfigError
from twn_lightning.evaluation.routing import gate_probability
from twn_lightning.losses.gate import self_labels
from twn_lightning.metrics.gate import auroc, expected_calibration_error, reliability_bins
from twn_lightning.stages.base import StageModule

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class GateMonitor(Callback):
    """Logs "gate/held_out_auroc" and "gate/held_out_ece", and at the end a figure of gains and calibration.

    Neither needs a threshold, which is chosen once the gate is trained. AUROC is left out while only one label occurs.

    Args:
        examples: Held-out examples.
        every_n_steps: Optimiser steps between two readings; 0 for the end only.
        margin: Label 1 (think) if the gain is above this many nats.
        dead_zone: Examples whose gain lies closer than this to 0, in nats, have no label.
        num_bins: Of the calibration error.
        figure_name: File name of the figure; empty for none.

    Raises:
        ConfigError: No example has a label.
    """

    def __init__(
        self,
        examples: GateBatch,
        *,
        every_n_steps: int = 50,
        margin: float = 0.0,
        dead_zone: float = 0.05,
        num_bins: int = 10,
        figure_name: str = "gate/held_out.png",
    ) -> None:
        self.examples = examples
        self.labels, self.keep = self_labels(examples.gain, margin=margin, dead_zone=dead_zone)
        if not bool(self.keep.any()):
            raise ConfigError(
                f"Of {len(examples)} held-out gate examples none has a gain of at least {dead_zone} nats: use more examples or a smaller dead_zone."
            )
        self.num_bins = num_bins
        self.figure_name = figure_name
        self._clock = StepClock(every_n_steps)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._clock.start(trainer.global_step)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int) -> None:
        """Logs at the end of an interval."""
        if self._clock.is_due(trainer.global_step):
            log_metrics(trainer, self.read(pl_module)[0])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Logs the end, with the figure."""
        metrics, probability = self.read(pl_module)
        log_metrics(trainer, metrics)
        if self.figure_name and trainer.loggers and trainer.is_global_zero:
            log_figure(trainer, self.figure_name, self.figure(probability))

    def read(self, pl_module: LightningModule) -> tuple[dict[str, float], Tensor]:
        """The metrics now, and each example's probability ``(N,)``."""
        assert isinstance(pl_module, StageModule)
        probability = gate_probability(pl_module.model.gate, self.examples.state)
        kept, labels = probability[self.keep], self.labels[self.keep]
        metrics = {"gate/held_out_ece": expected_calibration_error(kept, labels, num_bins=self.num_bins)}
        if 0 < int(labels.sum()) < len(labels):
            metrics["gate/held_out_auroc"] = auroc(kept, labels)
        return metrics, probability

    def figure(self, probability: Tensor) -> Figure:
        """The gate's probability by the gain of thinking, beside the reliability diagram.

        Args:
            probability: Of each example, ``(N,)``.
        """
        from matplotlib.figure import Figure

        figure = Figure(figsize=(9, 3.5), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.scatter(self.examples.gain.tolist(), probability.tolist(), s=6, alpha=0.4)
        left.set(xlabel="gain of thinking u_gen - u_disc (nats)", ylabel="gate's probability", ylim=(0, 1))
        bins = reliability_bins(probability[self.keep], self.labels[self.keep], num_bins=self.num_bins)
        filled = bins.count > 0
        right.plot([0, 1], [0, 1], linestyle=":", color="grey")
        right.plot(bins.confidence[filled].tolist(), bins.accuracy[filled].tolist(), marker="o")
        right.set(xlabel="gate's probability", ylabel="share where thinking helped", xlim=(0, 1), ylim=(0, 1))
        return figure
