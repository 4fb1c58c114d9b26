"""Pictures of a run, as matplotlib figures without global state: the caller saves or logs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from twn_lightning.evaluation.evaluate import MODES, SweepPoint
from twn_lightning.evaluation.report import Report
from twn_lightning.metrics.gate import ReliabilityBins

COLOURS = {"never": "#7f8c8d", "always": "#c0392b", "auto": "#2471a3", "oracle": "#d4ac0d"}
"""One colour for each mode in every figure."""


def gain_histogram(gain: Tensor, *, margin: float = 0.0, dead_zone: float = 0.0, num_bins: int = 60) -> Figure:
    """How often thinking helped and hurt, and by how much.

    Args:
        gain: u_gen - u_disc in nats, ``(N,)``.
        margin: Drawn as a line: to its right the label is "think".
        dead_zone: Drawn as a band around 0: examples that are left out.
        num_bins: Over the range from the 1st to the 99th percentile; what lies outside is counted in the outermost bins.
    """
    values = gain.detach().double().cpu()
    low, high = torch.quantile(values, torch.tensor([0.01, 0.99], dtype=torch.float64)).tolist()
    low, high = min(low, -0.1), max(high, 0.1)
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    axes.hist(values.clamp(low, high).tolist(), bins=num_bins, range=(low, high), color=COLOURS["auto"])
    axes.axvspan(-dead_zone, dead_zone, color="0.85", zorder=0, label="left out")
    axes.axvline(margin, color=COLOURS["always"], label="think to the right")
    axes.set_xlabel("gain of thinking, nats")
    axes.set_ylabel("inputs")
    axes.set_title(f"{len(values)} inputs, thinking helps {100 * float((values > margin).double().mean()):.0f} %")
    axes.legend()
    return figure


def reliability_diagram(bins: ReliabilityBins) -> Figure:
    """How often thinking helped where the gate gave a probability; on the diagonal the gate is calibrated."""
    figure = Figure(figsize=(4.5, 4.5), layout="constrained")
    axes = figure.subplots()
    filled = bins.count > 0
    width = 1.0 / len(bins.count)
    centres = (torch.arange(len(bins.count)) + 0.5) * width
    axes.bar(centres[filled].tolist(), bins.accuracy[filled].tolist(), width=0.9 * width, color=COLOURS["auto"], alpha=0.6)
    axes.plot(bins.confidence[filled].tolist(), bins.accuracy[filled].tolist(), "o", color=COLOURS["auto"])
    axes.plot([0, 1], [0, 1], "--", color="0.5")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("gate's probability")
    axes.set_ylabel("share of inputs that thinking helped")
    axes.set_title(f"expected calibration error {bins.calibration_error:.3f}")
    return figure


def quality_against_tokens(points: Sequence[SweepPoint], *, references: Mapping[str, tuple[float, float]] | None = None, title: str = "") -> Figure:
    """Score against reasoning tokens over the gate's thresholds.

    Args:
        points: Of `threshold_sweep`.
        references: Mode → (tokens, score), drawn as single points.
        title: Above the picture.
    """
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    ordered = sorted(points, key=lambda point: (point.reasoning_tokens, -point.threshold))
    tokens_of, scores = [point.reasoning_tokens for point in ordered], [point.score for point in ordered]
    axes.plot(tokens_of, scores, ".-", color=COLOURS["auto"], label="gate, by threshold")
    for mode, (tokens, score) in (references or {}).items():
        axes.plot([tokens], [score], "D", color=COLOURS.get(mode, "black"), label=mode)
    axes.set_xlabel("reasoning tokens, queries and candidates")
    axes.set_ylabel("score")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def task_bars(report: Report) -> Figure:
    """Scores of each task under each mode that was evaluated."""
    modes = [mode for mode in MODES if any(mode in row.scores for row in report.rows)]
    figure = Figure(figsize=(max(6.0, 0.9 * len(report.rows) + 2.0), 4), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(1, len(modes))
    for number, mode in enumerate(modes):
        places = [place + (number - (len(modes) - 1) / 2) * width for place in range(len(report.rows))]
        axes.bar(places, [row.scores.get(mode, 0.0) for row in report.rows], width=width, color=COLOURS[mode], label=mode)
    axes.set_xticks(range(len(report.rows)), [row.name for row in report.rows], rotation=30, ha="right")
    axes.set_ylim(0, 100)
    axes.set_ylabel("score")
    axes.legend(ncols=len(modes), loc="upper center", bbox_to_anchor=(0.5, 1.15))
    return figure
