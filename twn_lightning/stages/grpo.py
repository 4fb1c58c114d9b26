"""Stage 4: the reasoning adapter is rewarded for thoughts whose embedding retrieves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from twn_lightning.batches import PairBatch
from twn_lightning.distributed import rank, sum_over_ranks, world_size
from twn_lightning.errors import ConfigError
from twn_lightning.evaluation.encode import evaluating
from twn_lightning.losses.grpo import LossType, group_advantages, grpo_loss
from twn_lightning.losses.info_nce import positive_log_probs
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.outputs import Decoding, Rollout
from twn_lightning.rewards.mix import MixedReward, RewardMix
from twn_lightning.rewards.retrieval import gain_reward, group_margin, outcome_reward, rank_reward, retrieval_margin, rollout_log_probs
from twn_lightning.rewards.shape import format_reward, length_reward
from twn_lightning.stages.base import OptimSpec, StageModule, StepOutput
from twn_lightning.stages.contrastive import discriminative_rows
from twn_lightning.stages.peers import Peers, Rows
from twn_lightning.stages.rollouts import Rollouts


@dataclass(frozen=True)
class GrpoSpec:
    """Numbers of the policy-gradient loss and of the rewards.

    Attributes:
        group_size: G, thoughts sampled for each prompt, at least 2.
        inner_epochs: Steps in a row on the same prompts and thoughts; the data module repeats each batch as often.
        clip_low: The probability ratio is clipped below at 1 - clip_low.
        clip_high: The probability ratio is clipped above at 1 + clip_high.
        kl_weight: Weight of the k3 KL to the reasoning adapter as it was when the stage was made; 0 for no reference.
        loss_type: How token losses become one number.
        scale_by_std: Divide a group's advantages by their standard deviation.
        score_temperature: Divides the cosines in the margin and in the gain.
        gain_maximum: The gain is cut to plus or minus this many nats.
        outcome_top_k: The outcome reward is 0 unless the positive is among this many first targets.
        length_target: Thoughts up to this many tokens earn the full length reward; those of the decoding's maximum earn none of it.
    """

    group_size: int = 8
    inner_epochs: int = 1
    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_weight: float = 0.02
    loss_type: LossType = "dapo"
    scale_by_std: bool = True
    score_temperature: float = 0.02
    gain_maximum: float = 2.0
    outcome_top_k: int = 1
    length_target: int = 12

    def __post_init__(self) -> None:
        if self.group_size < 2 or self.inner_epochs < 1 or self.kl_weight < 0.0 or self.score_temperature <= 0.0:
            raise ConfigError(f"{self}: group_size must be at least 2, inner_epochs 1, kl_weight 0, and score_temperature above 0.")


class GrpoStage(StageModule[PairBatch]):
    """Group relative policy optimisation of the thoughts (Shao et al., 2024) by what their embeddings retrieve.

    For each query G thoughts are sampled and embedded; the discriminative vectors of the batch's positives and hard negatives, of all
    ranks, are the targets. For the reward "group_margin" the positives think too, G times each; these thoughts are not trained on.

    Args:
        model: Its reasoning adapter is trained; with a KL, its present state is kept as the reference.
        optim: Optimiser and schedule.
        spec: Loss and rewards.
        decoding: How thoughts are sampled; its temperature must be above 0.
        rewards: Weights of the reward's parts.
        seed: See `StageModule`.
        max_prefill_tokens: See `StageModule`; prompts that thoughts are sampled for are read at once.

    Raises:
        ConfigError: The decoding is greedy.
    """

    stage = "grpo"
    trains = ("reasoning",)

    def __init__(
        self,
        model: DualLoRAModel,
        optim: OptimSpec,
        *,
        spec: GrpoSpec,
        decoding: Decoding,
        rewards: RewardMix,
        seed: int = 0,
        max_prefill_tokens: int | None = None,
    ) -> None:
        if decoding.temperature <= 0.0:
            raise ConfigError("GRPO compares different thoughts of one prompt, but at temperature 0 all are equal: choose one above 0.")
        super().__init__(model, optim, seed=seed, max_prefill_tokens=max_prefill_tokens)
        self.spec = spec
        self.decoding = decoding
        self.rewards = rewards
        self.rollouts: Rollouts | None = None
        """The thoughts of the last training batch."""
        if spec.kl_weight > 0.0:
            model.add_reference()

    def step(self, batch: PairBatch) -> StepOutput:
        """Loss and rewards of one batch; thoughts are sampled anew every `inner_epochs` batches."""
        rollouts = self._current(batch) if self.training else self.roll_out(batch)
        mask = rollouts.thoughts.mask[:, 1:]
        log_probs = self.model.thought_log_probs(batch.query, rollouts.thoughts)
        # On fresh thoughts the ratio is 1; in 16 bits the decoder, token by token, and this pass round differently.
        is_fresh = self.spec.inner_epochs == 1 and self.training
        terms = grpo_loss(
            log_probs,
            log_probs.detach() if is_fresh else rollouts.log_probs,
            rollouts.reference_log_probs,
            rollouts.advantages,
            mask,
            clip_low=self.spec.clip_low,
            clip_high=self.spec.clip_high,
            kl_weight=self.spec.kl_weight,
            loss_type=self.spec.loss_type,
            max_tokens=self.decoding.max_new_tokens,
            num_tokens=sum_over_ranks(mask.sum()) / world_size(),
        )
        metrics = {
            "reward": rollouts.total.mean(),
            **{f"reward_{name}": part.mean() for name, part in rollouts.parts.items()},
            "kl": terms.kl,
            "clip_fraction": terms.clip_fraction,
            "think_tokens": rollouts.thoughts.num_reasoning_tokens.float().mean(),
            "finished_rate": rollouts.finished.float().mean(),
            "group_reward_std": rollouts.total.std(dim=1).mean(),
            "entropy": -(rollouts.log_probs * mask).sum() / mask.sum().clamp(min=1),
        }
        return StepOutput(loss=terms.loss, metrics=metrics)

    def roll_out(self, batch: PairBatch) -> Rollouts:
        """Samples G thoughts for each query and rewards them."""
        with evaluating(self.model):  # no dropout, and gradient checkpointing would drop the cache
            peers = Peers.of(batch)
            prompts = self.model.prefill(batch.query)
            query = Rows.gathered(self.model.embed(prompts).vector)
            generator = self.generator()
            rollout = self.model.think(prompts.repeat(self.spec.group_size), self.decoding, generator=generator)
            positive, negative = (
                discriminative_rows(self.model, inputs, spare=batch.query, like=query.own, max_tokens=self.max_prefill_tokens)
                for inputs in (batch.positive, batch.negative)
            )
            groups = self._thinking_positives(batch, generator) if "group_margin" in self.rewards.names else positive.all[:, None]
            reward = self._reward(rollout, query.own, torch.cat([positive.all, negative.all]), groups, peers)
            reference = None
            if self.spec.kl_weight > 0.0:
                reference = self.model.thought_log_probs(batch.query, rollout.thoughts, adapter="reference")
        return Rollouts(
            keys=batch.keys,
            thoughts=rollout.thoughts,
            log_probs=rollout.log_probs,
            reference_log_probs=reference,
            advantages=group_advantages(reward.total, scale_by_std=self.spec.scale_by_std).flatten(),
            finished=rollout.finished.reshape(len(batch), -1),
            total=reward.total,
            parts=reward.parts,
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the thoughts as well, so that a run that stopped between two inner epochs goes on with them."""
        super().on_save_checkpoint(checkpoint)
        if self.spec.inner_epochs > 1 and self.rollouts is not None and world_size() == 1:
            checkpoint["rollouts"] = self.rollouts.packed()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the thoughts up again; with several ranks they are sampled anew (a checkpoint holds one rank's)."""
        super().on_load_checkpoint(checkpoint)
        if "rollouts" in checkpoint and world_size() == 1:
            self.rollouts = Rollouts.unpacked(checkpoint["rollouts"], self.device)

    def _current(self, batch: PairBatch) -> Rollouts:
        is_first = self.micro_step % self.spec.inner_epochs == 0
        if self.rollouts is None or is_first:
            self.rollouts = self.roll_out(batch)
        if self.rollouts.keys != batch.keys:
            raise ConfigError(
                f"grpo.inner_epochs is {self.spec.inner_epochs}, but batch {self.micro_step} of rank {rank()} does not repeat the one before: "
                "let the data module repeat each batch as often."
            )
        return self.rollouts

    def _thinking_positives(self, batch: PairBatch, generator: torch.Generator) -> Tensor:
        """The positives of all ranks after G sampled thoughts each, ``(N, G, D)``."""
        rollout = self.model.think(self.model.prefill(batch.positive).repeat(self.spec.group_size), self.decoding, generator=generator)
        vectors = Rows.gathered(self.model.embed(rollout.prefix).vector).all
        return vectors.reshape(-1, self.spec.group_size, vectors.shape[1])

    def _reward(self, rollout: Rollout, query: Tensor, targets: Tensor, groups: Tensor, peers: Peers) -> MixedReward:
        shape = (query.shape[0], self.spec.group_size)
        generative = self.model.embed(rollout.prefix).vector.reshape(*shape, -1)
        num_tokens = rollout.thoughts.num_reasoning_tokens.reshape(shape)
        finished = rollout.finished.reshape(shape)
        column, mask, temperature = peers.column, peers.query_mask, self.spec.score_temperature

        def gain() -> Tensor:
            with_thought = rollout_log_probs(generative, targets, column, mask, temperature=temperature)
            without = positive_log_probs(query, targets, column, temperature=temperature, mask=mask)
            return gain_reward(with_thought, without, maximum=self.spec.gain_maximum)

        parts: dict[str, Callable[[], Tensor]] = {
            "format": lambda: format_reward(finished, num_tokens - finished.long()),
            "retrieval": lambda: retrieval_margin(generative, targets, column, mask, temperature=temperature),
            "rank": lambda: rank_reward(generative, targets, column, mask),
            "gain": gain,
            "group_margin": lambda: group_margin(generative, groups, column, mask[:, : len(groups)]),
            "outcome": lambda: outcome_reward(generative, targets, column, mask, top_k=self.spec.outcome_top_k),
            "length": lambda: length_reward(num_tokens, target=self.spec.length_target, maximum=self.decoding.max_new_tokens),
        }
        return self.rewards({name: parts[name]() for name in self.rewards.names})
