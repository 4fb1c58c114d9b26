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


def _scores(rollout: Tensor, target: Tensor) -> Tensor:
    prompts, group, width = rollout.shape
    return cosine_scores(rollout.reshape(prompts * group, width), target).reshape(prompts, group, -1)


def _at(scores: Tensor, positive: Tensor) -> Tensor:
    column = positive[:, None, None].expand(-1, scores.shape[1], 1)
    return scores.gather(2, column).squeeze(2)


def _left_out(positive: Tensor, mask: Tensor | None, num_targets: int) -> Tensor:
    own = torch.nn.functional.one_hot(positive, num_classes=num_targets).bool()
    return own if mask is None else own | mask
