"""Pictures of a run, as matplotlib figures without global state: the caller saves or logs them. Loads without torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, SupportsFloat

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

if TYPE_CHECKING:
    from twn_lightning.evaluation.evaluate import SweepPoint
    from twn_lightning.evaluation.report import Report

COLOURS = {
    "never": "#7f7f7f",
    "always": "#d55e00",
    "auto": "#0072b2",
    "oracle": "#e69f00",
    "random": "#cc79a7",
    "confidence": "#009e73",
    "query": "#56b4e9",
    "candidate": "#000000",
}
"""One colour for each mode in every figure, after Okabe and Ito: told apart by colour-blind readers too."""
MARKERS = {"never": "o", "always": "s", "auto": "D", "oracle": "*", "random": "v", "confidence": "^", "query": "<", "candidate": ">"}
"""One marker for each mode: colour is never the only difference."""
KIND_COLOURS = {"plain": "#44aa99", "composing": "#882255"}
"""One colour for each kind of task."""
WIDTH = 9.0
"""Inches of a page's width: at 10 points, letters are as large as the text around a picture that is shown 900 pixels wide."""


class Bins(Protocol):
    """A reliability diagram's numbers, such as `twn_lightning.metrics.gate.ReliabilityBins`."""

    @property
    def confidence(self) -> Iterable[SupportsFloat]:
        """Mean probability of each bin."""
        ...

    @property
    def accuracy(self) -> Iterable[SupportsFloat]:
        """Share of label 1 of each bin."""
        ...

    @property
    def count(self) -> Iterable[SupportsFloat]:
        """Examples of each bin."""
        ...

    @property
    def calibration_error(self) -> float:
        """Expected calibration error."""
        ...


@dataclass(frozen=True)
class Band:
    """A curve over seeds.

    Attributes:
        x: Places, rising.
        mean: Over the seeds, at each place.
        low: Lowest of the seeds.
        high: Highest of the seeds.
    """

    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


def reliability_diagram(bins: Bins, *, note: str = "") -> Figure:
    """How often thinking helped where the gate gave a probability, on the diagonal the gate is calibrated; below, how many inputs each bin has.

    Args:
        bins: Of equal width from 0 to 1.
        note: Follows the calibration error in the title.
    """
    confidence, accuracy, count = ([float(value) for value in column] for column in (bins.confidence, bins.accuracy, bins.count))
    width = 1.0 / len(count)
    filled = [index for index, number in enumerate(count) if number > 0]
    centres = [(index + 0.5) * width for index in filled]
    figure = Figure(figsize=(5.2, 5.6), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3.2, 1]})
    axes.bar(centres, [accuracy[index] for index in filled], width=0.9 * width, color=COLOURS["auto"], alpha=0.5, label="share that thinking helped")
    axes.plot(
        [confidence[index] for index in filled],
        [accuracy[index] for index in filled],
        "o",
        color=COLOURS["auto"],
        clip_on=False,
        label="the same, at the bin's mean probability",
    )
    axes.plot([0, 1], [0, 1], "--", color="0.4", label="calibrated")
    axes.set(xlim=(0, 1), ylim=(0, 1), ylabel="share of inputs that thinking helped")
    axes.set_title(f"expected calibration error {bins.calibration_error:.3f}{note}")
    axes.legend(loc="upper left", bbox_to_anchor=(0.0, -0.02), fontsize=8, frameon=False, ncols=1)
    below.bar(centres, [count[index] for index in filled], width=0.9 * width, color="0.6")
    for centre, index in zip(centres, filled, strict=True):
        below.annotate(f"{count[index]:.0f}", (centre, count[index]), xytext=(0, 1), textcoords="offset points", ha="center", va="bottom", fontsize=8)
    below.set(xlabel="the gate's probability that thinking helps", ylabel="inputs", ylim=(0, 1.25 * max(count, default=1.0) or 1.0))
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
        axes.plot([tokens], [score], MARKERS.get(mode, "D"), color=COLOURS.get(mode, "black"), label=mode)
    axes.set_xlabel("reasoning tokens, queries and candidates")
    axes.set_ylabel("score")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def task_bars(report: Report) -> Figure:
    """Scores of each task under each mode that was evaluated."""
    modes = [mode for mode in ("never", "always", "auto", "oracle") if any(mode in row.scores for row in report.rows)]
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


# --- pictures over seeds, of plain numbers --------------------------------------------------------------------------------------


