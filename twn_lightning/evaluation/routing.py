"""What each input's own thought brings, and who should have thought: references that the gate is held against.

Everything is computed from one encoding of both sides with ``think="always"``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from twn_lightning.batches import Item
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.evaluation.encode import EncodedItems, ThinkMode, evaluating
from twn_lightning.evaluation.rank import HEADLINE, blocks, rank_block
from twn_lightning.evaluation.store_digests import item_digest
from twn_lightning.evaluation.task import RetrievalTask
from twn_lightning.losses.info_nce import cosine_scores
from twn_lightning.models.gate import RoutingGate


@dataclass(frozen=True)
class Routing:
    """Who thinks.

    Attributes:
        queries: Bool ``(Q,)``.
        candidates: Bool ``(C,)``.
    """

    queries: Tensor
    candidates: Tensor


@dataclass(frozen=True)
class RoutedResult:
    """A task under one routing, or the mean over several.

    Attributes:
        values: The headline metric of each query, 0 to 1.
        query_tokens: Reasoning tokens of all queries together.
        candidate_tokens: Of all candidates together, each once.
        query_think_rate: Share of queries that think, 0 to 1.
        candidate_think_rate: Share of candidates that think, 0 to 1.
    """

    values: tuple[float, ...]
    query_tokens: float
    candidate_tokens: float
    query_think_rate: float
    candidate_think_rate: float


@dataclass(frozen=True)
class CandidateGains:
    """What thinking brings the candidates that some query is to find.

    Attributes:
        rows: Numbers of these candidates, rising, ``(P,)``.
        gain: Nats, ``(P,)``.
    """

    rows: Tensor
    gain: Tensor


def gate_probability(gate: RoutingGate, state: Tensor) -> Tensor:
    """What a gate says of inputs, as in inference: without the dropout that it trains with, and without gradient.

    Args:
        gate: On any device.
        state: What it reads, ``(N, G)``, on any device.

    Returns:
        Float32 ``(N,)`` on the CPU.
    """
    with evaluating(gate):
        return gate.probability(state.to(next(gate.parameters()).device)).cpu()


def route(
    queries: EncodedItems,
    candidates: EncodedItems,
    *,
    mode: ThinkMode = "auto",
    think_sides: Literal["both", "query", "candidate"] = "both",
    threshold: float,
) -> Routing:
    """Who thinks in a mode.

    Args:
        queries: As they were encoded.
        candidates: As they were encoded.
        mode: ``auto``: those whose gate probability is at least the threshold.
        think_sides: A side that may not think does not.
        threshold: 0 to 1.
    """
    return Routing(
        queries.thinks(mode if think_sides != "candidate" else "never", threshold=threshold),
        candidates.thinks(mode if think_sides != "query" else "never", threshold=threshold),
    )


def routed_values(task: RetrievalTask, queries: EncodedItems, candidates: EncodedItems, routings: Sequence[Routing]) -> Tensor:
    """The headline metric of each query under each routing, float32 ``(R, Q)``; equal routings are ranked once.

    Args:
        task: Whose queries and candidates were encoded, in its order.
        queries: Vectors of both kinds, where they are to think.
        candidates: Likewise.
        routings: At least one.

    Raises:
        TwnError: A score is NaN or infinite.
    """
    names = [(routing.queries.numpy().tobytes(), routing.candidates.numpy().tobytes()) for routing in routings]
    distinct = dict(zip(names, routings, strict=True))
    values: dict[tuple[bytes, bytes], list[Tensor]] = {name: [] for name in distinct}
    for block in blocks(task, width=queries.discriminative.shape[1]):
        for name, routing in distinct.items():
            scores = block.scores(queries.vectors(routing.queries), candidates.vectors(routing.candidates))
            values[name].append(HEADLINE[task.metric](rank_block(task, block, scores).grades))
    whole = {name: torch.cat(parts) for name, parts in values.items()}
    return torch.stack([whole[name] for name in names])


def references(
    task: RetrievalTask, queries: EncodedItems, candidates: EncodedItems, auto: Routing, *, seed: int = 0, num_draws: int = 20
) -> dict[str, RoutedResult]:
    """What the gate is held against, by name.

    ``random``: on each side as many inputs think as the gate lets, chosen at random; the mean over draws.
    ``confidence``: as many queries as the gate lets, those whose best discriminative score leads the second best by least; candidates as
    the gate has it. ``query``: all queries and no candidate. ``candidate``: the reverse.

    Args:
        task: Whose queries and candidates were encoded, in its order.
        queries: With ``think="always"``.
        candidates: With ``think="always"``.
        auto: What the gate decides.
        seed: Of the draws, which differ from task to task.
        num_draws: At least 1.

    Raises:
        DataError: A side wrote no thoughts.
        TwnError: A score is NaN or infinite.
    """
    _require_thoughts(task, queries, candidates)
    if num_draws < 1:
        raise ConfigError(f"num_draws is {num_draws}, but a mean over random choices needs at least one.")
    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.blake2b(f"{seed}/{task.name}".encode(), digest_size=7).digest(), "big"))
    num_queries, num_candidates = int(auto.queries.sum()), int(auto.candidates.sum())
    no_query, no_candidate = torch.zeros_like(auto.queries), torch.zeros_like(auto.candidates)
    routings = {
        "random": [Routing(_drawn(auto.queries, generator), _drawn(auto.candidates, generator)) for _ in range(num_draws)],
        "confidence": [Routing(_least(discriminative_margin(task, queries, candidates), num_queries), auto.candidates)],
        "query": [Routing(queries.thought, no_candidate)],
        "candidate": [Routing(no_query, candidates.thought)],
    }
    assert all(int(routing.candidates.sum()) == num_candidates for routing in routings["random"])
    values = routed_values(task, queries, candidates, [routing for group in routings.values() for routing in group]).double()
    results, start = {}, 0
    for name, group in routings.items():
        results[name] = _mean_result(values[start : start + len(group)], queries, candidates, group)
        start += len(group)
    return results


def discriminative_margin(task: RetrievalTask, queries: EncodedItems, candidates: EncodedItems) -> Tensor:
    """How far each query's best discriminative score leads its second best, at least 0, ``(Q,)``; infinite where it has but one candidate.

    Args:
        task: Whose queries and candidates were encoded, in its order.
        queries: As they were encoded.
        candidates: As they were encoded.
    """
    margins = []
    for block in blocks(task, width=queries.discriminative.shape[1]):
        scores = block.scores(queries.discriminative, candidates.discriminative)
        if scores.shape[1] == 1:
            scores = torch.cat([scores, torch.full_like(scores, -torch.inf)], dim=1)
        best = scores.topk(2, dim=1).values
        margins.append(best[:, 0] - best[:, 1])
    return torch.cat(margins)


def query_gain(task: RetrievalTask, queries: EncodedItems, candidates: EncodedItems, *, temperature: float) -> Tensor:
    """What each query's own thought brings: u_gen - u_disc in nats, ``(Q,)``.

    u is the log-softmax score of the query's positive among the candidates it chooses among; the candidates are discriminative in both. The
    positive is the first of its best-graded candidates in their order, and the other relevant ones are left out, since they are no mistake.

    Args:
        task: Whose queries and candidates were encoded, in its order.
        queries: With ``think="always"``.
        candidates: Any.
        temperature: Divides the cosine scores, above 0.

    Raises:
        DataError: The queries wrote no thoughts.
    """
    _check_temperature(temperature)
    if queries.generative is None:
        raise DataError(f"Task {task.name}: the queries were encoded without thoughts, so that there is no gain to measure: encode them thinking.")
    gains = []
    for block in blocks(task, width=queries.discriminative.shape[1]):
        positive = block.grades.argmax(dim=1, keepdim=True)
        left_out = (block.grades > 0).scatter(1, positive, False)
        before, after = (
            (block.scores(vectors, candidates.discriminative) / temperature).masked_fill(left_out, -torch.inf).log_softmax(dim=1).gather(1, positive)
            for vectors in (queries.discriminative, queries.generative)
        )
        gains.append((after - before).squeeze(1))
    return torch.cat(gains)


def candidate_gain(task: RetrievalTask, queries: EncodedItems, candidates: EncodedItems, *, temperature: float) -> CandidateGains:
    """What the own thought of each candidate that is some query's positive brings: the roles of `query_gain` exchanged, as in the gate's labels.

    u is the log-softmax score of a query among all queries for which the candidate is not relevant; the queries are discriminative in both. Queries
    equal to a relevant one are left out too, since no thought tells them apart. Of a candidate that is the positive of several queries, the mean
    over these.

    Args:
        task: Whose queries and candidates were encoded, in its order.
        queries: Any.
        candidates: With ``think="always"``.
        temperature: Divides the cosine scores, above 0.

    Raises:
        DataError: The candidates wrote no thoughts.
    """
    _check_temperature(temperature)
    if candidates.generative is None:
        raise DataError(f"Task {task.name}: the candidates were encoded without thoughts, so that there is no gain to measure: encode them thinking.")
    column = task.candidate_numbers
    every = blocks(task, width=queries.discriminative.shape[1])
    positive = torch.cat([block.columns.gather(1, block.grades.argmax(dim=1, keepdim=True)).squeeze(1) for block in every])
    rows, places = torch.unique(positive, return_inverse=True)
    own = {int(number): place for place, number in enumerate(rows)}
    relevant = torch.zeros(len(rows), len(task.queries), dtype=torch.bool)
    for number, query in enumerate(task.queries):
        relevant[[own[column[key]] for key in query.labels if column[key] in own], number] = True
    same = _equal_numbers([query.item for query in task.queries])
    for number, own_queries in enumerate(relevant):
        relevant[number] = torch.isin(same, same[own_queries])
    asked = torch.arange(len(task.queries))
    before, after = (
        _own_log_prob(cosine_scores(vectors[rows], queries.discriminative).cpu() / temperature, relevant)[places, asked]
        for vectors in (candidates.discriminative, candidates.generative)
    )
    total = torch.zeros(len(rows)).index_add(0, places, after - before)
    return CandidateGains(rows=rows, gain=total / torch.bincount(places, minlength=len(rows)))


def _equal_numbers(items: Sequence[Item]) -> Tensor:
    """A number for each item, the same for equal ones, ``(N,)``."""
    numbers: dict[bytes, int] = {}
    return torch.tensor([numbers.setdefault(item_digest(item, by_content=False), len(numbers)) for item in items], dtype=torch.long)


def _own_log_prob(scores: Tensor, relevant: Tensor) -> Tensor:
    """Log-softmax of each entry among itself and its row's entries that are not relevant."""
    others = scores.masked_fill(relevant, -torch.inf).logsumexp(dim=1, keepdim=True)
    return scores - torch.logaddexp(scores, others)


