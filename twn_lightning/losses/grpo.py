"""Group relative policy optimisation (Shao et al., 2024) and its later variants.

The formulas are those of trl's GRPOTrainer, which `tests/twn_lightning/losses/test_grpo.py` writes out by hand.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from twn_lightning.errors import ConfigError

LossType: TypeAlias = Literal["grpo", "dr_grpo", "dapo", "bnpo"]
"""How token losses become one number.

* ``grpo``: mean over each thought's tokens, then over thoughts (Shao et al., 2024).
* ``bnpo``: mean over the tokens of this rank's batch.
* ``dapo``: sum divided by the tokens of the whole batch over all ranks (Yu et al., 2025); one rank: equal to ``bnpo``.
* ``dr_grpo``: sum divided by thoughts times ``max_tokens``, so that length is no bias (Liu et al., 2025).
"""


@dataclass(frozen=True)
class GrpoTerms:
    """The loss of one batch of rollouts and what to watch beside it.

    Attributes:
        loss: Scalar with gradient, KL included.
        kl: Mean k3 estimate over the batch's tokens, in nats a token, without gradient; 0 without a reference.
        clip_fraction: Share of tokens whose ratio was clipped, without gradient, 0 to 1.
    """

    loss: Tensor
    kl: Tensor
    clip_fraction: Tensor


def group_advantages(rewards: Tensor, *, scale_by_std: bool = True, epsilon: float = 1e-4) -> Tensor:
    """Each rollout's reward against its own group.

    Args:
        rewards: Of G rollouts of each of P prompts, ``(P, G)``.
        scale_by_std: Divides by the group's (unbiased) standard deviation; False is Dr. GRPO's choice.
        epsilon: Added to that deviation. A group of equal rewards has advantage 0.

    Returns:
        ``(P, G)``, float32; each row sums to 0.

    Raises:
        ConfigError: The group has fewer than two rollouts.
    """
    if rewards.shape[1] < 2:
        raise ConfigError("A group of 1 rollout has nothing to be compared with: choose a group size of at least 2.")
    rewards = rewards.float()
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    if not scale_by_std:
        return centred
    return centred / (rewards.std(dim=1, keepdim=True) + epsilon)


def k3_kl(log_probs: Tensor, reference_log_probs: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(policy || reference) for each sampled token: exp(d) - d - 1 with d = reference - policy.

    Args:
        log_probs: Under the policy, any shape.
        reference_log_probs: Under the reference, the same shape.

    Returns:
        At least 0, the same shape, float32, in nats.
    """
    difference = reference_log_probs.float() - log_probs.float()
    return difference.exp() - difference - 1.0


def grpo_loss(  # noqa: PLR0913 -- the formula's own symbols, each a setting
    log_probs: Tensor,
    old_log_probs: Tensor,
    reference_log_probs: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    kl_weight: float,
    loss_type: LossType,
    max_tokens: int | None = None,
    num_tokens: Tensor | None = None,
) -> GrpoTerms:
    """Clipped policy-gradient loss with a KL penalty.

    Args:
        log_probs: Of the written tokens under the policy, with gradient, ``(B, T)``.
        old_log_probs: As stored when the tokens were sampled, ``(B, T)``.
        reference_log_probs: Under the frozen reference, ``(B, T)``; None only if ``kl_weight`` is 0.
        advantages: Of each rollout, ``(B,)``.
        mask: 1 (or True) on written tokens, ``(B, T)``.
        clip_low: The ratio is clipped below 1 - clip_low.
        clip_high: The ratio is clipped above 1 + clip_high.
        kl_weight: Weight of the KL estimate in the loss.
        loss_type: See `LossType`.
        max_tokens: Most tokens a thought may have; ``dr_grpo`` divides by it.
        num_tokens: For ``dapo``: tokens of all ranks divided by the number of ranks; None means this batch is everything.

    Returns:
        The loss, such that its mean over ranks is the loss of the whole batch, and what to log.

    Raises:
        ConfigError: ``loss_type`` is unknown, or a number that the choices ask for is missing.
    """
    _check(loss_type, max_tokens, kl_weight, reference_log_probs)
    weight = mask.float()
    advantage = advantages.float()[:, None]
    ratio = (log_probs.float() - old_log_probs.detach().float()).exp()
    clipped = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    token_loss = -torch.minimum(ratio * advantage, clipped * advantage)
    divisor = weight.sum().clamp(min=1.0)
    mean_kl = torch.zeros_like(divisor)
    if reference_log_probs is not None:
        token_kl = k3_kl(log_probs, reference_log_probs.detach())
        token_loss = token_loss + kl_weight * token_kl
        mean_kl = (token_kl.detach() * weight).sum() / divisor
    was_clipped = ((ratio < 1.0 - clip_low) & (advantage < 0)) | ((ratio > 1.0 + clip_high) & (advantage > 0))
    return GrpoTerms(
        loss=_aggregate(token_loss * weight, weight, loss_type=loss_type, max_tokens=max_tokens, num_tokens=num_tokens),
        kl=mean_kl,
        clip_fraction=(was_clipped.float() * weight).sum() / divisor,
    )


def _aggregate(token_loss: Tensor, weight: Tensor, *, loss_type: LossType, max_tokens: int | None, num_tokens: Tensor | None) -> Tensor:
    if loss_type == "grpo":
        return (token_loss.sum(dim=1) / weight.sum(dim=1).clamp(min=1.0)).mean()
    if loss_type == "dr_grpo":
        assert max_tokens is not None
        return token_loss.sum() / (token_loss.shape[0] * max_tokens)
    if loss_type == "dapo" and num_tokens is not None:
        return token_loss.sum() / num_tokens.float().clamp(min=1.0)
    return token_loss.sum() / weight.sum().clamp(min=1.0)


def _check(loss_type: str, max_tokens: int | None, kl_weight: float, reference_log_probs: Tensor | None) -> None:
    if loss_type not in get_args(LossType):
        raise ConfigError(f'loss_type is "{loss_type}": choose one of {", ".join(get_args(LossType))}.')
    if loss_type == "dr_grpo" and not max_tokens:
        raise ConfigError("loss_type dr_grpo divides by the most tokens a thought may have: give max_tokens.")
    if kl_weight != 0.0 and reference_log_probs is None:
        raise ConfigError(
            f"kl_weight is {kl_weight}, but no reference's log-probabilities were given: add the reference adapter, or set kl_weight=0."
        )
