"""Stage 1: the queries and the embedding adapter learn to embed without reasoning."""

from __future__ import annotations

import torch
from torch import Tensor

from twn_lightning.batches import Inputs, PairBatch
from twn_lightning.distributed import max_over_ranks
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.stages.base import OptimSpec, StageModule, StepOutput
from twn_lightning.stages.peers import Peers, Rows


def discriminative_rows(model: DualLoRAModel, inputs: Inputs | None, *, spare: Inputs, like: Tensor, max_tokens: int | None = None) -> Rows:
    """Discriminative embeddings of a batch, with those of the other ranks.

    Args:
        model: No autograd graph is built over its backbone; gradients reach the queries and the embedding adapter.
        inputs: Prompts, or None for no rows.
        spare: Prompts of which one is read, and left out, where this rank has none, others have some, and all must run the same passes.
        like: Vectors of which ``inputs=None`` takes the width, type and (empty) graph, so that every rank takes part in the exchange.
        max_tokens: See `DualLoRAModel.embed_prompts`.
    """
    some = max_over_ranks(int(inputs is not None)) if model.is_sharded else inputs is not None
    if not some:
        return Rows.gathered(like[:0])
    if inputs is None:
        inputs, num_rows = spare.select(torch.zeros(1, dtype=torch.long, device=spare.device)), 0
    else:
        num_rows = len(inputs)
    return Rows.gathered(model.embed_prompts(inputs, max_tokens=max_tokens).vector[:num_rows])


class ContrastiveStage(StageModule[PairBatch]):
    """InfoNCE between the discriminative embeddings of queries and positives, in both directions.

    Targets of all ranks and hard negatives compete; targets equal to the positive do not.

    Args:
        model: Its queries and embedding adapter are trained.
        optim: Optimiser and schedule.
        temperature: Divides the cosine scores.
        seed: See `StageModule`.
        max_prefill_tokens: See `StageModule`.
    """

    stage = "contrastive"
    trains = ("embedding", "queries")

    def __init__(
        self, model: DualLoRAModel, optim: OptimSpec, *, temperature: float = 0.02, seed: int = 0, max_prefill_tokens: int | None = None
    ) -> None:
        super().__init__(model, optim, seed=seed, max_prefill_tokens=max_prefill_tokens)
        self.temperature = temperature

    def step(self, batch: PairBatch) -> StepOutput:
        """Loss and in-batch hit@1 of one batch."""
        peers = Peers.of(batch)
        query = Rows.gathered(self.model.embed_prompts(batch.query, max_tokens=self.max_prefill_tokens).vector)
        positive, negative = (
            discriminative_rows(self.model, inputs, spare=batch.query, like=query.own, max_tokens=self.max_prefill_tokens)
            for inputs in (batch.positive, batch.negative)
        )
        return StepOutput(
            loss=peers.info_nce(query, positive, negative, temperature=self.temperature),
            metrics={"hit_at_1": peers.hit_at_1(query, positive, negative)},
        )
