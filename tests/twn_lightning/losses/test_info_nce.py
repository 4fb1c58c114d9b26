from __future__ import annotations

import math

import pytest
import torch

from twn_lightning.losses.info_nce import cosine_scores, false_negative_mask, info_nce, positive_log_probs, symmetric_info_nce


def test_info_nce_of_two_orthogonal_pairs() -> None:
    eye = torch.eye(2)
    loss = info_nce(eye, eye, torch.arange(2), temperature=0.5)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-2.0)))  # scores 2 and 0


def test_an_equal_target_is_left_out_of_the_softmax() -> None:
    query = torch.tensor([[1.0, 0.0]])
    target = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    mask = false_negative_mask(torch.tensor([7]), torch.tensor([7, 7, 8]), torch.tensor([0]))
    assert mask.tolist() == [[False, True, False]]
    masked = info_nce(query, target, torch.tensor([0]), temperature=1.0, mask=mask)
    assert masked.item() == pytest.approx(math.log1p(math.exp(-1.0)))
    assert info_nce(query, target, torch.tensor([0]), temperature=1.0).item() == pytest.approx(math.log(2 + math.exp(-1.0)))


def test_the_mask_never_covers_the_positive_of_gathered_columns() -> None:
    target_hash = torch.tensor([1, 2, 1, 3])
    mask = false_negative_mask(torch.tensor([1, 3]), target_hash, torch.tensor([2, 3]))
    assert mask.tolist() == [[True, False, False, False], [False, False, False, False]]


def test_weights_share_the_mean() -> None:
    eye = torch.eye(2)
    target = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    first, second = -positive_log_probs(eye, target, torch.arange(2), temperature=0.5)
    loss = info_nce(eye, target, torch.arange(2), temperature=0.5, weight=torch.tensor([3.0, 1.0]))
    assert loss.item() == pytest.approx((3 * first.item() + second.item()) / 4)


def test_the_symmetric_loss_is_the_mean_of_both_directions_and_negatives_compete_for_queries_only() -> None:
    generator = torch.Generator().manual_seed(0)
    query, positive, negative = (torch.nn.functional.normalize(torch.randn(3, 5, generator=generator), dim=1) for _ in range(3))
    loss = symmetric_info_nce(query, positive, query, torch.cat([positive, negative]), torch.arange(3), temperature=0.1)
    slow = 0.0
    for row in range(3):
        forward = [math.exp(float(query[row] @ other) / 0.1) for other in [*positive, *negative]]
        backward = [math.exp(float(positive[row] @ other) / 0.1) for other in query]
        slow -= (math.log(forward[row] / sum(forward)) + math.log(backward[row] / sum(backward))) / 6
    assert loss.item() == pytest.approx(slow, abs=1e-5)


def test_scores_stay_float32_under_autocast() -> None:
    generator = torch.Generator().manual_seed(0)
    rows = torch.nn.functional.normalize(torch.randn(64, 32, generator=generator), dim=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = cosine_scores(rows, rows)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, rows @ rows.T)
