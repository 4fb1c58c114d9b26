"""Ranking metrics for each query, from the grades in ranked order; ties are resolved against us.

The formulas are those of MMEB-V2. They agree with torchmetrics except average precision, which is divided by min(labels, k) here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from twn_lightning.errors import TwnError

TIE_TOLERANCE = 1e-6
"""Scores this close are a tie: the float32 dot product of two equal pairs of vectors may differ by its rounding."""


@dataclass(frozen=True)
class Ranked:
    """Candidates of each query, best first.

    Attributes:
        order: Columns of the scores, ``(Q, C)``.
        grades: Relevance in that order, at least 0, ``(Q, C)``.
        tied: Whether a candidate that is not relevant ties with the best relevant one, bool ``(Q,)``.
    """

    order: Tensor
    grades: Tensor
    tied: Tensor


def rank_candidates(scores: Tensor, grades: Tensor, *, tolerance: float = TIE_TOLERANCE) -> Ranked:
    """Sorts candidates by score; at a tie the less relevant one stands first.

    Args:
        scores: ``(Q, C)``; ``-inf`` marks padding, which must have grade 0.
        grades: Relevance, 0 for not relevant, ``(Q, C)``.
        tolerance: A candidate ties with a relevant one if their scores are at most this far apart.

    Raises:
        TwnError: A score is NaN or infinite: it has no rank.
    """
    _refuse_nan(scores)
    relevant = grades > 0
    handicapped = torch.where(relevant, scores - tolerance, scores)
    by_grade = grades.argsort(dim=1, stable=True)
    by_score = handicapped.gather(1, by_grade).argsort(dim=1, descending=True, stable=True)
    order = by_grade.gather(1, by_score)
    best = scores.masked_fill(~relevant, -torch.inf).amax(dim=1, keepdim=True)
    tied = (~relevant & (scores > -torch.inf) & ((scores - best).abs() <= tolerance)).any(dim=1)
    return Ranked(order=order, grades=grades.gather(1, order), tied=tied)


def hit_at_k(grades: Tensor, k: int) -> Tensor:
    """1 if any of the first k is relevant, else 0.

    Args:
        grades: Relevance in ranked order, ``(Q, C)``.
        k: At least 1; more than C is the same as C.

    Returns:
        ``(Q,)``.
    """
    return (grades[:, :k] > 0).any(dim=1).float()


def precision_at_k(grades: Tensor, k: int) -> Tensor:
    """Relevant ones among the first k, divided by k; arguments as in `hit_at_k`."""
    return (grades[:, :k] > 0).sum(dim=1).float() / k


def recall_at_k(grades: Tensor, k: int) -> Tensor:
    """Relevant ones among the first k, divided by all relevant ones (0 if there are none); arguments as in `hit_at_k`."""
    return (grades[:, :k] > 0).sum(dim=1).float() / _num_relevant(grades)


def mrr_at_k(grades: Tensor, k: int) -> Tensor:
    """One over the rank of the first relevant one, 0 if it is not among the first k; arguments as in `hit_at_k`."""
    hits = (grades[:, :k] > 0).float()
    return (hits / _positions(hits)).amax(dim=1)


def average_precision_at_k(grades: Tensor, k: int) -> Tensor:
    """Mean over the relevant ones of the precision at their rank, divided by min(relevant ones, k); arguments as in `hit_at_k`."""
    hits = (grades[:, :k] > 0).float()
    precision = hits.cumsum(dim=1) / _positions(hits)
    return (precision * hits).sum(dim=1) / _num_relevant(grades).clamp(max=float(k))


def ndcg_at_k(grades: Tensor, k: int, *, gain: Literal["linear", "exponential"] = "linear") -> Tensor:
    """Discounted gain of the first k, divided by the best possible (Järvelin & Kekäläinen, 2002).

    Args:
        grades: Relevance in ranked order, of **all** candidates (the ideal order is made of them), ``(Q, C)``.
        k: At least 1.
        gain: ``linear`` counts the grade, ``exponential`` 2^grade - 1; equal for grades 0 and 1.

    Returns:
        0 to 1, ``(Q,)``; 0 for a query without a relevant candidate.
    """
    gains = grades.float() if gain == "linear" else torch.exp2(grades.float()) - 1.0
    ideal = gains.sort(dim=1, descending=True).values
    discounted = _discounted(gains[:, :k])
    return torch.where(ideal[:, 0] > 0, discounted / _discounted(ideal[:, :k]).clamp(min=1e-12), 0.0)


def all_metrics(grades: Tensor, ks: tuple[int, ...] = (1, 5, 10)) -> dict[str, Tensor]:
    """Every metric of this file at each k, under the names that VLM2Vec's score files use (``ndcg_linear@5``), each ``(Q,)``.

    Args:
        grades: Relevance in ranked order, of all candidates, ``(Q, C)``.
        ks: Each at least 1.
    """
    figures = {}
    for k in ks:
        precision, recall = precision_at_k(grades, k), recall_at_k(grades, k)
        figures[f"hit@{k}"] = hit_at_k(grades, k)
        figures[f"ndcg_linear@{k}"] = ndcg_at_k(grades, k)
        figures[f"ndcg_exponential@{k}"] = ndcg_at_k(grades, k, gain="exponential")
        figures[f"precision@{k}"] = precision
        figures[f"recall@{k}"] = recall
        figures[f"f1@{k}"] = 2 * precision * recall / (precision + recall).clamp(min=1e-12)
        figures[f"map@{k}"] = average_precision_at_k(grades, k)
        figures[f"mrr@{k}"] = mrr_at_k(grades, k)
    return figures


def _discounted(gains: Tensor) -> Tensor:
    return (gains / (_positions(gains) + 1.0).log2()).sum(dim=1)


def _positions(columns: Tensor) -> Tensor:
    return torch.arange(1, columns.shape[1] + 1, device=columns.device, dtype=torch.float32)


def _num_relevant(grades: Tensor) -> Tensor:
    return (grades > 0).sum(dim=1).float().clamp(min=1.0)


def _refuse_nan(scores: Tensor) -> None:
    bad = (scores.isnan() | (scores == torch.inf)).any(dim=1)
    if bool(bad.any()):
        first = int(bad.int().argmax())
        raise TwnError(
            f"{int(bad.sum())} of {len(bad)} queries have a score that is NaN or infinite (the first is row {first}), and that has no rank: "
            "the model's vectors are not finite. Look at the last training steps' loss, or choose a wider dtype."
        )
