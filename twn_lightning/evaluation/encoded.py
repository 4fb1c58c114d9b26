"""What an encoding pass leaves: vectors of items, what was thought, and what it cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

ThinkMode: TypeAlias = Literal["never", "always", "auto"]


@dataclass(frozen=True)
class EncodedItems:
    """Vectors of items, in the items' order, on the CPU.

    Attributes:
        discriminative: Unit rows without reasoning, float32 ``(N, D)``.
        generative: Unit rows after reasoning (rows that did not think: the discriminative ones), ``(N, D)``; None if nothing was to think.
        gate_probability: That thinking helps, ``(N,)``.
        num_reasoning_tokens: Tokens written, ``(N,)``.
        thoughts: What was written, without markers; empty for rows that did not think.
        seconds: Wall-clock time it took to encode them, that of items already known included; the sum over ranks.
        thought: Which rows thought in this pass, bool ``(N,)``.
        state: What the gate read, ``(N, G)``, if it was to be kept.
    """

    discriminative: Tensor
    generative: Tensor | None
    gate_probability: Tensor
    num_reasoning_tokens: Tensor
    thoughts: tuple[str, ...]
    seconds: float
    thought: Tensor
    state: Tensor | None = None

    def __len__(self) -> int:
        return int(self.discriminative.shape[0])

    def thinks(self, mode: ThinkMode, *, threshold: float) -> Tensor:
        """Which rows use their generative vector in a mode, bool ``(N,)``; none where this pass wrote no thoughts.

        Args:
            mode: ``auto``: those whose gate probability is at least the threshold.
            threshold: 0 to 1.
        """
        if self.generative is None or mode == "never":
            return torch.zeros(len(self), dtype=torch.bool)
        if mode == "always":
            return self.thought
        return self.thought & (self.gate_probability >= threshold)

    def vectors(self, thinks: Tensor) -> Tensor:
        """Generative vectors of the rows that think, discriminative ones of the others, ``(N, D)``."""
        if self.generative is None or not bool(thinks.any()):
            return self.discriminative
        if bool(thinks.all()):
            return self.generative
        return torch.where(thinks[:, None], self.generative, self.discriminative)

    def reasoning_tokens(self, thinks: Tensor) -> int:
        """Tokens written for the rows that think."""
        return int(self.num_reasoning_tokens[thinks].sum())

    def select(self, rows: Tensor) -> EncodedItems:
        """The given rows, in the given order, with their share of the time; a row may be named several times.

        Args:
            rows: Row numbers, ``(R,)``.
        """
        return dataclasses.replace(
            self,
            **{name: tensor[rows] for name, tensor in self.tensors().items()},
            thoughts=tuple(self.thoughts[row] for row in rows.tolist()),
            seconds=self.seconds * len(rows) / max(1, len(self)),
        )

    def tensors(self) -> dict[str, Tensor]:
        """Everything that is a tensor, by name."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


def joined_rows(parts: Sequence[EncodedItems]) -> EncodedItems:
    """All rows one after the other.

    Args:
        parts: At least one, all with the same kinds of vectors.
    """
    names = parts[0].tensors()
    return dataclasses.replace(
        parts[0],
        **{name: torch.cat([part.tensors()[name] for part in parts]) for name in names},
        thoughts=tuple(thought for part in parts for thought in part.thoughts),
        seconds=sum(part.seconds for part in parts),
    )


def nothing_encoded(*, width: int, with_generative: bool, state_width: int | None = None) -> EncodedItems:
    """No rows, of vectors of a width and, where given, of states: the share of a rank that has nothing to do."""
    return EncodedItems(
        discriminative=torch.zeros(0, width),
        generative=torch.zeros(0, width) if with_generative else None,
        gate_probability=torch.zeros(0),
        num_reasoning_tokens=torch.zeros(0, dtype=torch.long),
        thoughts=(),
        seconds=0.0,
        thought=torch.zeros(0, dtype=torch.bool),
        state=None if state_width is None else torch.zeros(0, state_width),
    )
