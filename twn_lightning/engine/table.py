"""Where rows are put down in whatever order they become ready."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from twn_lightning.errors import DataError
from twn_lightning.evaluation.encoded import EncodedItems


@dataclass
class Table:
    """A row for each input, on the CPU; vectors and probabilities are NaN until they are put down.

    Attributes:
        discriminative: Unit rows before any thought, float32 ``(N, D)``.
        generative: Unit rows after the thought, or the discriminative ones, ``(N, D)``; None where nothing is to think.
        gate_probability: ``(N,)``.
        num_reasoning_tokens: ``(N,)``.
        thought: Whether the input thought, bool ``(N,)``.
        texts: Its thought, or nothing.
        errors: Row → why it stays empty.
        truncated: Rows whose text was cut.
        stops_at_errors: Whether the first error is raised.
    """

    discriminative: Tensor
    generative: Tensor | None
    gate_probability: Tensor
    num_reasoning_tokens: Tensor
    thought: Tensor
    texts: list[str]
    errors: dict[int, str] = field(default_factory=dict)
    truncated: set[int] = field(default_factory=set)
    stops_at_errors: bool = False

    @classmethod
    def empty(cls, num_rows: int, *, width: int, with_generative: bool, stops_at_errors: bool = False) -> Table:
        """So many rows to come."""
        vectors = torch.full((num_rows, width), torch.nan)
        return cls(
            discriminative=vectors,
            generative=vectors.clone() if with_generative else None,
            gate_probability=torch.full((num_rows,), torch.nan),
            num_reasoning_tokens=torch.zeros(num_rows, dtype=torch.long),
            thought=torch.zeros(num_rows, dtype=torch.bool),
            texts=[""] * num_rows,
            stops_at_errors=stops_at_errors,
        )

    def fail(self, errors: Mapping[int, str]) -> None:
        """Notes rows that stay empty.

        Args:
            errors: Row → why.

        Raises:
            DataError: The first of them, if errors stop.
        """
        self.errors.update(errors)
        if errors and self.stops_at_errors:
            row = min(errors)
            raise DataError(f"Input {row}: {errors[row]}")

    def is_complete(self, row: int) -> bool:
        """Whether all of a row has been put down."""
        vectors = self.discriminative if self.generative is None else self.generative
        return not bool(vectors[row].isnan().any())

    def read(self, rows: Tensor, *, vector: Tensor, probability: Tensor, thinks: Tensor) -> None:
        """Puts down what is known before any thought.

        Args:
            rows: ``(R,)``.
            vector: Discriminative, ``(R, D)``.
            probability: ``(R,)``.
            thinks: Whose generative vector is still to come, ``(R,)``.
        """
        vector, thinks = vector.float().cpu(), thinks.cpu()
        self.discriminative[rows] = vector
        self.gate_probability[rows] = probability.float().cpu()
        self.thought[rows] = thinks
        if self.generative is not None:
            self.generative[rows[~thinks]] = vector[~thinks]

    def think(self, rows: Tensor, *, vector: Tensor, num_tokens: Tensor, texts: Sequence[str]) -> None:
        """Puts down what a thought brought.

        Args:
            rows: ``(R,)``.
            vector: Generative, ``(R, D)``.
            num_tokens: ``(R,)``.
            texts: As many.
        """
        assert self.generative is not None
        self.generative[rows] = vector.float().cpu()
        self.num_reasoning_tokens[rows] = num_tokens.cpu()
        for row, text in zip(rows.tolist(), texts, strict=True):
            self.texts[row] = text

    def copy(self, row: int, source: EncodedItems, number: int) -> None:
        """Puts down a row that was encoded before."""
        self.discriminative[row] = source.discriminative[number]
        if self.generative is not None and source.generative is not None:
            self.generative[row] = source.generative[number]
        self.gate_probability[row] = source.gate_probability[number]
        self.num_reasoning_tokens[row] = source.num_reasoning_tokens[number]
        self.thought[row] = source.thought[number]
        self.texts[row] = source.thoughts[number]

    def select(self, rows: Sequence[int]) -> EncodedItems:
        """Some rows."""
        chosen = torch.tensor(rows, dtype=torch.long)
        return EncodedItems(
            discriminative=self.discriminative[chosen],
            generative=None if self.generative is None else self.generative[chosen],
            gate_probability=self.gate_probability[chosen],
            num_reasoning_tokens=self.num_reasoning_tokens[chosen],
            thoughts=tuple(self.texts[row] for row in rows),
            seconds=0.0,
            thought=self.thought[chosen],
        )
