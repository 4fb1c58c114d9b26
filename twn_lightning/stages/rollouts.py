"""Sampled thoughts and what they earned, kept over the inner epochs of stage 4."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from twn_lightning.batches import Thoughts


@dataclass(frozen=True)
class Rollouts:
    """Thoughts that were sampled for a batch, and what they earned.

    Attributes:
        keys: The prompts' keys.
        thoughts: G in a run for each of P prompts, ``P * G`` rows.
        log_probs: Of the written tokens when they were sampled, ``(P * G, T - 1)``.
        reference_log_probs: Under the reference adapter, ``(P * G, T - 1)``, or None without one.
        advantages: ``(P * G,)``.
        finished: Whether the thought was closed, bool ``(P, G)``.
        total: Mixed reward, ``(P, G)``.
        parts: Reward parts before weighting, each ``(P, G)``.
    """

    keys: tuple[str, ...]
    thoughts: Thoughts
    log_probs: Tensor
    reference_log_probs: Tensor | None
    advantages: Tensor
    finished: Tensor
    total: Tensor
    parts: Mapping[str, Tensor]

    def packed(self) -> dict[str, Any]:
        """Tensors, lists and strings only, for a checkpoint that is read with ``weights_only``."""
        fields = {name: getattr(self, name) for name in ("log_probs", "reference_log_probs", "advantages", "finished", "total")}
        return {**fields, "keys": list(self.keys), "token_ids": self.thoughts.token_ids, "mask": self.thoughts.mask, "parts": dict(self.parts)}

    @classmethod
    def unpacked(cls, packed: Mapping[str, Any], device: torch.device) -> Rollouts:
        """What `packed` was made from, on a device."""
        reference = packed["reference_log_probs"]
        return cls(
            keys=tuple(packed["keys"]),
            thoughts=Thoughts(token_ids=packed["token_ids"], mask=packed["mask"]).to(device),
            reference_log_probs=None if reference is None else reference.to(device),
            parts={name: part.to(device) for name, part in packed["parts"].items()},
            **{name: packed[name].to(device) for name in ("log_probs", "advantages", "finished", "total")},
        )
