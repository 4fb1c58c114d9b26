"""What a thought was worth: gains and ranks against a calculation by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from tests.support.index_files import unit, write_embeddings
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.index import VectorIndex, explanation
from twn_lightning.index.explanation import gains, place_on_curve
from twn_lightning.index.searcher import Comparison, Ranking, Thinking

pytest.importorskip("lancedb")


@pytest.fixture
def index(tmp_path: Path) -> VectorIndex:
    """Four documents in a plane: along x, along y, between them, and once more along y."""
    vectors = np.zeros((4, 4), np.float32)
    vectors[:, :2] = [(1, 0), (0, 1), (math.sqrt(0.5), math.sqrt(0.5)), (0, 1)]
    write_embeddings(tmp_path / "vectors", vectors, ids=["x", "y", "between", "y2"])
    return VectorIndex.build(tmp_path / "vectors", tmp_path / "index")


def compared(before: tuple[float, float], after: tuple[float, float]) -> Comparison:
    vectors = unit(np.array([[*before, 0, 0], [*after, 0, 0]], np.float32))
    without, with_thought = (Ranking(vector, (), 0.0, 0.0) for vector in vectors)
    return Comparison(without, with_thought, Thinking(0.5, 0.5, True, "so it is y", 4))


def test_a_gain_is_the_difference_of_two_log_softmaxes(index: VectorIndex) -> None:
    worth = gains(index, compared((1, 0), (0, 1)), ["y"], temperature=0.5)
    half = math.sqrt(0.5)
    before = 0.0 - math.log(math.exp(1 / 0.5) + 2 * math.exp(0) + math.exp(half / 0.5))  # scores x 1, y and y2 0, between 0.7
    after = 1 / 0.5 - math.log(math.exp(0) + 2 * math.exp(1 / 0.5) + math.exp(half / 0.5))
    gain = worth.gains[0]
    assert gain.nats == pytest.approx(after - before, abs=1e-6)
    assert (gain.rank_before, gain.rank_after) == (3, 1)
    assert (gain.score_before, gain.score_after) == pytest.approx((0.0, 1.0), abs=1e-6)
    assert (worth.num_documents, worth.are_all, worth.temperature) == (4, True, 0.5)


def test_relevant_documents_do_not_count_against_each_other(index: VectorIndex) -> None:
    both = gains(index, compared((1, 0), (0, 1)), ["y2", "y", "y2"], temperature=0.5)
    half = math.sqrt(0.5)
    after = 2.0 - math.log(1.0 + math.exp(2.0) + math.exp(2 * half))
    before = 0.0 - math.log(math.exp(2.0) + 1.0 + math.exp(2 * half))
    assert [gain.id for gain in both.gains] == ["y2", "y"]
    assert [gain.nats for gain in both.gains] == pytest.approx([after - before] * 2, abs=1e-6)
    assert [(gain.rank_before, gain.rank_after) for gain in both.gains] == [(4, 2), (3, 1)]  # equal ones by id


def test_of_many_documents_the_best_are_looked_at(index: VectorIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explanation, "ALL_UP_TO", 3)
    monkeypatch.setattr(explanation, "AMONG", 1)
    worth = gains(index, compared((1, 0), (0.1, 1)), ["between"], temperature=0.5)
    assert (worth.num_documents, worth.are_all) == (3, False)  # x is best without, y with thinking; y2 is left out
    half, norm = math.sqrt(0.5), math.sqrt(1.01)
    scores = {"before": (1.0, 0.0, half), "after": (0.1 / norm, 1 / norm, 1.1 * half / norm)}
    u = {when: values[2] / 0.5 - math.log(sum(math.exp(value / 0.5) for value in values)) for when, values in scores.items()}
    assert worth.gains[0].nats == pytest.approx(u["after"] - u["before"], abs=1e-6)
    assert (worth.gains[0].rank_before, worth.gains[0].rank_after) == (None, None)  # second, of one place that is known


def test_what_cannot_be_asked_is_refused(index: VectorIndex) -> None:
    with pytest.raises(ConfigError, match="temperature is 0"):
        gains(index, compared((1, 0), (0, 1)), ["y"], temperature=0.0)
    with pytest.raises(DataError, match="no document 'z'"):
        gains(index, compared((1, 0), (0, 1)), ["z"])


def test_a_threshold_lies_on_the_last_point_of_the_curve_that_is_not_above_it() -> None:
    curve = [{"threshold": value, "quality": 50 + value, "query_tokens": 8 * (1 - value), "think_rate": 1 - value} for value in (1.0, 0.0, 0.5)]
    for threshold, point in ((0.0, 0.0), (0.49, 0.0), (0.5, 0.5), (0.99, 0.5), (1.0, 1.0)):
        place = place_on_curve(curve, threshold)
        assert place is not None
        assert (place.threshold, place.quality, place.query_tokens) == (point, 50 + point, 8 * (1 - point))
    assert place_on_curve([], 0.5) is None
