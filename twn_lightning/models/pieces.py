"""A batch of prompts in pieces of similar length, and their embeddings put together again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from twn_lightning.batches import Inputs
from twn_lightning.models.outputs import Embedding


def rows_by_length(inputs: Inputs, *, max_tokens: int | None) -> list[Tensor]:
    """Row numbers in pieces of similar length, the longest rows first.

    Args:
        inputs: Prompts.
        max_tokens: Tokens of a piece, padding included, at most; a single longer prompt is a piece of its own. None for one piece.
    """
    every = torch.arange(len(inputs), device=inputs.device)
    if max_tokens is None or len(inputs) <= 1:
        return [every]
    lengths, order = inputs.attention_mask.sum(dim=1).sort(descending=True, stable=True)
    pieces: list[Tensor] = []
    start, widths = 0, lengths.tolist()
    while start < len(widths):
        end = start + max(1, max_tokens // max(1, widths[start]))
        pieces.append(order[start:end])
        start = end
    return pieces if len(pieces) > 1 else [every]


def piece_of(inputs: Inputs, rows: Tensor) -> Inputs:
    """Some rows, without the columns in which all of them are padding.

    Args:
        inputs: Prompts, padded left or right.
        rows: Row numbers, ``(R,)``.
    """
    chosen = inputs.select(rows)
    used = chosen.attention_mask.any(dim=0)
    return replace(
        chosen,
        input_ids=chosen.input_ids[:, used],
        attention_mask=chosen.attention_mask[:, used],
        mm_token_type_ids=chosen.mm_token_type_ids[:, used],
    )


def joined(parts: Sequence[Embedding], pieces: Sequence[Tensor], *, num_rows: int) -> Embedding:
    """The embeddings of pieces as those of the whole batch, in its order.

    Args:
        parts: A piece each.
        pieces: Whose rows; the first ``num_rows`` of all of them together are each row of the batch once, and what comes after is left out.
        num_rows: Of the batch.
    """
    place = torch.cat(list(pieces))[:num_rows].argsort()
    states = [part.prompt_state for part in parts if part.prompt_state is not None]
    return Embedding(
        vector=torch.cat([part.vector for part in parts])[place],
        state=torch.cat([part.state for part in parts])[place],
        prompt_state=torch.cat(states)[place] if states else None,
    )
