"""The best documents of each query, by all scores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from twn_lightning.errors import ConfigError, DataError

_BLOCK_NUMBERS = 2**24


@dataclass(frozen=True)
class Hits:
    """The best documents of each query, best first; of equally good ones the earlier.

    Attributes:
        scores: Cosine similarities, ``(Q, k)``.
        indices: Rows of the documents, ``(Q, k)``.
    """

    scores: Tensor
    indices: Tensor


def best_documents(queries: Tensor, documents: Tensor, *, top_k: int) -> Hits:
    """The best documents of each query among all.

    Args:
        queries: Unit rows, ``(Q, D)`` or ``(D,)``.
        documents: Unit rows, ``(C, D)``.
        top_k: Wanted, at least 1; as many as there are if there are fewer.

    Raises:
        ConfigError: top_k is less than 1.
        DataError: Shapes do not fit, or a vector holds NaN.
    """
    if top_k < 1:
        raise ConfigError(f"top_k is {top_k}; choose at least 1.")
    if documents.dim() != 2 or queries.shape[-1] != documents.shape[-1]:
        raise DataError(f"Queries have the shape {tuple(queries.shape)} and documents {tuple(documents.shape)}: give (Q, D) and (C, D) of one model.")
    rows = queries.float().reshape(-1, queries.shape[-1])
    num_best = min(top_k, len(documents))
    scores = torch.zeros(len(rows), 0, device=rows.device)
    indices = torch.zeros(len(rows), 0, dtype=torch.long, device=rows.device)
    step = max(num_best, _BLOCK_NUMBERS // max(1, len(rows)))
    for start in range(0, len(documents), step):
        block = rows @ documents[start : start + step].to(rows.device, torch.float32).T
        found, columns = _best(block, num_best)
        if bool(found[:, 0].isnan().any()):  # topk takes NaN for the largest of numbers
            raise DataError("A vector holds NaN, whose place in a ranking nobody knows: leave out the inputs that Encoding.errors names.")
        scores, indices = torch.cat([scores, found], dim=1), torch.cat([indices, columns + start], dim=1)
        order = scores.sort(dim=1, descending=True, stable=True).indices[:, :num_best]
        scores, indices = scores.gather(1, order), indices.gather(1, order)
    return Hits(scores, indices)


def _best(scores: Tensor, num_best: int) -> tuple[Tensor, Tensor]:
    """The best columns of each row and their scores, the earlier first among equals."""
    num_kept, width = min(num_best, scores.shape[1]), scores.shape[1]
    found = scores.topk(min(num_kept + 1, width), dim=1)
    values, columns = found.values[:, :num_kept], found.indices[:, :num_kept]
    is_equal = found.values[:, 1:] == found.values[:, :-1]
    has_equals = is_equal.any(dim=1)
    if bool(has_equals.any()):
        columns[has_equals] = columns[has_equals].sort(dim=1).values
        if num_kept < width:  # among scores equal to the last place's, topk may take any: the first of them are wanted
            is_open = is_equal[:, -1]
            columns[is_open] = scores[is_open].sort(dim=1, descending=True, stable=True).indices[:, :num_kept].sort(dim=1).values
        values = scores.gather(1, columns)
        order = values.sort(dim=1, descending=True, stable=True).indices
        values, columns = values.gather(1, order), columns.gather(1, order)
    return values, columns
