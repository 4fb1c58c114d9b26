"""From vectors to the value of each query."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from twn_lightning.errors import TwnError
from twn_lightning.evaluation.task import MetricName, RetrievalTask
from twn_lightning.losses.info_nce import cosine_scores
from twn_lightning.metrics import ranking
from twn_lightning.metrics.ranking import Labels, Ranked

HEADLINE: dict[MetricName, Callable[[Tensor], Tensor]] = {
    "hit@1": lambda grades: ranking.hit_at_k(grades, 1),
    "ndcg@5": lambda grades: ranking.ndcg_at_k(grades, 5),
}
"""What each metric name computes from grades in ranked order."""

_BLOCK_NUMBERS = 2**24
"""Scores of a block, at most, unless one query has more; products of large matrices are the faster ones."""
_CHUNK_NUMBERS = 2**19
"""Scores that are ranked at a time: what is looked at several times stays in the processor's cache."""
_MOST_PLACES = 10
"""The highest k of any metric."""
_SHARED = 16
"""A product of matrices reads so many more candidates in the time in which each query's own are gathered."""


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


@dataclass(frozen=True)
class Block:
    """Some of a task's queries with what each of them chooses among; it holds no vectors, so that one block serves many sets of them.

    Attributes:
        rows: Which queries.
        columns: Numbers of their candidates, -1 for padding, ``(Q, C)``.
        labels: Relevant ones among those.
        is_global: Whether every query chooses among all candidates, in their order.
        shares: Whether queries share so many candidates that one product with all of them is cheaper than a product for each query.
    """

    rows: slice
    columns: Tensor
    labels: Labels
    is_global: bool
    shares: bool = False

    @property
    def grades(self) -> Tensor:
        """Relevance of each candidate, 0 for padding, ``(Q, C)``."""
        return self.labels.table(*self.columns.shape)

    def scores(self, queries: Tensor, candidates: Tensor) -> Tensor:
        """Float32 dot products, ``-inf`` for padding, ``(Q, C)`` on the CPU.

        Args:
            queries: Rows of all of the task's queries, ``(N, D)``.
            candidates: Rows of all of its candidates, ``(M, D)``.
        """
        vectors = queries[self.rows]
        if self.is_global:
            return cosine_scores(vectors, candidates).cpu()
        if self.shares:
            every = cosine_scores(vectors, candidates).cpu()
            return every.gather(1, self.columns.clamp(min=0)).masked_fill(self.columns < 0, -torch.inf)
        own = candidates[self.columns.clamp(min=0).to(candidates.device)].float()
        return (own @ vectors.float()[:, :, None]).squeeze(2).cpu().masked_fill(self.columns < 0, -torch.inf)


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
    return rank_each(task, [(queries, candidates)], num_top=num_top)[0]


def rank_each(task: RetrievalTask, vectors: Sequence[tuple[Tensor, Tensor]], *, num_top: int = 100) -> list[TaskRanking]:
    """Ranks every query's candidates by several sets of vectors; only the scores of a block of queries are held at once.

    Args:
        task: Whose order of queries and of candidates the rows follow.
        vectors: Queries and candidates, each as in `rank_task`; at least one pair.
        num_top: Length of the lists in `TaskRanking.top`.

    Raises:
        TwnError: A score is NaN or infinite.
    """
    keys = list(task.candidates)
    parts: list[list[_Part]] = [[] for _ in vectors]
    for queries, candidates in vectors:
        if len(queries) != len(task.queries) or len(candidates) != len(keys):
            raise TwnError(
                f"Task {task.name} has {len(task.queries)} queries and {len(keys)} candidates, but {len(queries)} and {len(candidates)} "
                "vectors were given: encode this very task's queries and candidates."
            )
    for block in blocks(task, width=vectors[0][1].shape[1]):
        for (queries, candidates), found in zip(vectors, parts, strict=True):
            found.append(_rank(task, block, block.scores(queries, candidates), keys, num_top))
    return [_joined(found) for found in parts]


