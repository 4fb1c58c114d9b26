"""What a user of a trained model imports: items in, vectors out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, overload

import torch
from torch import Tensor

from twn_lightning.batches import Item
from twn_lightning.checkpoints import BundleDefaults, load_bundle
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.gate import threshold_within
from twn_lightning.models.outputs import Decoding

Side: TypeAlias = Literal["query", "candidate"]
Think: TypeAlias = Literal["never", "always", "auto"]
EncoderInput: TypeAlias = str | Item | Sequence[str | Item]
"""One input or several; a string is an item with only text."""


@dataclass(frozen=True)
class Encoding:
    """Vectors, and what the model thought to get them.

    Attributes:
        vectors: Unit rows in the order of the inputs, float32 on the CPU, ``(N, D)``.
        thoughts: The chain of thought of each input; empty where it did not think.
        num_reasoning_tokens: Tokens written for each input, ``(N,)``.
        gate_probability: That thinking helps, ``(N,)``.
    """

    vectors: Tensor
    thoughts: tuple[str, ...]
    num_reasoning_tokens: Tensor
    gate_probability: Tensor


class Encoder:
    """Embeds text, pictures, clips and mixtures with a trained bundle.

    Args:
        model: A loaded model.
        decoding: How chains of thought are written; greedy by default.

    Example:
        >>> encoder = Encoder.from_pretrained("runs/mini/gate/bundle")
        >>> query = encoder.encode("a red bird")
        >>> scores = encoder.similarity(query, encoder.encode([Item(images=(Path("bird.png"),))]))
    """

    def __init__(self, model: DualLoRAModel, *, decoding: Decoding | None = None) -> None:
        self.model = model.eval()
        self.decoding = decoding or Decoding()

    @classmethod
    def from_pretrained(
        cls,
        bundle: str | Path,
        *,
        device: str = "cpu",
        decoding: Decoding | None = None,
        fallback: BundleDefaults | None = None,
    ) -> Encoder:
        """Loads a bundle and its backbone.

        Args:
            bundle: Folder that a stage wrote.
            device: Where to run.
            decoding: How chains of thought are written.
            fallback: For a folder without twn_config.json.

        Raises:
            CheckpointError: The bundle cannot be loaded.
        """
        model = load_bundle(bundle, fallback=fallback)
        return cls(model.to(device), decoding=decoding)

    @overload
    def encode(
        self,
        inputs: EncoderInput,
        *,
        think: Think = "auto",
        budget: float | None = None,
        side: Side = "query",
        batch_size: int = 32,
        return_thoughts: Literal[False] = False,
    ) -> Tensor: ...

    @overload
    def encode(
        self,
        inputs: EncoderInput,
        *,
        think: Think = "auto",
        budget: float | None = None,
        side: Side = "query",
        batch_size: int = 32,
        return_thoughts: Literal[True],
    ) -> Encoding: ...

    @torch.no_grad()
    def encode(
        self,
        inputs: EncoderInput,
        *,
        think: Think = "auto",
        budget: float | None = None,
        side: Side = "query",
        batch_size: int = 32,
        return_thoughts: bool = False,
    ) -> Tensor | Encoding:
        """Unit vectors of the inputs, in order.

        Args:
            inputs: Strings, items, or both.
            think: Whether to reason before embedding; "auto" lets the gate decide for each input.
            budget: Reasoning tokens an input, on average, that "auto" should spend: the gate's threshold is then the one that spent this much
                on the validation tasks the bundle was made with. None: the bundle's own threshold. Inputs unlike those tasks' spend other amounts;
                `Encoding.num_reasoning_tokens` tells.
            side: What the inputs are, for the budget: thoughts of queries and of candidates differ in number and length.
            batch_size: Inputs run together, at least 1.
            return_thoughts: Gives the chains of thought and their cost too.

        Returns:
            Float32 on the CPU, ``(N, D)``, or ``(D,)`` for one input that is not in a sequence; with ``return_thoughts`` an `Encoding`, in which
            one input counts as a sequence of one.

        Raises:
            ConfigError: An argument is out of range, or the bundle knows no threshold for the budget.
            DataError: There is no input, or one is empty or its media cannot be read.
        """
        if think not in ("never", "always", "auto"):
            raise ConfigError(f"think is {think!r}; choose never, always or auto.")
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; it must be at least 1.")
        threshold = self._threshold(think, budget, side)
        sequence = [inputs] if isinstance(inputs, str | Item) else list(inputs)
        if not sequence:
            raise DataError("There is nothing to encode: the list of inputs is empty.")
        items = [Item(text=entry) if isinstance(entry, str) else entry for entry in sequence]
        with self._gate_at(threshold):
            parts = [self._encode_batch(items[start : start + batch_size], think) for start in range(0, len(items), batch_size)]
        vectors = torch.cat([part.vectors for part in parts])
        if not return_thoughts:
            return vectors[0] if isinstance(inputs, str | Item) else vectors
        return Encoding(
            vectors=vectors,
            thoughts=tuple(thought for part in parts for thought in part.thoughts),
            num_reasoning_tokens=torch.cat([part.num_reasoning_tokens for part in parts]),
            gate_probability=torch.cat([part.gate_probability for part in parts]),
        )

    @staticmethod
    def similarity(queries: Tensor, candidates: Tensor) -> Tensor:
        """Cosine similarity of each query with each candidate, in [-1, 1].

        Args:
            queries: Unit rows, ``(Q, D)`` or ``(D,)``.
            candidates: Unit rows, ``(C, D)`` or ``(D,)``.

        Returns:
            ``(Q, C)``.
        """
        return queries.float().reshape(-1, queries.shape[-1]) @ candidates.float().reshape(-1, candidates.shape[-1]).T

    def _threshold(self, think: Think, budget: float | None, side: Side) -> float:
        gate = self.model.gate
        if side not in ("query", "candidate"):
            raise ConfigError(f"side is {side!r}; choose query or candidate.")
        if budget is None:
            return gate.threshold
        if think != "auto":
            raise ConfigError(f'budget is {budget:g} and think is "{think}": a budget is what the gate is to keep to; leave one of them out.')
        return threshold_within(gate.curve, lambda point: point[f"{side}_tokens"], budget=budget)

    @contextmanager
    def _gate_at(self, threshold: float) -> Iterator[None]:
        own = self.model.gate.threshold
        self.model.gate.threshold = threshold
        try:
            yield
        finally:
            self.model.gate.threshold = own

    def _encode_batch(self, items: Sequence[Item], think: Think) -> Encoding:
        inputs = self.model.processor.inputs(items).to(self.model.device)
        encoded = self.model.encode(inputs, think=think, decoding=self.decoding)
        texts = iter(() if encoded.thoughts is None else self.model.processor.decode(encoded.thoughts))
        return Encoding(
            vectors=encoded.vector.cpu(),
            thoughts=tuple(next(texts) if thought else "" for thought in encoded.thinks.tolist()),
            num_reasoning_tokens=encoded.num_reasoning_tokens.cpu(),
            gate_probability=encoded.gate_probability.cpu(),
        )
