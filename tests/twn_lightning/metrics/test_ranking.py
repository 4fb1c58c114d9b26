from __future__ import annotations

import math

import pytest
import torch
from sklearn.metrics import ndcg_score
from torchmetrics.functional.retrieval import (
    retrieval_hit_rate,
    retrieval_normalized_dcg,
    retrieval_precision,
    retrieval_recall,
    retrieval_reciprocal_rank,
)

from twn_lightning.errors import TwnError
from twn_lightning.metrics import ranking

# Grades in ranked order: 0, 3, 0, 1, 2 and nothing else.
RANKED = torch.tensor([[0.0, 3.0, 0.0, 1.0, 2.0]])


def test_metrics_of_one_graded_ranking_by_hand() -> None:
    assert [ranking.hit_at_k(RANKED, k).item() for k in (1, 2)] == [0.0, 1.0]
    assert ranking.precision_at_k(RANKED, 4).item() == pytest.approx(2 / 4)
    assert ranking.precision_at_k(RANKED, 10).item() == pytest.approx(3 / 10)
    assert ranking.recall_at_k(RANKED, 4).item() == pytest.approx(2 / 3)
    assert [ranking.mrr_at_k(RANKED, k).item() for k in (1, 5)] == [0.0, 0.5]
    assert ranking.average_precision_at_k(RANKED, 5).item() == pytest.approx((1 / 2 + 2 / 4 + 3 / 5) / 3)
    assert ranking.average_precision_at_k(RANKED, 2).item() == pytest.approx((1 / 2) / 2)  # divided by min(labels, k), not by hits


def test_graded_ndcg_by_hand() -> None:
    linear = (3 / math.log2(3) + 1 / math.log2(5) + 2 / math.log2(6)) / (3 + 2 / math.log2(3) + 1 / 2)
    exponential = (7 / math.log2(3) + 1 / math.log2(5) + 3 / math.log2(6)) / (7 + 3 / math.log2(3) + 1 / 2)
    assert ranking.ndcg_at_k(RANKED, 5).item() == pytest.approx(linear)
    assert ranking.ndcg_at_k(RANKED, 5, gain="exponential").item() == pytest.approx(exponential)
    assert ranking.ndcg_at_k(RANKED, 2).item() == pytest.approx((3 / math.log2(3)) / (3 + 2 / math.log2(3)))
    assert ranking.ndcg_at_k(torch.zeros(1, 4), 5).item() == 0.0


def test_metrics_equal_torchmetrics_and_sklearn_on_random_rankings() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(20, 12, generator=generator)
    grades = torch.randint(0, 4, (20, 12), generator=generator).float()
    grades[:, 0] = 2.0
    ranked = ranking.rank_candidates(scores, grades).grades
    for k in (1, 5, 10):
        ours = ranking.all_metrics(ranked, (k,))
        for row in range(20):
            relevant = grades[row] > 0
            above_zero = scores[row].exp()  # torchmetrics' precision takes a score below 0 for "not retrieved", which a cosine is not
            for name, reference in (
                (f"hit@{k}", retrieval_hit_rate(above_zero, relevant, top_k=k)),
                (f"precision@{k}", retrieval_precision(above_zero, relevant, top_k=k)),
                (f"recall@{k}", retrieval_recall(above_zero, relevant, top_k=k)),
                (f"mrr@{k}", retrieval_reciprocal_rank(above_zero, relevant, top_k=k)),
                (f"ndcg_linear@{k}", retrieval_normalized_dcg(above_zero, grades[row].long(), top_k=k)),
            ):
                assert ours[name][row].item() == pytest.approx(float(reference), abs=1e-5), name
            sklearn = ndcg_score((2.0 ** grades[row : row + 1].numpy()) - 1, scores[row : row + 1].numpy(), k=k)
            assert ours[f"ndcg_exponential@{k}"][row].item() == pytest.approx(float(sklearn), abs=1e-5)


def test_f1_is_the_harmonic_mean_and_zero_without_hits() -> None:
    ours = ranking.all_metrics(RANKED, (1, 4))
    assert ours["f1@4"].item() == pytest.approx(2 * 0.5 * (2 / 3) / (0.5 + 2 / 3))
    assert ours["f1@1"].item() == 0.0


def test_a_collapsed_model_scores_nothing() -> None:
    grades = torch.zeros(3, 10)
    grades[:, 0] = 1.0  # the positive is candidate 0, as in every image task
    ranked = ranking.rank_candidates(torch.full((3, 10), 0.5), grades)
    assert ranked.grades.argmax(dim=1).tolist() == [9, 9, 9]
    assert ranked.tied.tolist() == [True, True, True]


def test_a_rounding_apart_is_a_tie_and_more_is_not() -> None:
    grades = torch.tensor([[1.0, 0.0]])
    tie = ranking.rank_candidates(torch.tensor([[0.7 + 1e-7, 0.7]]), grades)
    assert (tie.grades.tolist(), tie.tied.tolist()) == ([[0.0, 1.0]], [True])
    better = ranking.rank_candidates(torch.tensor([[0.7 + 1e-5, 0.7]]), grades)
    assert (better.grades.tolist(), better.tied.tolist()) == ([[1.0, 0.0]], [False])


def test_at_a_tie_the_lower_grade_stands_first() -> None:
    ranked = ranking.rank_candidates(torch.tensor([[0.5, 0.5, 0.5, 0.9]]), torch.tensor([[2.0, 0.0, 1.0, 0.0]]))
    assert ranked.order.tolist() == [[3, 1, 2, 0]]
    assert ranked.grades.tolist() == [[0.0, 0.0, 1.0, 2.0]]
    assert ranked.tied.tolist() == [True]


def test_a_relevant_candidate_that_ties_with_another_is_no_tie() -> None:
    ranked = ranking.rank_candidates(torch.tensor([[0.5, 0.5, 0.1]]), torch.tensor([[1.0, 1.0, 0.0]]))
    assert ranked.tied.tolist() == [False]


def test_padding_is_ranked_last() -> None:
    ranked = ranking.rank_candidates(torch.tensor([[-0.9, -torch.inf, -torch.inf]]), torch.tensor([[1.0, 0.0, 0.0]]))
    assert (ranked.grades.tolist(), ranked.tied.tolist()) == ([[1.0, 0.0, 0.0]], [False])


@pytest.mark.parametrize("step", [1e-7, 0.1])
@pytest.mark.parametrize("num_values", [2, 6, 1000])
def test_first_places_and_their_metrics_are_those_of_the_whole_ranking(num_values: int, step: float) -> None:
    generator = torch.Generator().manual_seed(num_values)
    scores = step * torch.randint(num_values, (40, 50), generator=generator)
    grades = torch.where(torch.rand(40, 50, generator=generator) < 0.1, torch.randint(1, 4, (40, 50), generator=generator), 0).float()
    whole, first = ranking.rank_candidates(scores, grades), ranking.rank_candidates(scores, grades, num_places=10)
    assert torch.equal(first.order, whole.order[:, :10])
    assert torch.equal(first.tied, whole.tied)
    expected = ranking.all_metrics(whole.grades)
    for name, values in ranking.all_metrics(first.grades).items():
        torch.testing.assert_close(values, expected[name], msg=name)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_score_that_is_not_finite_has_no_rank(bad: float) -> None:
    scores = torch.tensor([[0.1, 0.2], [bad, 0.2]])
    with pytest.raises(TwnError, match=r"1 of 2 queries .* row 1"):
        ranking.rank_candidates(scores, torch.ones(2, 2))
