"""Contrastive losses. Gathering over ranks and the column of each positive are the caller's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def cosine_scores(query: Tensor, target: Tensor) -> Tensor:
    """Dot products in float32, also under autocast: in bfloat16 about one score in three ties with another.

    Args:
        query: Rows, ``(Q, D)``.
        target: Rows, ``(T, D)``.

    Returns:
        ``(Q, T)``, float32.
    """
    with torch.autocast(device_type=query.device.type, enabled=False):
        return query.float() @ target.float().T


def positive_log_probs(query: Tensor, target: Tensor, positive: Tensor, *, temperature: float, mask: Tensor | None = None) -> Tensor:
    """Log-softmax score u of each query's positive among the targets, in nats.

    Args:
        query: Unit rows, ``(Q, D)``.
        target: Unit rows, ``(T, D)``.
        positive: The column of each query's positive, ``(Q,)``.
        temperature: Divides the cosine scores.
        mask: True leaves a column out of a row's softmax, bool ``(Q, T)``; the positive's own column must be False.

    Returns:
        At most 0, ``(Q,)``, float32.
    """
    scores = cosine_scores(query, target) / temperature
    if mask is not None:
        scores = scores.masked_fill(mask, -torch.inf)
    return scores.log_softmax(dim=1).gather(1, positive[:, None]).squeeze(1)


def info_nce(
    query: Tensor,
    target: Tensor,
    positive: Tensor,
    *,
    temperature: float,
    mask: Tensor | None = None,
    weight: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy of each query against every target (van den Oord et al., 2018, eq. 4).

    Args:
        query: Unit rows, ``(Q, D)``.
        target: Unit rows, ``(T, D)``; may hold rows gathered from other ranks.
        positive: The column of each query's positive, ``(Q,)``.
        temperature: Divides the cosine scores.
        mask: True leaves a column out of a row's softmax (an equal target, see `false_negative_mask`), bool ``(Q, T)``.
        weight: Share of each query in the mean, ``(Q,)``, not negative, not all zero; equal shares if None.

    Returns:
        A scalar in nats.
    """
    loss = -positive_log_probs(query, target, positive, temperature=temperature, mask=mask)
    if weight is None:
        return loss.mean()
    return (loss * weight).sum() / weight.sum()


def symmetric_info_nce(
    query: Tensor,
    positive: Tensor,
    all_queries: Tensor,
    all_targets: Tensor,
    column: Tensor,
    *,
    temperature: float,
    query_mask: Tensor | None = None,
    positive_mask: Tensor | None = None,
) -> Tensor:
    """Mean of query → target and positive → query InfoNCE.

    Args:
        query: Unit rows of this rank, ``(B, D)``.
        positive: Unit rows of this rank, ``(B, D)``; row i answers query i.
        all_queries: Queries of all ranks, ``(N, D)``.
        all_targets: Positives of all ranks in the same order, then any hard negatives, ``(N + M, D)``.
        column: Where this rank's rows stand in both, ``(B,)``.
        temperature: Divides the cosine scores.
        query_mask: True leaves a target out of a query's softmax, bool ``(B, N + M)``.
        positive_mask: True leaves a query out of a positive's softmax, bool ``(B, N)``.

    Returns:
        A scalar in nats.
    """
    forward = info_nce(query, all_targets, column, temperature=temperature, mask=query_mask)
    backward = info_nce(positive, all_queries, column, temperature=temperature, mask=positive_mask)
    return (forward + backward) / 2


def false_negative_mask(query_hash: Tensor, target_hash: Tensor, positive: Tensor) -> Tensor:
    """Which columns hold a query's own target a second time and must not be its negatives.

    Args:
        query_hash: Hash of each query's target, int64 ``(Q,)``.
        target_hash: Hash of each column's target, int64 ``(T,)``.
        positive: The column of each query's positive, ``(Q,)``; never masked.

    Returns:
        True where the column is to be left out, bool ``(Q, T)``.
    """
    own = functional.one_hot(positive, num_classes=target_hash.shape[0]).bool()
    return (query_hash[:, None] == target_hash[None, :]) & ~own
