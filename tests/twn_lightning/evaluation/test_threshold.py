from __future__ import annotations

import pytest
import torch

from twn_lightning.errors import ConfigError, DataError
from twn_lightning.evaluation.self_label import fit_threshold
from twn_lightning.models.gate import threshold_within, tokens_per_query

PROBABILITY = torch.tensor([0.2, 0.4, 0.6, 0.8])
GAIN = torch.tensor([-4.0, -1.0, 1.0, 3.0])
TOKENS = torch.tensor([10, 20, 30, 40])


def test_the_curve_and_the_best_threshold_by_hand() -> None:
    fit = fit_threshold(PROBABILITY, GAIN, TOKENS)
    assert [point.threshold for point in fit.curve] == pytest.approx([0.0, 0.3, 0.5, 0.7, 1.0])
    assert [point.quality for point in fit.curve] == pytest.approx([-0.25, 0.75, 1.0, 0.75, 0.0])
    assert [point.reasoning_tokens for point in fit.curve] == [25.0, 22.5, 17.5, 10.0, 0.0]
    assert [point.think_rate for point in fit.curve] == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert fit.threshold == pytest.approx(0.5)


def test_a_token_price_chooses_a_cheaper_threshold() -> None:
    fit = fit_threshold(PROBABILITY, GAIN, TOKENS, token_price=0.04)  # 1.0 - 0.7 against 0.75 - 0.4
    assert fit.threshold == pytest.approx(0.7)


def test_of_equally_good_thresholds_the_one_that_thinks_least_is_chosen() -> None:
    assert fit_threshold(PROBABILITY, torch.zeros(4), TOKENS).threshold == 1.0
    assert fit_threshold(PROBABILITY, torch.ones(4), TOKENS).threshold == 0.0


def test_the_curve_keeps_to_its_number_of_points() -> None:
    probability = torch.rand(500, generator=torch.Generator().manual_seed(0))
    fit = fit_threshold(probability, torch.randn(500), torch.ones(500), max_points=11)
    assert len(fit.curve) == 11
    assert (fit.curve[0].think_rate, fit.curve[-1].think_rate) == (1.0, 0.0)
    rates = [point.think_rate for point in fit.curve]
    assert rates == sorted(rates, reverse=True)


def test_nothing_to_choose_on_is_an_error() -> None:
    with pytest.raises(DataError, match="no held-out input"):
        fit_threshold(torch.zeros(0), torch.zeros(0), torch.zeros(0))


CURVE = [
    {"threshold": 0.0, "quality": 50.0, "query_tokens": 9.0, "reasoning_tokens": 30.0, "candidates_per_query": 4.0},
    {"threshold": 0.3, "quality": 52.0, "query_tokens": 6.0, "reasoning_tokens": 18.0, "candidates_per_query": 4.0},
    {"threshold": 0.5, "quality": 51.0, "query_tokens": 6.0, "reasoning_tokens": 10.0, "candidates_per_query": 4.0},
    {"threshold": 1.0, "quality": 40.0, "query_tokens": 0.0, "reasoning_tokens": 0.0, "candidates_per_query": 4.0},
]


def test_candidates_tokens_are_shared_by_the_queries_at_hand() -> None:
    assert tokens_per_query(CURVE[0], candidates_per_query=2.0) == pytest.approx(9.0 + 21.0 * 2 / 4)
    assert tokens_per_query(CURVE[0], candidates_per_query=2.0, sides="query") == 9.0
    assert tokens_per_query(CURVE[0], candidates_per_query=2.0, sides="candidate") == pytest.approx(10.5)


def test_a_budget_is_spent_but_not_exceeded() -> None:
    def threshold(budget: float, key: str = "reasoning_tokens") -> float:
        return threshold_within(CURVE, lambda point: point[key], budget=budget)

    assert [threshold(budget) for budget in (0.0, 9.9, 10.0, 29.0, 30.0, 99.0)] == [1.0, 1.0, 0.5, 0.3, 0.0, 0.0]
    assert threshold(7.0, "query_tokens") == 0.3  # as dear as 0.5, and better
    with pytest.raises(ConfigError, match="the cheapest costs 30"):
        threshold_within(CURVE[:1], lambda point: point["reasoning_tokens"], budget=12.0)
    with pytest.raises(ConfigError, match="budget is nan"):
        threshold(float("nan"))
    with pytest.raises(ConfigError, match="budget is -1"):
        threshold(-1.0)
    with pytest.raises(ConfigError, match="knows no 'candidate_tokens'"):
        threshold(1.0, "candidate_tokens")
    with pytest.raises(ConfigError, match="gate has no curve"):
        threshold_within([], lambda point: point["x"], budget=1.0)
