"""From vectors to the value of each query."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twn_lightning.errors import TwnError
from twn_lightning.evaluation.task import MetricName, Query, RetrievalTask
from twn_lightning.losses.info_nce import cosine_scores
from twn_lightning.metrics import ranking

HEADLINE: dict[MetricName, Callable[[Tensor], Tensor]] = {
    "hit@1": lambda grades: ranking.hit_at_k(grades, 1),
    "ndcg@5": lambda grades: ranking.ndcg_at_k(grades, 5),
}
"""What each metric name computes from grades in ranked order."""

_CHUNK_NUMBERS = 2**24


@dataclass(frozen=True)
class TaskRanking:
    """A task's queries, ranked.

    Attributes:
        values: The headline metric of each query, 0 to 1, ``(Q,)``.
        tie_rate: Share of queries whose best relevant candidate tied with one that is not relevant, 0 to 1.
        top: Keys of the best candidates of each query, best first; a tie is listed as it was counted, against us.
        metrics: Means over the queries of `metrics.ranking.all_metrics`, 0 to 1.
    """

    values: Tensor
    tie_rate: float
    top: tuple[tuple[str, ...], ...]
    metrics: dict[str, float]


def rank_task(task: RetrievalTask, queries: Tensor, candidates: Tensor, *, num_top: int = 100) -> TaskRanking:
    """Ranks every query's candidates by float32 dot products.

    Args:
        task: Whose order of queries and of candidates the rows follow.
        queries: Unit rows, ``(Q, D)``.
        candidates: Unit rows, ``(C, D)``.
        num_top: Length of the lists in `TaskRanking.top`.

    Raises:
        TwnError: A score is NaN or infinite.
    """
    if len(queries) != len(task.queries) or len(candidates) != len(task.candidates):
        raise TwnError(
            f"Task {task.name} has {len(task.queries)} queries and {len(task.candidates)} candidates, but {len(queries)} and {len(candidates)} "
            "vectors were given: encode this very task's queries and candidates."
        )
    keys = list(task.candidates)
    column = {key: number for number, key in enumerate(keys)}
    values, tied, metrics = [], [], []
    top: list[tuple[str, ...]] = []
    for start, stop in _chunks(task, candidates):
        scores, grades, columns = _chunk(task.queries[start:stop], column, queries[start:stop], candidates)
        try:
            ranked = ranking.rank_candidates(scores, grades)
        except TwnError as error:
            raise TwnError(f"Task {task.name}, queries {start} to {stop - 1}: {error}") from error
        values.append(HEADLINE[task.metric](ranked.grades))
        tied.append(ranked.tied)
        metrics.append(ranking.all_metrics(ranked.grades))
        best = columns.gather(1, ranked.order[:, :num_top]).tolist()
        top.extend(tuple(keys[number] for number in row if number >= 0) for row in best)
    return TaskRanking(
        values=torch.cat(values),
        tie_rate=float(torch.cat(tied).float().mean()),
        top=tuple(top),
        metrics={name: float(torch.cat([part[name] for part in metrics]).double().mean()) for name in metrics[0]},
    )


def _chunks(task: RetrievalTask, candidates: Tensor) -> list[tuple[int, int]]:
    vectors_of_a_query = max(len(query.candidates or ()) for query in task.queries) * candidates.shape[1]
    size = max(1, _CHUNK_NUMBERS // max(1, len(candidates), vectors_of_a_query))
    return [(start, min(start + size, len(task.queries))) for start in range(0, len(task.queries), size)]


def _chunk(queries: Sequence[Query], column: dict[str, int], vectors: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, grades and candidate numbers (-1 for padding) of some queries, each ``(Q, C)``."""
    if queries[0].candidates is None:
        columns = torch.arange(len(candidates)).expand(len(queries), -1)
        scores = cosine_scores(vectors, candidates).cpu()
    else:
        lists = [torch.tensor([column[key] for key in query.candidates or ()]) for query in queries]
        columns = torch.nn.utils.rnn.pad_sequence(lists, batch_first=True, padding_value=-1)
        own = candidates[columns.clamp(min=0).to(candidates.device)].float()
        scores = (own @ vectors.float()[:, :, None]).squeeze(2).cpu().masked_fill(columns < 0, -torch.inf)
    grades = torch.zeros_like(scores)
    for row, query in enumerate(queries):
        place = {int(number): at for at, number in enumerate(columns[row].tolist())} if query.candidates is not None else None
        for key, grade in query.labels.items():
            number = column[key]
            grades[row, number if place is None else place[number]] = grade
    return scores, grades, columns
