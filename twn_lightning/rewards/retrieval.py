"""Rewards that look at what the thought's embedding retrieves.

In each, targets are unit rows that any rollout may be compared with, and ``mask`` True leaves a target out (it equals the positive).
"""

from __future__ import annotations

import torch
from torch import Tensor

from twn_lightning.errors import ConfigError
from twn_lightning.losses.info_nce import cosine_scores, positive_log_probs


def retrieval_margin(rollout: Tensor, target: Tensor, positive: Tensor, mask: Tensor | None = None, *, temperature: float = 0.0) -> Tensor:
    """Cosine to the positive minus the cosine to the hardest of the others, or a soft maximum of theirs (0.5 is Embed-RL's choice).

    Args:
        rollout: Unit vectors after each thought, ``(P, G, D)``.
        target: Unit rows, ``(T, D)``.
        positive: The column of each prompt's positive, ``(P,)``.
        mask: True leaves a column out, bool ``(P, T)``.
        temperature: The others are weighted by softmax(cosine / temperature); 0 counts the hardest alone.

    Returns:
        -2 to 2, ``(P, G)``; where every other target is left out, the cosine to the positive alone.
    """
    scores = _scores(rollout, target)
    positive_score = _at(scores, positive)
    others = scores.masked_fill(_left_out(positive, mask, target.shape[0])[:, None, :], -torch.inf)
    hardest = others.amax(dim=2) if temperature == 0.0 else ((others / temperature).softmax(dim=2) * scores).sum(dim=2)
    has_others = (others > -torch.inf).any(dim=2)
    return torch.where(has_others, positive_score - hardest, positive_score)


def rank_reward(rollout: Tensor, target: Tensor, positive: Tensor, mask: Tensor | None = None) -> Tensor:
    """Reciprocal rank of the positive; a target that ties with it stands before it.

    Args:
        rollout: Unit vectors after each thought, ``(P, G, D)``.
        target: Unit rows, ``(T, D)``.
        positive: The column of each prompt's positive, ``(P,)``.
        mask: True leaves a column out, bool ``(P, T)``.

    Returns:
        In (0, 1], ``(P, G)``.
    """
    scores = _scores(rollout, target)
    ahead = (scores >= _at(scores, positive)[:, :, None]) & ~_left_out(positive, mask, target.shape[0])[:, None, :]
    return 1.0 / (1.0 + ahead.sum(dim=2).float())


def rollout_log_probs(rollout: Tensor, target: Tensor, positive: Tensor, mask: Tensor | None = None, *, temperature: float) -> Tensor:
    """u_gen of each rollout: the log-softmax score of the positive among the targets, in nats.

    Args:
        rollout: Unit vectors after each thought, ``(P, G, D)``.
        target: Unit rows, ``(T, D)``.
        positive: The column of each prompt's positive, ``(P,)``.
        mask: True leaves a column out, bool ``(P, T)``.
        temperature: Divides the cosine scores.

    Returns:
        At most 0, ``(P, G)``.
    """
    prompts, group, width = rollout.shape
    flat_mask = None if mask is None else mask.repeat_interleave(group, dim=0)
    flat = positive_log_probs(
        rollout.reshape(prompts * group, width), target, positive.repeat_interleave(group), temperature=temperature, mask=flat_mask
    )
    return flat.reshape(prompts, group)


def gain_reward(generative: Tensor, discriminative: Tensor, *, maximum: float | None = None) -> Tensor:
    """What the thought adds to not thinking at all: u_gen - u_disc, in nats.

    Args:
        generative: u of each rollout, ``(P, G)``, see `rollout_log_probs`.
        discriminative: u of each prompt without a thought, ``(P,)``.
        maximum: Larger gains and losses are cut to this, in nats, above 0; None cuts nothing.

    Returns:
        ``(P, G)``, float32.

    Raises:
        ConfigError: ``maximum`` is not above 0.
    """
    gain = generative.float() - discriminative.float()[:, None]
    if maximum is None:
        return gain
    if maximum <= 0.0:
        raise ConfigError(f"The gain reward's maximum is {maximum}, but gains are cut to plus or minus this: choose a value above 0, or none.")
    return gain.clamp(-maximum, maximum)


