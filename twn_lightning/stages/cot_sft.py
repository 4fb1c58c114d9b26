"""Stage 2: the reasoning adapter learns to write thoughts while the embedding adapter learns to embed with and without them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from twn_lightning.batches import Inputs, PairBatch, Thoughts
from twn_lightning.distributed import sum_over_ranks, world_size
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.losses.cot import cot_cross_entropy
from twn_lightning.models.dual_lora import DualLoRAModel, Part
from twn_lightning.models.outputs import Supervised
from twn_lightning.models.prefix import Prefix
from twn_lightning.stages.base import OptimSpec, StageModule, StepOutput
from twn_lightning.stages.contrastive import discriminative_rows
from twn_lightning.stages.peers import Peers, Rows


@dataclass(frozen=True)
class CotSftWeights:
    """Weights of the loss's four parts; a part of weight 0 is not computed, nor what it alone would need.

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

    def __post_init__(self) -> None:
        if not (self.cot or self.needs_discriminative or self.needs_generative):
            raise ConfigError("Stage cot_sft has the weight 0 for each of its losses and would train nothing: give one a value above 0.")

    @property
    def needs_discriminative(self) -> bool:
        """Whether some part reads discriminative queries and positives."""
        return self.discriminative != 0.0 or self.mixed != 0.0

    @property
    def needs_generative(self) -> bool:
        """Whether some part reads generative queries and positives."""
        return self.generative != 0.0 or self.mixed != 0.0


@dataclass(frozen=True)
class Side:
    """Queries or positives of a batch.

    Attributes:
        discriminative: Vectors without thought; None if no loss reads them.
        generative: Vectors after the reference thought; None if no loss reads them.
        supervised: The thoughts' log-probabilities; None if no loss reads them.
    """

    discriminative: Rows | None
    generative: Rows | None
    supervised: Supervised | None


