"""Who writes the chains of thought: the model itself, or another engine with its reasoning adapter, whose tokens the model then reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Protocol

import torch

from twn_lightning.batches import Inputs
from twn_lightning.models.outputs import Decoding, Encoded
from twn_lightning.models.prefix import Prefix

if TYPE_CHECKING:
    from twn_lightning.models.dual_lora import DualLoRAModel


class ThoughtWriter(Protocol):
    """Continues prompts with chains of thought."""

    @property
    def name(self) -> str:
        """For reports and cache keys: thoughts of two writers may differ in a token, and so their vectors."""

    def write(self, prompts: Inputs, prefix: Prefix, decoding: Decoding, *, generator: torch.Generator | None) -> Prefix:
        """The prefix with a chain of thought behind each prompt, in order, read by the model.

        Args:
            prompts: On the model's device.
            prefix: What the model has read of these prompts; it stays as it is.
            decoding: How tokens are chosen.
            generator: Of the sampling, on the model's device; None for the global one.

        Raises:
            TwnError: The thoughts cannot be written.
        """


class OwnWriter:
    """The model's own generation, which goes on from the cache that the prompts left.

    Args:
        model: Writes and reads.
    """

    name = "own"

    def __init__(self, model: DualLoRAModel) -> None:
        self._model = model

    def write(self, prompts: Inputs, prefix: Prefix, decoding: Decoding, *, generator: torch.Generator | None) -> Prefix:
        """See `ThoughtWriter.write`."""
        return self._model.think(prefix, decoding, generator=generator).prefix


def encode_batch(
    model: DualLoRAModel,
    inputs: Inputs,
    *,
    think: Literal["never", "always", "auto"],
    decoding: Decoding,
    generator: torch.Generator | None,
    writer: ThoughtWriter,
) -> Encoded:
    """One encoding pass: prefill, discriminative embedding, gate, and the thoughts of the rows that think (see `DualLoRAModel.encode`).

    Args:
        model: Embeds.
        inputs: Prompts.
        think: "auto" lets the gate decide for each row.
        decoding: How chains of thought are written.
        generator: Of the sampling.
        writer: Who writes them.
    """
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
        every = len(rows) == len(prefix)
        written = writer.write(inputs if every else inputs.select(rows), prefix if every else prefix.select(rows), decoding, generator=generator)
        thoughts = written.thoughts
        assert thoughts is not None
        generative[rows] = model.embed(written).vector
        num_tokens[rows] = thoughts.num_reasoning_tokens
    return Encoded(discriminative.vector, state, probability, thinks, generative, num_tokens, thoughts)
