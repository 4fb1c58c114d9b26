"""The weighted sum of reward parts."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from twn_lightning.errors import ConfigError

REWARD_NAMES = ("format", "retrieval", "rank", "gain", "length", "group_margin", "outcome")
"""Every part a weight may be given to. A new reward is a function and a name here."""


@dataclass(frozen=True)
class MixedReward:
    """What each rollout earned.

    Attributes:
        total: Weighted sum of the parts, ``(P, G)``.
        parts: Each part before weighting, ``(P, G)``, for the log.
    """

    total: Tensor
    parts: dict[str, Tensor]


@dataclass(frozen=True)
class RewardMix:
    """Weights of the reward's named parts; a part of weight 0 need not be computed.

    Attributes:
        weights: Of the names in `REWARD_NAMES`; a name that is absent has weight 0.
    """

    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.weights:
            if name not in REWARD_NAMES:
                close = difflib.get_close_matches(name, REWARD_NAMES, n=1)
                hint = f'Did you mean "{close[0]}"?' if close else f"Choose from {', '.join(REWARD_NAMES)}."
                raise ConfigError(f'There is no reward part "{name}". {hint}')
        if not self.names:
            raise ConfigError("No reward part has a weight, so every rollout would earn the same: give at least one of them a weight other than 0.")

    @property
    def names(self) -> tuple[str, ...]:
        """The parts that have to be computed."""
        return tuple(name for name in REWARD_NAMES if self.weights.get(name, 0.0) != 0.0)

    def __call__(self, parts: Mapping[str, Tensor]) -> MixedReward:
        """The weighted sum.

        Args:
            parts: At least the parts in `names`, each ``(P, G)``; others are passed on to the log unweighted.

        Raises:
            ConfigError: A part with a weight is missing.
        """
        missing = [name for name in self.names if name not in parts]
        if missing:
            raise ConfigError(f"The reward part(s) {', '.join(missing)} have a weight but were not computed: set the weight to 0, or compute them.")
        total = torch.stack([self.weights[name] * parts[name].float() for name in self.names]).sum(dim=0)
        return MixedReward(total=total, parts={name: part.float() for name, part in parts.items()})
