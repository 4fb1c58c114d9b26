from __future__ import annotations

import math

import pytest
import torch

from twn_lightning.errors import ConfigError
from twn_lightning.losses.cot import cot_cross_entropy
from twn_lightning.losses.gate import gate_bce, self_labels


def test_cot_loss_is_the_mean_over_all_tokens_of_the_batch() -> None:
    log_probs = torch.tensor([[-1.0, -2.0, -3.0], [-8.0, -99.0, -99.0]], requires_grad=True)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    loss = cot_cross_entropy(log_probs, mask)
    assert loss.item() == pytest.approx(14 / 4)
    loss.backward()  # type: ignore[no-untyped-call]
    assert log_probs.grad is not None
    assert log_probs.grad.tolist() == [[-0.25, -0.25, -0.25], [-0.25, 0.0, 0.0]]


def test_cot_loss_without_tokens_is_zero() -> None:
    assert cot_cross_entropy(torch.full((2, 3), -4.0), torch.zeros(2, 3)).item() == 0.0


def test_labels_are_gains_above_the_margin_and_small_gains_are_dropped() -> None:
    labels, keep = self_labels(torch.tensor([-1.0, -0.05, 0.05, 0.2, 0.9]), margin=0.5, dead_zone=0.1)
    assert labels.tolist() == [0, 0, 0, 0, 1]
    assert keep.tolist() == [True, False, False, True, True]


def test_a_negative_dead_zone_is_refused() -> None:
    with pytest.raises(ConfigError, match="dead_zone is -0.1"):
        self_labels(torch.zeros(1), margin=0.0, dead_zone=-0.1)


def test_balanced_bce_gives_one_helped_input_the_weight_of_three_useless_ones() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0, 5.0])
    gain = torch.tensor([1.0, -1.0, -1.0, -1.0, 0.01])  # the last one is dropped
    helped = math.log1p(math.exp(-2.0))
    useless = [math.log1p(math.exp(score)) for score in (1.0, 0.0, -1.0)]
    balanced = gate_bce(logits, gain, margin=0.0, dead_zone=0.1, balanced=True)
    plain = gate_bce(logits, gain, margin=0.0, dead_zone=0.1, balanced=False)
    assert balanced.item() == pytest.approx((helped + sum(useless) / 3) / 2)
    assert plain.item() == pytest.approx((helped + sum(useless)) / 4)


def test_bce_of_one_class_alone_and_of_nothing() -> None:
    logits = torch.tensor([2.0, 3.0], requires_grad=True)
    one = gate_bce(logits, torch.tensor([1.0, 0.0]), margin=0.0, dead_zone=0.1, balanced=True)
    assert one.item() == pytest.approx(math.log1p(math.exp(-2.0)))
    nothing = gate_bce(logits, torch.zeros(2), margin=0.0, dead_zone=0.1, balanced=True)
    nothing.backward()  # type: ignore[no-untyped-call]
    assert nothing.item() == 0.0
    assert logits.grad is not None
    assert logits.grad.tolist() == [0.0, 0.0]
