"""One encoding pass: prefill, discriminative embedding, gate, and the thoughts of the rows that think."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch

from twn_lightning.batches import Inputs
from twn_lightning.models.outputs import Decoding, Encoded

if TYPE_CHECKING:
    from twn_lightning.models.dual_lora import DualLoRAModel


def encode_batch(
    model: DualLoRAModel, inputs: Inputs, *, think: Literal["never", "always", "auto"], decoding: Decoding, generator: torch.Generator | None
) -> Encoded:
    """See `DualLoRAModel.encode`."""
    prefix = model.prefill(inputs)
    discriminative = model.embed(prefix)
    state = model.gate.reading(discriminative)
    probability = model.gate.probability(state)
    thinks = {
        "never": torch.zeros_like(probability, dtype=torch.bool),
        "always": torch.ones_like(probability, dtype=torch.bool),
        "auto": probability >= model.gate.threshold,
    }[think]
    generative, num_tokens = discriminative.vector.clone(), torch.zeros_like(probability, dtype=torch.long)
    rows, thoughts = thinks.nonzero().squeeze(1), None
    if len(rows):
        rollout = model.think(prefix if len(rows) == len(prefix) else prefix.select(rows), decoding, generator=generator)
        thoughts = rollout.thoughts
        generative[rows] = model.embed(rollout.prefix).vector
        num_tokens[rows] = thoughts.num_reasoning_tokens
    return Encoded(discriminative.vector, state, probability, thinks, generative, num_tokens, thoughts)
