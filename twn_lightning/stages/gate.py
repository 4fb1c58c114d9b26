"""Stage 3: the routing gate learns from what the model's own thoughts brought."""

from __future__ import annotations

import torch

from twn_lightning.batches import GateBatch
from twn_lightning.losses.gate import gate_bce, self_labels
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.stages.base import OptimSpec, StageModule, StepOutput


class GateStage(StageModule[GateBatch]):
    """Binary cross-entropy of the gate on self-labelled examples.

    Args:
        model: Its gate is trained; the rest of the model does not run.
        optim: Optimiser and schedule.
        margin: Label 1 (think) if the gain is above this many nats.
        dead_zone: Examples whose gain lies closer than this to 0, in nats, are left out.
        balanced: Both labels weigh the same in the loss.
        dropout: Share of what the gate reads that is hidden from it while it trains, from 0 to less than 1.
        seed: See `StageModule`.
    """

    stage = "gate"
    trains = ("gate",)

    def __init__(
        self,
        model: DualLoRAModel,
        optim: OptimSpec,
        *,
        margin: float = 0.0,
        dead_zone: float = 0.05,
        balanced: bool = True,
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__(model, optim, seed=seed)
        model.gate.dropout = dropout
        self.margin = margin
        self.dead_zone = dead_zone
        self.balanced = balanced

    def step(self, batch: GateBatch) -> StepOutput:
        """Loss, accuracy at probability 0.5 on the examples that are kept, and how often the gate and its labels say think."""
        logits = self.model.gate(batch.state)
        labels, keep = self_labels(batch.gain, margin=self.margin, dead_zone=self.dead_zone)
        num_kept = keep.sum().clamp(min=1)
        thinks = logits.detach() >= 0.0
        metrics = {
            "accuracy": ((thinks == labels.bool()) & keep).sum() / num_kept,
            "think_rate": thinks.float().mean(),
            "label_rate": torch.where(keep, labels, 0.0).sum() / num_kept,
            "kept_rate": keep.float().mean(),
            "gain": batch.gain.float().mean(),
        }
        loss = gate_bce(logits, batch.gain, margin=self.margin, dead_zone=self.dead_zone, balanced=self.balanced)
        return StepOutput(loss=loss, metrics=metrics)
