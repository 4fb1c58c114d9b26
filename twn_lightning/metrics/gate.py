"""How well the routing gate's probability tells where thinking helps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from twn_lightning.torchvision_compat import ensure_torchvision


@dataclass(frozen=True)
class ReliabilityBins:
    """A reliability diagram's numbers; empty bins hold 0.

    Attributes:
        confidence: Mean probability of each bin, ``(bins,)``.
        accuracy: Share of label 1 of each bin, ``(bins,)``.
        count: Examples of each bin, ``(bins,)``.
    """

    confidence: Tensor
    accuracy: Tensor
    count: Tensor

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: mean distance between confidence and accuracy, weighted by count, 0 to 1."""
        share = self.count / self.count.sum().clamp(min=1.0)
        return float((share * (self.confidence - self.accuracy).abs()).sum())


def think_rate(probability: Tensor, *, threshold: float) -> float:
    """Share of inputs whose probability is at least the threshold, 0 to 1.

    Args:
        probability: ``(N,)``, N at least 1.
        threshold: 0 to 1.
    """
    return float((probability >= threshold).float().mean())


def auroc(probability: Tensor, labels: Tensor) -> float:
    """Area under the ROC curve: how often an example of label 1 has the higher probability; a tie counts half.

    Args:
        probability: 0 to 1, ``(N,)``.
        labels: 0 or 1, ``(N,)``.

    Returns:
        0 to 1; NaN if one of the labels does not occur.
    """
    if not 0 < int((labels > 0).sum()) < len(labels):
        return float("nan")
    ensure_torchvision()  # torchmetrics imports torchvision
    from torchmetrics.functional.classification import binary_auroc

    return float(binary_auroc(probability.double(), (labels > 0).long()))


def reliability_bins(probability: Tensor, labels: Tensor, *, num_bins: int = 10) -> ReliabilityBins:
    """Confidence and accuracy in bins of equal width (Guo et al., 2017).

    Args:
        probability: 0 to 1, ``(N,)``.
        labels: 0 or 1, ``(N,)``.
        num_bins: At least 1. A bin holds its lower edge; the last one holds 1 too.
    """
    probability = probability.double()
    index = (probability * num_bins).long().clamp(0, num_bins - 1)
    count = torch.bincount(index, minlength=num_bins).double()
    safe = count.clamp(min=1.0)
    confidence = torch.bincount(index, weights=probability, minlength=num_bins) / safe
    accuracy = torch.bincount(index, weights=labels.double(), minlength=num_bins) / safe
    return ReliabilityBins(confidence=confidence.float(), accuracy=accuracy.float(), count=count.float())


def expected_calibration_error(probability: Tensor, labels: Tensor, *, num_bins: int = 10) -> float:
    """Mean over the examples of | confidence - accuracy | of the bin they fall into, 0 to 1 (Guo et al., 2017).

    Confidence is the bin's mean probability of label 1, accuracy its share of label 1: torchmetrics' ``binary_calibration_error``, but that a
    probability of exactly 1 falls into the last bin, as in the diagram of `reliability_bins`.

    Args:
        probability: 0 to 1, ``(N,)``.
        labels: 0 or 1, ``(N,)``.
        num_bins: Bins of equal width, at least 1.
    """
    return reliability_bins(probability, labels, num_bins=num_bins).calibration_error
