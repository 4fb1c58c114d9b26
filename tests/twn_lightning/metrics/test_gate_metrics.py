from __future__ import annotations

import math

import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error

from twn_lightning.metrics.gate import auroc, expected_calibration_error, reliability_bins, think_rate


def test_think_rate_counts_the_threshold_itself() -> None:
    assert think_rate(torch.tensor([0.2, 0.5, 0.9]), threshold=0.5) == pytest.approx(2 / 3)


def test_auroc_by_hand_with_a_tie() -> None:
    probability, labels = torch.tensor([0.9, 0.4, 0.4, 0.1]), torch.tensor([1, 1, 0, 0])
    assert auroc(probability, labels) == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert math.isnan(auroc(probability, torch.ones(4)))


def test_auroc_equals_a_slow_count_of_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    probability = (torch.rand(60, generator=generator) * 20).round() / 20  # with ties
    labels = (torch.rand(60, generator=generator) < probability).long()
    pairs = [
        (high, low)
        for high, a in zip(probability.tolist(), labels, strict=True)
        if a
        for low, b in zip(probability.tolist(), labels, strict=True)
        if not b
    ]
    wins = sum(1.0 if high > low else 0.5 if high == low else 0.0 for high, low in pairs)
    assert auroc(probability, labels) == pytest.approx(wins / len(pairs), abs=1e-6)


def test_calibration_error_equals_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    probability = torch.rand(200, generator=generator)
    labels = (torch.rand(200, generator=generator) < probability**2).long()
    reference = binary_calibration_error(probability, labels, n_bins=10)
    assert expected_calibration_error(probability, labels, num_bins=10) == pytest.approx(float(reference), abs=1e-6)


def test_reliability_bins_by_hand() -> None:
    bins = reliability_bins(torch.tensor([0.1, 0.3, 0.8, 1.0]), torch.tensor([0, 1, 1, 1]), num_bins=2)
    assert bins.count.tolist() == [2, 2]
    assert bins.confidence.tolist() == pytest.approx([0.2, 0.9])
    assert bins.accuracy.tolist() == pytest.approx([0.5, 1.0])
    assert bins.calibration_error == pytest.approx((0.3 + 0.1) / 2)