@dataclass(frozen=True)
class _Part:
    """A `TaskRanking` of some queries, with the metrics of each."""

    values: Tensor
    tied: Tensor
    metrics: dict[str, Tensor]
    top: list[tuple[str, ...]]


def _rank(task: RetrievalTask, block: Block, scores: Tensor, keys: Sequence[str], num_top: int) -> _Part:
    ranked = rank_block(task, block, scores, num_places=max(num_top, _MOST_PLACES))
    order = ranked.order[:, :num_top]
    best = (order if block.is_global else block.columns.gather(1, order)).tolist()
    return _Part(
        values=HEADLINE[task.metric](ranked.grades),
        tied=ranked.tied,
        metrics=ranking.all_metrics(ranked.grades),
        top=[tuple(map(keys.__getitem__, row if block.is_global else [number for number in row if number >= 0])) for row in best],
    )


def _joined(parts: Sequence[_Part]) -> TaskRanking:
    return TaskRanking(
        values=torch.cat([part.values for part in parts]),
        tie_rate=float(torch.cat([part.tied for part in parts]).float().mean()),
        top=tuple(top for part in parts for top in part.top),
        metrics={name: float(torch.cat([part.metrics[name] for part in parts]).double().mean()) for name in parts[0].metrics},
    )


def blocks(task: RetrievalTask, *, width: int) -> Iterator[Block]:
    """A task's queries in order, in blocks whose scores and gathered candidates fit into memory.

    Args:
        task: Whose queries.
        width: Of a vector.
    """
    num_candidates = len(task.candidates)
    most = max(len(query.candidates or ()) for query in task.queries)
    shares = num_candidates <= _SHARED * most
    size = max(1, _BLOCK_NUMBERS // max(1, num_candidates, 0 if shares else most * width))
    for start in range(0, len(task.queries), size):
        yield _block(task, slice(start, min(start + size, len(task.queries))), shares=shares)


def rank_block(task: RetrievalTask, block: Block, scores: Tensor, *, num_places: int = _MOST_PLACES) -> Ranked:
    """A block's candidates, best first.

    Args:
        task: Is named in the message.
        block: Of `blocks`.
        scores: Of `Block.scores`.
        num_places: See `ranking.rank_candidates`; enough for every metric by default.

    Raises:
        TwnError: A score is NaN or infinite.
    """
    step = max(1, _CHUNK_NUMBERS // max(1, scores.shape[1]))
    parts = []
    for start in range(0, len(scores), step):
        chunk = scores[start : start + step]
        try:
            parts.append(ranking.rank_candidates(chunk, block.labels.within(start, start + len(chunk)), num_places=num_places))
        except TwnError as error:
            first = block.rows.start + start
            raise TwnError(f"Task {task.name}, queries {first} to {first + len(chunk) - 1}: {error}") from error
    width = max(part.grades.shape[1] for part in parts)
    return Ranked(
        order=torch.cat([part.order for part in parts]),
        grades=torch.cat([functional.pad(part.grades, (0, width - part.grades.shape[1])) for part in parts]),
        tied=torch.cat([part.tied for part in parts]),
    )


def _block(task: RetrievalTask, rows: slice, *, shares: bool) -> Block:
    queries, number = task.queries[rows], task.candidate_numbers
    is_global = queries[0].candidates is None
    if is_global:
        columns = torch.arange(len(number)).expand(len(queries), -1)
    else:
        lists = [torch.from_numpy(places) for places in task.own_candidates[rows]]
        columns = torch.nn.utils.rnn.pad_sequence(lists, batch_first=True, padding_value=-1).long()
    places: list[tuple[int, int, float]] = []
    for row, query in enumerate(queries):
        for key, grade in query.labels.items():
            places.append((row, number[key] if query.candidates is None else query.candidates.index(key), grade))
    numbers, own, grades = zip(*places, strict=True)
    labels = Labels(torch.tensor(numbers), torch.tensor(own), torch.tensor(grades, dtype=torch.float32))
    return Block(rows=rows, columns=columns, labels=labels, is_global=is_global, shares=shares)
