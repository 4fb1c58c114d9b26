"""The approximate index: made, measured against the exact search, and set to look into as many clusters as a recall needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from twn_lightning.exact_search import best_documents
from twn_lightning.index.vector_index import AnnFacts

if TYPE_CHECKING:
    from twn_lightning.index.vector_index import VectorIndex

NEIGHBOURS = 10
SAMPLED = 100

_ROWS_A_PARTITION = 8192
_FIRST_PROBES = 8


def approximate(index: VectorIndex, *, recall: float) -> AnnFacts:
    """Puts an approximate index over the vectors, and finds out how many of its clusters must be looked into.

    Args:
        index: Whose table gets it.
        recall: Share of the ten nearest documents to be found; where it takes every cluster to do that, every one is looked into.
    """
    from lancedb.index import IvfSq

    partitions = max(1, round(len(index) / _ROWS_A_PARTITION))
    index.table.create_index("vector", config=IvfSq(distance_type="cosine", num_partitions=partitions))
    ids, vectors = _sample(index)
    exact = exact_neighbours(index, ids, vectors)
    probes = min(_FIRST_PROBES, partitions)
    while True:
        found = measured_recall(index, ids, vectors, exact, probes=probes)
        if found >= recall or probes == partitions:
            return AnnFacts(kind="IVF_SQ", partitions=partitions, probes=probes, recall=round(found, 4), sampled=len(ids))
        probes = min(2 * probes, partitions)


def measured_recall(index: VectorIndex, ids: list[str], vectors: NDArray[np.float32], exact: list[set[str]], *, probes: int) -> float:
    """Share of the documents' true neighbours that the approximate search finds.

    Args:
        index: Where.
        ids: Of the documents that are searched with.
        vectors: Theirs, ``(len(ids), D)``.
        exact: The neighbours of each; see `exact_neighbours`.
        probes: Clusters to look into.
    """
    shares = []
    for name, vector, neighbours in zip(ids, vectors, exact, strict=True):
        found = index.nearest(vector, NEIGHBOURS + 1, probes=probes)["id"].to_pylist()
        shares.append(len({other for other in found if other != name} & neighbours) / max(1, len(neighbours)))
    return float(np.mean(shares))


def exact_neighbours(index: VectorIndex, ids: list[str], vectors: NDArray[np.float32]) -> list[set[str]]:
    """The ten nearest other documents of some, in one pass over all vectors.

    Args:
        index: Where.
        ids: Of these documents.
        vectors: Theirs, ``(len(ids), D)``.
    """
    queries = torch.from_numpy(vectors)
    best: list[list[tuple[float, str]]] = [[] for _ in ids]
    for names, block in index.batches():
        hits = best_documents(queries, torch.from_numpy(block.copy()), top_k=NEIGHBOURS + 1)
        for number, (scores, columns) in enumerate(zip(hits.scores.tolist(), hits.indices.tolist(), strict=True)):
            found = [(-score, names[column]) for score, column in zip(scores, columns, strict=True) if names[column] != ids[number]]
            best[number] = sorted(best[number] + found)[:NEIGHBOURS]
    return [{name for _, name in found} for found in best]


def _sample(index: VectorIndex) -> tuple[list[str], NDArray[np.float32]]:
    places = np.random.default_rng(0).choice(len(index), min(SAMPLED, len(index)), replace=False)
    rows = index.table.take_offsets(sorted(places.tolist())).select(["id", "vector"]).to_arrow()
    ids: list[str] = rows["id"].to_pylist()
    return ids, np.array(rows["vector"].to_pylist(), np.float32).reshape(len(ids), index.dim)