def outcome_reward(
    rollout: Tensor, target: Tensor, positive: Tensor, mask: Tensor | None = None, *, top_k: int = 1, temperature: float = 0.5
) -> Tensor:
    """The margin to a soft maximum of the others, 0 unless the positive is among the first k: Embed-RL-like.

    Acc_k · (s⁺ − Σ softmax(s⁻ / temperature) · s⁻) with a single positive for each prompt. Embed-RL adds a process reward of a frozen judge,
    which is left out, and averages s⁺ over several positives; its k is not known to us.

    Args:
        rollout: Unit vectors after each thought, ``(P, G, D)``.
        target: Unit rows, ``(T, D)``.
        positive: The column of each prompt's positive, ``(P,)``.
        mask: True leaves a column out, bool ``(P, T)``.
        top_k: k; a target that ties with the positive stands before it.
        temperature: Of the softmax over the others' cosines.

    Returns:
        -2 to 2, ``(P, G)``.
    """
    is_found = rank_reward(rollout, target, positive, mask) > 1.0 / (top_k + 0.5)
    return torch.where(is_found, retrieval_margin(rollout, target, positive, mask, temperature=temperature), 0.0)


def group_margin(rollout: Tensor, groups: Tensor, own: Tensor, mask: Tensor | None = None) -> Tensor:
    """Share of the own positive's vectors among the nearest, times the margin of the own over the others' mean: UME-R1-like.

    A positive has M vectors, one after each of M thoughts of its own. For each rollout, with n vectors of all positives that compete:
    (own ones among its M nearest) / M × (mean cosine to its own − mean cosine to the others). UME-R1 rewards the thoughts of both sides so;
    here only the prompts' thoughts are rewarded, and hard negatives, which do not think, take no part. That its "top G" counts as many
    as a group has members, and that it draws its groups from all ranks, is our reading.

    Args:
        rollout: Unit vectors after each thought, ``(P, G, D)``.
        groups: Unit vectors of N positives, ``(N, M, D)``.
        own: The group of each prompt's positive, ``(P,)``.
        mask: True leaves a group out (its target equals the positive), bool ``(P, N)``.

    Returns:
        -2 to 2, ``(P, G)``; where every other group is left out, the mean cosine to the own one.
    """
    num_groups, size, width = groups.shape
    scores = _scores(rollout, groups.reshape(num_groups * size, width)).reshape(*rollout.shape[:2], num_groups, size)
    own_scores = scores[torch.arange(len(own), device=own.device), :, own].sort(dim=2, descending=True).values
    is_other = ~_left_out(own, mask, num_groups)[:, None, :, None].expand_as(scores)
    ahead = torch.stack([((scores >= own_scores[:, :, member, None, None]) & is_other).sum(dim=(2, 3)) for member in range(size)], dim=2)
    share = (ahead + torch.arange(size, device=own.device) < size).float().mean(dim=2)
    num_others = is_other.sum(dim=(2, 3))
    mean_other = torch.where(is_other, scores, 0.0).sum(dim=(2, 3)) / num_others.clamp(min=1)
    return share * (own_scores.mean(dim=2) - mean_other)


def _scores(rollout: Tensor, target: Tensor) -> Tensor:
    prompts, group, width = rollout.shape
    return cosine_scores(rollout.reshape(prompts * group, width), target).reshape(prompts, group, -1)


def _at(scores: Tensor, positive: Tensor) -> Tensor:
    column = positive[:, None, None].expand(-1, scores.shape[1], 1)
    return scores.gather(2, column).squeeze(2)


def _left_out(positive: Tensor, mask: Tensor | None, num_targets: int) -> Tensor:
    own = torch.nn.functional.one_hot(positive, num_classes=num_targets).bool()
    return own if mask is None else own | mask
