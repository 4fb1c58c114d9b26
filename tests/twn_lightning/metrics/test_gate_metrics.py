from __future__ import annotations

import math

import pytest
import torch
from torchmetrics.functional.classification import binary_auroc, binary_calibration_error

from twn_lightning.metrics.gate import auroc, expected_calibration_error, reliability_bins, think_rate


def test_think_rate_counts_the_threshold_itself() -> None:
    assert think_rate(torch.tensor([0.2, 0.5, 0.9]), threshold=0.5) == pytest.approx(2 / 3)


def test_auroc_by_hand_with_a_tie() -> None:
    probability, labels = torch.tensor([0.9, 0.4, 0.4, 0.1]), torch.tensor([1, 1, 0, 0])
    assert auroc(probability, labels) == pytest.approx((1 + 1 + 0.5 + 1) / 4)
    assert math.isnan(auroc(probability, torch.ones(4)))


def test_auroc_and_calibration_error_equal_torchmetrics() -> None:
    generator = torch.Generator().manual_seed(0)
    probability = torch.rand(200, generator=generator)
    labels = (torch.rand(200, generator=generator) < probability).long()
    assert auroc(probability, labels) == pytest.approx(float(binary_auroc(probability, labels)), abs=1e-6)
    # torchmetrics measures the confidence of the predicted class; of label 1 it is the same where all probabilities are above a half
    high = 0.5 + probability / 2
    reference = binary_calibration_error(high, labels, n_bins=10)
    assert expected_calibration_error(high, labels, num_bins=10) == pytest.approx(float(reference), abs=1e-6)


def test_reliability_bins_by_hand() -> None:
    bins = reliability_bins(torch.tensor([0.1, 0.3, 0.8, 1.0]), torch.tensor([0, 1, 1, 1]), num_bins=2)
    assert bins.count.tolist() == [2, 2]
    assert bins.confidence.tolist() == pytest.approx([0.2, 0.9])
    assert bins.accuracy.tolist() == pytest.approx([0.5, 1.0])
    assert bins.calibration_error == pytest.approx((0.3 + 0.1) / 2)
