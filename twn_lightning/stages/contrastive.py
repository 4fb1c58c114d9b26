"""Stage 1: the queries and the embedding adapter learn to embed without reasoning."""

from __future__ import annotations

from torch import Tensor

from twn_lightning.batches import Inputs, PairBatch
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.stages.base import OptimSpec, StageModule, StepOutput
from twn_lightning.stages.peers import Peers, Rows


def discriminative_rows(model: DualLoRAModel, inputs: Inputs | None, like: Tensor) -> Rows:
    """Discriminative embeddings of a batch, with those of the other ranks.

    Args:
        model: No autograd graph is built over its backbone; gradients reach the queries and the embedding adapter.
        inputs: Prompts, or None for no rows.
        like: Vectors of which ``inputs=None`` takes the width, type and (empty) graph, so that every rank takes part in the exchange.
    """
    return Rows.gathered(like[:0] if inputs is None else model.embed(model.prefill(inputs)).vector)


class ContrastiveStage(StageModule[PairBatch]):
    """InfoNCE between the discriminative embeddings of queries and positives, in both directions.

    Targets of all ranks and hard negatives compete; targets equal to the positive do not.

    Args:
        model: Its queries and embedding adapter are trained.
        optim: Optimiser and schedule.
        temperature: Divides the cosine scores.
        seed: See `StageModule`.
    """

    stage = "contrastive"
    trains = ("embedding", "queries")

    def __init__(self, model: DualLoRAModel, optim: OptimSpec, *, temperature: float = 0.02, seed: int = 0) -> None:
        super().__init__(model, optim, seed=seed)
        self.temperature = temperature

    def step(self, batch: PairBatch) -> StepOutput:
        """Loss and in-batch hit@1 of one batch."""
        peers = Peers.of(batch)
        query = Rows.gathered(self.model.embed(self.model.prefill(batch.query)).vector)
        positive = discriminative_rows(self.model, batch.positive, query.own)
        negative = discriminative_rows(self.model, batch.negative, query.own)
        return StepOutput(
            loss=peers.info_nce(query, positive, negative, temperature=self.temperature),
            metrics={"hit_at_1": peers.hit_at_1(query, positive, negative)},
        )
