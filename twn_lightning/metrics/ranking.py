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
        order: Columns of the scores in the first P places, ``(Q, P)``.
        grades: Relevance in that order, at least 0, then that of the relevant candidates in no such place, then zeros, ``(Q, P + R)``: all that a
            metric at k ≤ P looks at.
        tied: Whether a candidate that is not relevant ties with the best relevant one, bool ``(Q,)``.
    """

    order: Tensor
    grades: Tensor
    tied: Tensor


@dataclass(frozen=True)
class Labels:
    """The relevant candidates of Q queries, which are few among C.

    Attributes:
        rows: Query of each, ascending, ``(R,)``.
        columns: Which candidate, ``(R,)``.
        grades: Above 0, float32 ``(R,)``.
    """

    rows: Tensor
    columns: Tensor
    grades: Tensor

    @classmethod
    def of(cls, grades: Tensor) -> Labels:
        """Of relevance, 0 for not relevant, ``(Q, C)``."""
        rows, columns = grades.nonzero(as_tuple=True)
        return cls(rows, columns, grades[rows, columns])

    def within(self, start: int, stop: int) -> Labels:
        """Of the queries from one to before another, which are numbered from 0 again."""
        first, last = torch.searchsorted(self.rows, torch.tensor([start, stop], device=self.rows.device)).tolist()
        return Labels(self.rows[first:last] - start, self.columns[first:last], self.grades[first:last])

    def table(self, num_queries: int, num_candidates: int) -> Tensor:
        """Relevance, 0 for not relevant, ``(Q, C)``."""
        table = self.grades.new_zeros(num_queries, num_candidates)
        table[self.rows, self.columns] = self.grades
        return table


def rank_candidates(scores: Tensor, labels: Labels | Tensor, *, num_places: int | None = None, tolerance: float = TIE_TOLERANCE) -> Ranked:
    """Sorts candidates by score; at a tie the less relevant one stands first, then the one of the lower column.

    Args:
        scores: ``(Q, C)``; ``-inf`` marks padding, which must not be relevant.
        labels: Relevant candidates, or the table of them, ``(Q, C)``.
        num_places: First places that are wanted, at least 1; None for all. The other places cost more than all else.
        tolerance: A candidate ties with a relevant one if their scores are at most this far apart.

    Raises:
        TwnError: A score is NaN or infinite: it has no rank.
    """
    _refuse_nan(scores)
    labels = Labels.of(labels) if isinstance(labels, Tensor) else labels
    rows, columns = labels.rows, labels.columns
    relevant = scores[rows, columns]
    best = scores.new_full((len(scores),), -torch.inf).scatter_reduce_(0, rows, relevant, "amax")
    others = scores.clone()
    others[rows, columns] = -torch.inf
    tied = (others - best[:, None]).abs_().amin(dim=1) <= tolerance
    others[rows, columns] = relevant - tolerance
    order = _first_places(others, labels, scores.shape[1] if num_places is None else num_places)
    row, place = (order[rows] == columns[:, None]).nonzero(as_tuple=True)
    is_placed = torch.zeros_like(rows, dtype=torch.bool).index_fill_(0, row, True)
    grades = labels.grades.new_zeros(order.shape).index_put_((rows[row], place), labels.grades[row])
    unplaced = _rows_of(labels.grades[~is_placed], rows[~is_placed], num_rows=len(scores))
    return Ranked(order=order, grades=torch.cat([grades, unplaced], dim=1), tied=tied)


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


def _first_places(scores: Tensor, labels: Labels, num_places: int) -> Tensor:
    """Columns by score; of equal ones the lower grade first, then the lower column, ``(Q, P)``."""
    height, width = scores.shape
    if num_places >= width:
        return _in_order(scores, labels.table(height, width), torch.arange(width, device=scores.device).expand(height, -1))
    found = scores.topk(num_places + 1, dim=1)
    order, is_equal = found.indices[:, :num_places], found.values[:, 1:] == found.values[:, :-1]
    has_equals = is_equal.any(dim=1)
    if bool(has_equals.any()):
        grades, is_open = labels.table(height, width), is_equal[:, -1]
        order[has_equals] = _in_order(scores[has_equals], grades[has_equals], order[has_equals].sort(dim=1).values)
        every = torch.arange(width, device=scores.device).expand(int(is_open.sum()), -1)  # of equals at the last place topk takes any
        order[is_open] = _in_order(scores[is_open], grades[is_open], every)[:, :num_places]
    return order


def _in_order(scores: Tensor, grades: Tensor, columns: Tensor) -> Tensor:
    """Some columns, which are given in ascending order, in the order of `_first_places`."""
    columns = columns.gather(1, grades.gather(1, columns).argsort(dim=1, stable=True))
    return columns.gather(1, scores.gather(1, columns).argsort(dim=1, descending=True, stable=True))


def _rows_of(values: Tensor, rows: Tensor, *, num_rows: int) -> Tensor:
    """Values of each row from the left, then zeros; ``rows`` ascends."""
    counts = torch.bincount(rows, minlength=num_rows)
    place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    table = values.new_zeros(num_rows, int(counts.max()))
    table[rows, place] = values
    return table


def _refuse_nan(scores: Tensor) -> None:
    worst = scores.amax(dim=1)  # NaN if there is one
    bad = worst.isnan() | (worst == torch.inf)
    if bool(bad.any()):
        first = int(bad.int().argmax())
        raise TwnError(
            f"{int(bad.sum())} of {len(bad)} queries have a score that is NaN or infinite (the first is row {first}), and that has no rank: "
            "the model's vectors are not finite. Look at the last training steps' loss, or choose a wider dtype."
        )