def trade_off(curve: Band | None, points: Mapping[str, tuple[float, float]]) -> Figure:
    """Mean score against reasoning tokens a query: the gate's thresholds as a curve with the range of the seeds, each mode as a point.

    Args:
        curve: Over tokens; None draws the points alone.
        points: Mode → (tokens a query, score).
    """
    figure = Figure(figsize=(WIDTH, 4.6), layout="constrained")
    axes = figure.subplots()
    if curve is not None:
        draw_band(axes, curve, colour=COLOURS["auto"], label="gate, every threshold")
    for mode, (tokens, score) in points.items():
        size = 13 if MARKERS.get(mode) == "*" else 8
        axes.plot([tokens], [score], MARKERS.get(mode, "o"), color=COLOURS.get(mode, "black"), markersize=size, markeredgecolor="white", label=mode)
    axes.set(xlabel="reasoning tokens a query, those of candidates included", ylabel="mean score over tasks, 0 to 100")
    axes.set_xlim(left=min(0.0, axes.get_xlim()[0]))
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def draw_band(axes: Axes, band: Band, *, colour: str, label: str = "", style: str = "-") -> None:
    """Draw a curve with the range of its seeds; of one place alone a point.

    Args:
        axes: Gets it.
        band: The curve.
        colour: Of line and range.
        label: In the legend; empty for none.
        style: Of the line, as matplotlib writes it.
    """
    axes.fill_between(band.x, band.low, band.high, color=colour, alpha=0.18, linewidth=0)
    if len(band.x) == 1:
        axes.errorbar(band.x, band.mean, yerr=[[band.mean[0] - band.low[0]], [band.high[0] - band.mean[0]]], fmt="D", color=colour, markersize=5)
    axes.plot(band.x, band.mean, style, color=colour, linewidth=1.6, label=label or None)


