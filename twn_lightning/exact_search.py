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
        if bool(block.isnan().any()):
            raise DataError("A vector holds NaN, whose place in a ranking nobody knows: leave out the inputs that Encoding.errors names.")
        numbers = torch.arange(start, start + block.shape[1], device=rows.device).expand(len(rows), -1)
        scores, indices = _best(torch.cat([scores, block], dim=1), torch.cat([indices, numbers], dim=1), num_best)
    return Hits(scores, indices)


def _best(scores: Tensor, indices: Tensor, num_best: int) -> tuple[Tensor, Tensor]:
    """The best columns of each row, the earlier first among equals."""
    num_kept = min(num_best, scores.shape[1])
    bound = scores.topk(num_kept, dim=1).values[:, -1:]
    # Among scores equal to the last place's, topk may take any: the first of them are wanted.
    above = scores > bound
    equal = scores == bound
    wanted = num_kept - above.sum(dim=1, keepdim=True)
    kept = above | (equal & (equal.cumsum(dim=1) <= wanted))
    columns = kept.nonzero()[:, 1].reshape(len(scores), num_kept)
    chosen, numbers = scores.gather(1, columns), indices.gather(1, columns)
    order = chosen.sort(dim=1, descending=True, stable=True).indices
    return chosen.gather(1, order), numbers.gather(1, order)
