"""What becomes of a score when a query or a candidate turns out to be unreadable after the evaluation has begun."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from twn_lightning.errors import DataError
from twn_lightning.evaluation.rank import TaskRanking, rank_each
from twn_lightning.evaluation.task import RetrievalTask

_BEHIND = 3.0
"""Taken from the scores of unreadable candidates: cosines lie between -1 and 1, so that these stand behind all others."""


class NothingReadableError(DataError):
    """None of a task's queries can be opened, so that it has no ranking at all."""


@dataclass(frozen=True)
class Unreadable:
    """Queries and candidates of a task that could not be opened: key → why.

    A query that cannot be opened counts as wrong, 0 points in every mode: a search engine that cannot read a request has not answered it, and a
    mean over the others would be a mean over other data. A candidate that cannot be opened is ranked behind all others: it is not found where it is
    the answer, and where it is not it stands in nobody's way. The latter can only be to our advantage, and so the score of such a task is neither
    the one asked for nor a bound of it: the task, and each mean that contains it, is called incomplete.
    """

    queries: Mapping[str, str] = field(default_factory=dict)
    candidates: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.queries or self.candidates)

    def __str__(self) -> str:
        return unreadable_words(len(self.queries), len(self.candidates))


def unreadable_words(num_queries: int, num_candidates: int) -> str:
    """As in "2 queries and 1 candidate unreadable", without what there is none of."""
    counts = ((num_queries, "query", "queries"), (num_candidates, "candidate", "candidates"))
    return " and ".join(f"{count} {one if count == 1 else many}" for count, one, many in counts if count) + " unreadable"


def rank_readable(task: RetrievalTask, unreadable: Unreadable, vectors: Sequence[tuple[Tensor, Tensor]]) -> list[TaskRanking]:
    """As `rank_each`, by the rules of `Unreadable`; unreadable queries have an empty list of best candidates.

    Args:
        task: Whose order of queries and of candidates the rows follow.
        unreadable: By key.
        vectors: Queries and candidates; rows of unreadable ones are not looked at.

    Raises:
        NothingReadableError: No query is readable.
        TwnError: A score is NaN or infinite.
    """
    if not unreadable:
        return rank_each(task, vectors)
    rows = torch.tensor([number for number, query in enumerate(task.queries) if query.key not in unreadable.queries], dtype=torch.long)
    if not len(rows):
        raise NothingReadableError(f"Task {task.name}: none of its queries can be opened. The first: {next(iter(unreadable.queries.values()))}")
    behind = torch.tensor([-_BEHIND if key in unreadable.candidates else 0.0 for key in task.candidates])
    readable = dataclasses.replace(task, queries=[task.queries[row] for row in rows.tolist()])
    pairs = [(functional.pad(queries[rows], (0, 1), value=1.0), torch.cat([candidates, behind[:, None]], dim=1)) for queries, candidates in vectors]
    return [_spread(ranking, rows, num_queries=len(task.queries)) for ranking in rank_each(readable, pairs)]


def _spread(ranking: TaskRanking, rows: Tensor, *, num_queries: int) -> TaskRanking:
    """The ranking of the given queries among so many; the others have 0 points."""
    share = len(rows) / num_queries
    top: list[tuple[str, ...]] = [()] * num_queries
    for row, best in zip(rows.tolist(), ranking.top, strict=True):
        top[row] = best
    return TaskRanking(
        values=torch.zeros(num_queries).index_copy(0, rows, ranking.values),
        tie_rate=ranking.tie_rate * share,
        top=tuple(top),
        metrics={name: value * share for name, value in ranking.metrics.items()},
    )
