from __future__ import annotations

import pytest
import torch

from twn_lightning import exact_search
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.exact_search import best_documents


@pytest.mark.parametrize("block", [1, 7, 10**6])
def test_the_best_documents_are_those_of_a_full_sort(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_search, "_BLOCK_NUMBERS", block)
    generator = torch.Generator().manual_seed(0)
    queries = torch.randint(-2, 3, (5, 4), generator=generator).float()  # small whole numbers: many equal scores
    documents = torch.randint(-2, 3, (40, 4), generator=generator).float()
    hits = best_documents(queries, documents, top_k=6)
    slow = [sorted(range(40), key=lambda number: (-float(query @ documents[number]), number))[:6] for query in queries]
    assert hits.indices.tolist() == slow
    assert torch.equal(hits.scores, (queries @ documents.T).gather(1, hits.indices))


def test_there_may_be_fewer_documents_than_wanted() -> None:
    assert best_documents(torch.eye(2)[0], torch.eye(2), top_k=5).indices.tolist() == [[0, 1]]


def test_what_cannot_be_ranked_is_refused() -> None:
    with pytest.raises(ConfigError, match="top_k is 0"):
        best_documents(torch.eye(2), torch.eye(2), top_k=0)
    with pytest.raises(DataError, match="NaN"):
        best_documents(torch.eye(2), torch.tensor([[float("nan"), 0.0]]), top_k=1)
    with pytest.raises(DataError, match=r"\(2, 2\) and documents \(3, 3\)"):
        best_documents(torch.eye(2), torch.eye(3), top_k=1)
