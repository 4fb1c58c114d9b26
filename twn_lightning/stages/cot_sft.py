"""Stage 2: the reasoning adapter learns to write thoughts while the embedding adapter learns to embed with and without them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from twn_lightning.batches import Inputs, PairBatch, Thoughts
from twn_lightning.errors import DataError
from twn_lightning.losses.cot import cot_cross_entropy
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.outputs import Supervised
from twn_lightning.stages.base import OptimSpec, StageModule, StepOutput
from twn_lightning.stages.contrastive import discriminative_rows
from twn_lightning.stages.peers import Peers, Rows


@dataclass(frozen=True)
class CotSftWeights:
    """Weights of the loss's four parts.

    Attributes:
        cot: Next-token cross-entropy on the reference thoughts of the query side plus that of the positive side.
        discriminative: InfoNCE of discriminative queries and positives.
        generative: InfoNCE of generative queries and positives.
        mixed: InfoNCE of a generative and a discriminative side, mean of both ways: a thinking query must find a silent candidate.
    """

    cot: float = 1.0
    discriminative: float = 1.0
    generative: float = 1.0
    mixed: float = 1.0


@dataclass(frozen=True)
class Side:
    """Queries or positives of a batch.

    Attributes:
        discriminative: Vectors without thought.
        generative: Vectors after the reference thought; the discriminative ones where the side has no thoughts.
        supervised: The thoughts' log-probabilities, or None.
    """

    discriminative: Rows
    generative: Rows
    supervised: Supervised | None


class CotSftStage(StageModule[PairBatch]):
    """Cross-entropy on reference thoughts, jointly with InfoNCE of discriminative, generative and mixed pairs.

    The model detaches the cache between the adapters: the cross-entropy trains the reasoning adapter alone, InfoNCE the embedding adapter
    and the queries alone.

    Args:
        model: Both adapters and the queries are trained.
        optim: Optimiser and schedule.
        temperature: Divides the cosine scores.
        weights: Of the loss's parts.
        seed: See `StageModule`.
    """

    stage = "cot_sft"
    trains = ("reasoning", "embedding", "queries")

    def __init__(
        self, model: DualLoRAModel, optim: OptimSpec, *, temperature: float = 0.02, weights: CotSftWeights | None = None, seed: int = 0
    ) -> None:
        super().__init__(model, optim, seed=seed)
        self.temperature = temperature
        self.weights = weights or CotSftWeights()

    def step(self, batch: PairBatch) -> StepOutput:
        """Loss, its parts, token accuracy and in-batch hit@1 of one batch.

        Raises:
            DataError: The batch has no thoughts on either side.
        """
        if batch.query_thoughts is None and batch.positive_thoughts is None:
            raise DataError(f"Stage cot_sft needs thoughts, but source {batch.source!r} has none (first keys {list(batch.keys[:3])}): add cot texts.")
        peers = Peers.of(batch)
        query = self._side(batch.query, batch.query_thoughts)
        positive = self._side(batch.positive, batch.positive_thoughts)
        negative = discriminative_rows(self.model, batch.negative, query.discriminative.own)

        def contrast(one: Rows, other: Rows) -> Tensor:
            return peers.info_nce(one, other, negative, temperature=self.temperature)

        supervised = [side.supervised for side in (query, positive) if side.supervised is not None]
        losses = {
            "cot": torch.stack([cot_cross_entropy(each.log_probs, each.mask) for each in supervised]).sum(),
            "disc": contrast(query.discriminative, positive.discriminative),
            "gen": contrast(query.generative, positive.generative),
            "mixed": (contrast(query.generative, positive.discriminative) + contrast(query.discriminative, positive.generative)) / 2,
        }
        weights = {"cot": self.weights.cot, "disc": self.weights.discriminative, "gen": self.weights.generative, "mixed": self.weights.mixed}
        metrics = {f"loss_{name}": loss for name, loss in losses.items()}
        metrics["token_accuracy"] = token_accuracy(supervised)
        metrics["hit_at_1_disc"] = peers.hit_at_1(query.discriminative, positive.discriminative, negative)
        metrics["hit_at_1_gen"] = peers.hit_at_1(query.generative, positive.generative, negative)
        return StepOutput(loss=torch.stack([weights[name] * loss for name, loss in losses.items()]).sum(), metrics=metrics)

    def _side(self, inputs: Inputs, thoughts: Thoughts | None) -> Side:
        if thoughts is None:
            rows = Rows.gathered(self.model.embed(self.model.prefill(inputs)).vector)
            return Side(discriminative=rows, generative=rows, supervised=None)
        supervised = self.model.supervise(inputs, thoughts)
        return Side(
            discriminative=Rows.gathered(self.model.embed(supervised.prefix.without_thoughts()).vector),
            generative=Rows.gathered(self.model.embed(supervised.prefix).vector),
            supervised=supervised,
        )


def token_accuracy(supervised: list[Supervised]) -> Tensor:
    """Share of the reference tokens that the model thinks most probable, over all sides together, a scalar from 0 to 1."""
    correct = torch.stack([(each.correct & each.mask.bool()).sum() for each in supervised]).sum()
    total = torch.stack([each.mask.sum() for each in supervised]).sum()
    return correct / total.clamp(min=1)
