"""Why a query was thought about, and what that was worth."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from twn_lightning.errors import ConfigError
from twn_lightning.index.searcher import Comparison
from twn_lightning.index.vector_index import VectorIndex

TEMPERATURE = 0.02
"""Divides the scores in training, by default."""
ALL_UP_TO = 100_000
"""Documents up to which a gain is taken over all of them."""
AMONG = 1000
"""Best documents, without and with thinking, over which it is taken otherwise."""


@dataclass(frozen=True)
class Gain:
    """What thinking was worth for a relevant document.

    Attributes:
        id: Of the document.
        nats: u_gen - u_disc, where u is the log-softmax of its score among the documents.
        rank_before: Without thinking, from 1; a document with a higher score, or an equal one and an earlier id, comes first. None if it is not
            among the documents that were looked at.
        rank_after: With thinking.
        score_before: Cosine similarity without thinking.
        score_after: With thinking.
    """

    id: str
    nats: float
    rank_before: int | None
    rank_after: int | None
    score_before: float
    score_after: float


@dataclass(frozen=True)
class Gains:
    """Gains of the relevant documents.

    Attributes:
        gains: One each; another relevant document does not count against one.
        num_documents: Over which the softmax went.
        are_all: Whether these are all of the index.
        temperature: That divided the scores.
    """

    gains: tuple[Gain, ...]
    num_documents: int
    are_all: bool
    temperature: float


@dataclass(frozen=True)
class CurvePlace:
    """What the gate's curve says of a threshold.

    Attributes:
        threshold: The curve's last point that is not above it.
        quality: On the validation tasks of training.
        query_tokens: Reasoning tokens a query.
        think_rate: Share of inputs that think.
    """

    threshold: float
    quality: float
    query_tokens: float
    think_rate: float


def place_on_curve(curve: Sequence[Mapping[str, float]], threshold: float) -> CurvePlace | None:
    """The curve's point nearest below a threshold; None where the gate has no curve of them.

    Args:
        curve: Of the gate.
        threshold: 0 to 1.
    """
    below = [point for point in curve if point["threshold"] <= threshold and "query_tokens" in point]  # older curves know no tokens
    if not below:
        return None
    point = max(below, key=lambda one: one["threshold"])
    return CurvePlace(point["threshold"], point["quality"], point["query_tokens"], point["think_rate"])


def gains(index: VectorIndex, comparison: Comparison, relevant: Sequence[str], *, temperature: float = TEMPERATURE) -> Gains:
    """What thinking was worth, by where it moved the relevant documents.

    Args:
        index: Where they are.
        comparison: Of the query.
        relevant: Their ids.
        temperature: Divides the scores, above 0.

    Raises:
        ConfigError: The temperature is not above 0.
        DataError: There is no document of an id.
    """
    if not temperature > 0.0:
        raise ConfigError(f"temperature is {temperature}, but it divides the scores: choose a value above 0, such as {TEMPERATURE}.")
    wanted = list(dict.fromkeys(relevant))
    queries = np.stack([comparison.without.vector, comparison.after.vector]).astype(np.float64)
    are_all = len(index) <= ALL_UP_TO
    ids, scores = _all_scores(index, queries) if are_all else _best_scores(index, queries, wanted)
    is_relevant = np.isin(ids, wanted)
    found = []
    for name, vector in zip(wanted, index.vectors(wanted), strict=True):
        before, after = _rounded(queries @ vector)
        u_disc, u_gen = (_log_softmax(own, scores[~is_relevant, column], temperature) for column, own in enumerate((before, after)))
        ranks = [_rank(name, own, ids, scores[:, column]) for column, own in enumerate((before, after))]
        rank_before, rank_after = (rank if are_all or rank <= AMONG else None for rank in ranks)
        found.append(Gain(name, float(u_gen - u_disc), rank_before, rank_after, float(before), float(after)))
    return Gains(tuple(found), len(ids), are_all, temperature)


def _rank(name: str, own: float, ids: NDArray[Any], scores: NDArray[np.float64]) -> int:
    return 1 + int(np.count_nonzero((scores > own) | ((scores == own) & (ids < name))))


def _log_softmax(own: float, others: NDArray[np.float64], temperature: float) -> float:
    return float(own / temperature - np.logaddexp.reduce(np.append(others, own) / temperature))


def _all_scores(index: VectorIndex, queries: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    names: list[str] = []
    blocks = []
    for ids, vectors in index.batches():
        names += ids
        blocks.append(vectors @ queries.T)
    return np.array(names, dtype=object), _rounded(np.concatenate(blocks))


def _best_scores(index: VectorIndex, queries: NDArray[np.float64], wanted: Sequence[str]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    best = index.search(queries.astype(np.float32), AMONG).ids
    ids = list(dict.fromkeys([*itertools.chain.from_iterable(best), *wanted]))
    return np.array(ids, dtype=object), _rounded(index.vectors(ids) @ queries.T)


def _rounded(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """To the precision of float32, so that equal vectors have equal scores wherever they stand in a product."""
    return np.round(scores, 7)
