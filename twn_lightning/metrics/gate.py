"""How well the routing gate's probability tells where thinking helps."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


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
        probability: ``(N,)``; any score will do.
        labels: 0 or 1, ``(N,)``.

    Returns:
        0 to 1; NaN if one of the labels does not occur.
    """
    positive, negative = probability[labels > 0], probability[labels <= 0]
    if len(positive) == 0 or len(negative) == 0:
        return float("nan")
    ordered = negative.sort().values
    below = torch.searchsorted(ordered, positive, side="left").double()
    not_above = torch.searchsorted(ordered, positive, side="right").double()
    return float((below + not_above).mean() / (2 * len(negative)))


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
    """`ReliabilityBins.calibration_error` of `reliability_bins`, 0 to 1."""
    return reliability_bins(probability, labels, num_bins=num_bins).calibration_error