def _drawn(thinks: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.zeros_like(thinks)
    drawn[torch.randperm(len(thinks), generator=generator)[: int(thinks.sum())]] = True
    return drawn


def _least(values: Tensor, count: int) -> Tensor:
    chosen = torch.zeros(len(values), dtype=torch.bool)
    chosen[values.argsort(stable=True)[:count]] = True
    return chosen


def _mean_result(values: Tensor, queries: EncodedItems, candidates: EncodedItems, routings: Sequence[Routing]) -> RoutedResult:
    count = len(routings)
    return RoutedResult(
        values=tuple(values.mean(dim=0).tolist()),
        query_tokens=sum(queries.reasoning_tokens(routing.queries) for routing in routings) / count,
        candidate_tokens=sum(candidates.reasoning_tokens(routing.candidates) for routing in routings) / count,
        query_think_rate=sum(float(routing.queries.double().mean()) for routing in routings) / count,
        candidate_think_rate=sum(float(routing.candidates.double().mean()) for routing in routings) / count,
    )


def _require_thoughts(task: RetrievalTask, queries: EncodedItems, candidates: EncodedItems) -> None:
    for side, encoded in (("queries", queries), ("candidates", candidates)):
        if encoded.generative is None:
            raise DataError(f"Task {task.name}: the {side} were encoded without thoughts, and nobody else can think instead: encode them thinking.")


def _check_temperature(temperature: float) -> None:
    if not temperature > 0.0:
        raise ConfigError(f"temperature is {temperature}, but it divides the scores: choose a value above 0, such as 0.02.")