def gain_by_task(gains: Mapping[str, tuple[str, Sequence[float]]], *, limit: float, num_bins: int = 41) -> Figure:
    """Histograms of what thinking brought, a panel for each task, with the shares that it helped and hurt.

    Args:
        gains: Title of the panel → (kind of task, gains in nats).
        limit: The axis goes from -limit to limit nats; what lies outside is counted in the outermost bins.
        num_bins: Of each panel; an odd number has a bin around 0.
    """
    columns = 4
    rows = -(-len(gains) // columns)
    figure = Figure(figsize=(WIDTH, 1.55 * rows + 0.9), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, squeeze=False)
    for panel, (title, (kind, values)) in zip(panels.flat, gains.items(), strict=False):
        listed = np.asarray(values, dtype=np.float64)
        weights = np.full(len(listed), 100.0 / max(1, len(listed)))
        panel.hist(listed.clip(-limit, limit), bins=num_bins, range=(-limit, limit), weights=weights, color=KIND_COLOURS[kind])
        panel.axvline(0.0, color="0.3", linewidth=0.8)
        panel.set_title(title, fontsize=9)
        shares = [100.0 * float(np.mean(found)) for found in (listed < 0.0, listed > 0.0)]
        for share, word, place, side in zip(shares, ("hurt", "helped"), (0.03, 0.97), ("left", "right"), strict=True):
            panel.text(place, 0.93, f"{word}\n{share:.0f} %", transform=panel.transAxes, fontsize=8, ha=side, va="top")
        panel.tick_params(labelsize=8)
        panel.set_ylim(top=1.5 * max(1.0, panel.get_ylim()[1]))
        panel.yaxis.set_major_locator(MaxNLocator(3, integer=True))
    for panel in list(panels.flat)[len(gains) :]:
        panel.set_visible(False)
    for place in range(columns):
        lowest = max((row for row in range(rows) if row * columns + place < len(gains)), default=0)
        panels[lowest][place].tick_params(labelbottom=True)
    figure.supxlabel("gain of an input's own thought, nats (log-softmax score of the right partner with the thought, less without)", fontsize=9)
    figure.supylabel("share of the task's inputs, %", fontsize=9)
    kinds = dict.fromkeys(kind for kind, _ in gains.values())
    figure.legend(
        handles=[Patch(color=KIND_COLOURS[kind]) for kind in kinds],
        labels=[f"{kind} task" for kind in kinds],
        loc="outside upper center",
        ncols=len(kinds),
        frameon=False,
    )
    return figure


def score_bars(scores: Mapping[str, Mapping[str, Mapping[str, tuple[float, float, float]]]]) -> Figure:
    """Scores of each task under each mode with their intervals, a row of bars for each group of tasks.

    Args:
        scores: Group → task → mode → (mean, low, high), 0 to 100.
    """
    figure = Figure(figsize=(WIDTH, 3.1 * len(scores) + 0.4), layout="constrained")
    rows = figure.subplots(len(scores), 1, squeeze=False)[:, 0]
    widest = max(len(tasks) for tasks in scores.values())
    for axes, (group, tasks) in zip(rows, scores.items(), strict=True):
        modes = list(dict.fromkeys(mode for of_mode in tasks.values() for mode in of_mode))
        width = 0.8 / max(1, len(modes))
        for number, mode in enumerate(modes):
            places = [place + (number - (len(modes) - 1) / 2) * width for place in range(len(tasks))]
            found = [of_mode[mode] for of_mode in tasks.values()]
            errors = [[max(0.0, mean - low) for mean, low, _ in found], [max(0.0, high - mean) for mean, _, high in found]]
            heights = [mean for mean, _, _ in found]
            axes.bar(places, heights, width=0.92 * width, yerr=errors, color=COLOURS[mode], label=mode, error_kw={"linewidth": 1.0, "ecolor": "0.2"})
        axes.set_xticks(range(len(tasks)), list(tasks), rotation=22, ha="right", fontsize=9)
        axes.set(xlim=(-0.6, widest - 0.4), ylim=(0, 100), ylabel="score, 0 to 100", title=f"{group} tasks")
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    handles, labels = rows[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
    return figure


def forest(rows: Sequence[tuple[str, str, float, float, float]], *, xlabel: str) -> Figure:
    """Differences with their intervals, one below the other; filled where the interval excludes 0.

    Args:
        rows: (group, name, mean, low, high).
        xlabel: What the differences are, with their unit.
    """
    figure = Figure(figsize=(WIDTH, 0.27 * len(rows) + 1.1), layout="constrained")
    axes = figure.subplots()
    groups = list(dict.fromkeys(group for group, *_ in rows))
    for place, (group, _, mean, low, high) in enumerate(rows):
        colour = (COLOURS["auto"], COLOURS["always"])[groups.index(group) % 2]
        excludes = low > 0.0 or high < 0.0
        axes.plot([low, high], [place, place], "-", color=colour, linewidth=1.6)
        axes.plot([mean], [place], "o", color=colour, markerfacecolor=colour if excludes else "white", markersize=6)
    axes.axvline(0.0, color="0.3", linewidth=0.9)
    axes.set_yticks(range(len(rows)), [f"{group}: {name}" for group, name, *_ in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(xlabel)
    axes.grid(axis="x", alpha=0.3)
    return figure


def line_panels(panels: Mapping[str, Mapping[str, tuple[Band, str, str]]], *, columns: int = 2, height: float = 2.6, xlabel: str = "") -> Figure:
    """Curves over seeds, a panel for each title.

    Args:
        panels: Title → legend → (curve, colour, line style); the first word of a panel's axis is its title.
        columns: Panels side by side.
        height: Of a panel, inches.
        xlabel: Below all.
    """
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(WIDTH, height * rows + 0.6), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    handles: dict[str, Artist] = {}
    for axes, (title, lines) in zip(grid.flat, panels.items(), strict=False):
        for label, (band, colour, style) in lines.items():
            draw_band(axes, band, colour=colour, label=label, style=style)
        axes.set_title(title, fontsize=10 if columns < 4 else 9)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.3)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    for axes in list(grid.flat)[len(panels) :]:
        axes.set_visible(False)
    figure.supxlabel(xlabel, fontsize=10)
    longest = max((len(label) for label in handles), default=1)
    fitting = max(1, min(len(handles), 115 // (longest + 9)))  # about 115 letters of this size, and a line before each label
    figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=fitting, frameon=False, fontsize=9)
    return figure


def budget_figure(rows: Sequence[tuple[float, float, float, float]], *, tolerance: float) -> Figure:
    """Tokens spent against the budget that was asked for; inside the band the budget is kept.

    Args:
        rows: (budget, mean, lowest and highest of the seeds), tokens a query.
        tolerance: Half the band's width, as a share of the budget.
    """
    figure = Figure(figsize=(6.2, 4.2), layout="constrained")
    axes = figure.subplots()
    asked, means = [row[0] for row in rows], [row[1] for row in rows]
    edge = [0.0, 1.08 * max([*asked, *(row[3] for row in rows)])]
    axes.plot(edge, edge, "--", color="0.4", label="spent = asked")
    axes.fill_between(
        edge,
        [place * (1 - tolerance) for place in edge],
        [place * (1 + tolerance) for place in edge],
        color="0.85",
        label=f"± {100 * tolerance:.0f} %",
    )
    errors = [[mean - low for _, mean, low, _ in rows], [high - mean for _, mean, _, high in rows]]
    axes.errorbar(asked, means, yerr=errors, fmt="D", color=COLOURS["auto"], capsize=3, label="spent, mean and range of the seeds")
    axes.set(xlim=edge, ylim=edge, xlabel="budget, reasoning tokens a query", ylabel="spent on the test tasks, tokens a query")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.14), ncols=3, frameon=False, fontsize=9)
    return figure