class CotSftStage(StageModule[PairBatch]):
    """Cross-entropy on reference thoughts, jointly with InfoNCE of discriminative, generative and mixed pairs.

    The model detaches the cache between the adapters: the cross-entropy trains the reasoning adapter alone, InfoNCE the embedding adapter
    and the queries alone. A shared adapter is trained by all of them.

    Args:
        model: Both adapters and the queries are trained, or those that a loss with a weight reaches.
        optim: Optimiser and schedule.
        temperature: Divides the cosine scores.
        weights: Of the loss's parts.
        seed: See `StageModule`.
        learning_rates: See `StageModule`.
        cot_every: Steps from one with the cross-entropy to the next; in validation it is always computed. On several ranks above 1, DDP must look for
            parameters without gradient (DeepSpeed would move them all the same).
        max_prefill_tokens: See `StageModule`; prompts with thoughts are read at once.
    """

    stage = "cot_sft"
    trains = ("reasoning", "embedding", "queries")

    def __init__(
        self,
        model: DualLoRAModel,
        optim: OptimSpec,
        *,
        temperature: float = 0.02,
        weights: CotSftWeights | None = None,
        seed: int = 0,
        learning_rates: Mapping[Part, float] | None = None,
        cot_every: int = 1,
        max_prefill_tokens: int | None = None,
    ) -> None:
        super().__init__(model, optim, seed=seed, learning_rates=learning_rates, max_prefill_tokens=max_prefill_tokens)
        self.cot_every = cot_every
        self.temperature = temperature
        self.weights = weights or CotSftWeights()
        is_contrastive = self.weights.needs_discriminative or self.weights.needs_generative
        if cot_every > 1 and not is_contrastive:
            raise ConfigError(f"stages.cot_sft.cot_every is {cot_every}, but the cross-entropy is the only loss with a weight: set it to 1.")
        parts: list[Part] = ["embedding", "queries"] if is_contrastive else []
        if self.weights.cot or self._flows_through_cache:
            parts.append("reasoning")
        model.set_trainable(*parts)

    @property
    def _supervises(self) -> bool:
        return self.weights.cot != 0.0 and (not self.training or self.micro_step % self.cot_every == 0)

    @property
    def _flows_through_cache(self) -> bool:
        return not self.model.detach and self.model.interface == "kv"

    def step(self, batch: PairBatch) -> StepOutput:
        """Loss, its parts, token accuracy and in-batch hit@1 of one batch.

        Raises:
            DataError: The batch lacks the thoughts of a side.
        """
        if batch.query_thoughts is None or batch.positive_thoughts is None:
            raise DataError(
                f"Stage cot_sft needs thoughts on both sides, but source {batch.source!r} lacks some (first keys {list(batch.keys[:3])}): add cot "
                "texts."
            )
        query = self._side(batch.query, batch.query_thoughts)
        positive = self._side(batch.positive, batch.positive_thoughts)
        losses: dict[str, Tensor] = {}
        metrics: dict[str, Tensor] = {}
        supervised = [side.supervised for side in (query, positive) if side.supervised is not None]
        if supervised:
            losses["cot"] = torch.stack([_cross_entropy(each) for each in supervised]).sum()
            metrics["token_accuracy"] = token_accuracy(supervised)
        self._contrast(batch, query, positive, losses, metrics)
        weights = {"cot": self.weights.cot, "disc": self.weights.discriminative, "gen": self.weights.generative, "mixed": self.weights.mixed}
        metrics |= {f"loss_{name}": loss for name, loss in losses.items()}
        return StepOutput(loss=torch.stack([weights[name] * loss for name, loss in losses.items()]).sum(), metrics=metrics)

    def _contrast(self, batch: PairBatch, query: Side, positive: Side, losses: dict[str, Tensor], metrics: dict[str, Tensor]) -> None:
        """Adds the contrastive losses that have a weight, and hit@1 of each kind of vector that they need."""
        some = query.discriminative or query.generative
        if some is None:
            return
        peers = Peers.of(batch)
        negative = discriminative_rows(self.model, batch.negative, spare=batch.query, like=some.own, max_tokens=self.max_prefill_tokens)

        def contrast(one: Rows | None, other: Rows | None) -> Tensor:
            assert one is not None
            assert other is not None
            return peers.info_nce(one, other, negative, temperature=self.temperature)

        if self.weights.discriminative:
            losses["disc"] = contrast(query.discriminative, positive.discriminative)
        if self.weights.generative:
            losses["gen"] = contrast(query.generative, positive.generative)
        if self.weights.mixed:
            ways = contrast(query.generative, positive.discriminative), contrast(query.discriminative, positive.generative)
            losses["mixed"] = (ways[0] + ways[1]) / 2
        kinds = {"disc": (query.discriminative, positive.discriminative), "gen": (query.generative, positive.generative)}
        for name, (one, other) in kinds.items():
            if one is not None and other is not None:
                metrics[f"hit_at_1_{name}"] = peers.hit_at_1(one, other, negative)

    def _side(self, inputs: Inputs, thoughts: Thoughts) -> Side:
        weights = self.weights
        supervised, prefix = self._read(inputs, thoughts)
        return Side(
            discriminative=Rows.gathered(self.model.embed(prefix.without_thoughts()).vector) if weights.needs_discriminative else None,
            generative=Rows.gathered(self.model.embed(prefix).vector) if weights.needs_generative else None,
            supervised=supervised,
        )

    def _read(self, inputs: Inputs, thoughts: Thoughts) -> tuple[Supervised | None, Prefix]:
        """The thoughts' log-probabilities if they have a weight, and what `embed` reads."""
        if self._supervises:
            supervised = self.model.supervise(inputs, thoughts)
            return supervised, supervised.prefix
        if self._flows_through_cache:
            return None, self.model.supervise(inputs, thoughts).prefix
        prompts = self.model.prefill(inputs)
        return None, self.model.extend(prompts, thoughts) if self.weights.needs_generative else prompts


def _cross_entropy(supervised: Supervised) -> Tensor:
    num_tokens = sum_over_ranks(supervised.mask.sum()) / world_size()
    return cot_cross_entropy(supervised.log_probs, supervised.mask, num_tokens=num_tokens)


def token_accuracy(supervised: list[Supervised]) -> Tensor:
    """Share of the reference tokens that the model thinks most probable, over all sides together, a scalar from 0 to 1."""
    correct = torch.stack([(each.correct & each.mask.bool()).sum() for each in supervised]).sum()
    total = torch.stack([each.mask.sum() for each in supervised]).sum()
    return correct / total.clamp(min=1)
