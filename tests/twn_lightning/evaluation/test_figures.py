"""Pictures over seeds show the numbers they were given, and say what was left out of view."""

from __future__ import annotations

import subprocess
import sys
from io import BytesIO

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from twn_lightning.evaluation import figures
from twn_lightning.evaluation.figures import Band

RISING = Band((0.0, 10.0), (40.0, 50.0), (35.0, 48.0), (45.0, 52.0))


def points(figure: Figure, axes: int = 0) -> dict[str, list[tuple[float, float]]]:
    """Legend → points of each line of one panel."""
    found = {}
    for line in figure.axes[axes].lines:
        x, y = np.asarray(line.get_xdata()), np.asarray(line.get_ydata())
        found[str(line.get_label())] = [(float(a), float(b)) for a, b in zip(x, y, strict=True)]
    return found


def heights(figure: Figure, axes: int = 0) -> list[float]:
    return [patch.get_height() for patch in figure.axes[axes].patches if isinstance(patch, Rectangle)]


def edges(figure: Figure) -> list[float]:
    """Heights of the outline of the first panel's band."""
    band = next(each for each in figure.axes[0].collections if isinstance(each, PolyCollection))
    return [float(height) for path in band.get_paths() for height in np.asarray(path.vertices)[:, 1]]


def drawn(figure: Figure) -> Figure:
    figure.savefig(BytesIO(), format="png", dpi=40)
    return figure


def test_trade_off_shows_the_curve_its_range_and_each_mode() -> None:
    figure = drawn(figures.trade_off(RISING, {"always": (10.0, 50.0), "oracle": (4.0, 60.0)}))
    found = points(figure)
    assert found["gate, every threshold"] == [(0.0, 40.0), (10.0, 50.0)]
    assert found["always"] == [(10.0, 50.0)]
    assert {35.0, 45.0, 48.0, 52.0} <= set(edges(figure))
    assert set(points(figures.trade_off(None, {"never": (0.0, 1.0)}))) == {"never"}


def test_gain_histograms_count_what_lies_outside_and_print_both_shares() -> None:
    figure = drawn(figures.gain_by_task({"A": ("plain", [-9.0, 0.0, 0.0, 0.5]), "B (candidates)": ("composing", [1.0])}, limit=2.0, num_bins=5))
    shares = heights(figure)  # edges -2, -1.2, -0.4, 0.4, 1.2, 2: the -9 counts in the first bin
    assert shares == pytest.approx([25.0, 0.0, 50.0, 25.0, 0.0])
    assert [text.get_text() for text in figure.axes[0].texts] == ["hurt\n25 %", "helped\n25 %"]
    assert [axes.get_visible() for axes in figure.axes] == [True, True, False, False]
    assert figure.axes[1].get_title() == "B (candidates)"


def test_score_bars_hold_means_and_both_ends_of_the_interval() -> None:
    figure = drawn(figures.score_bars({"plain": {"A": {"never": (40.0, 30.0, 45.0), "auto": (50.0, 50.0, 60.0)}}}))
    assert heights(figure) == [40.0, 50.0]
    bars = [each for each in figure.axes[0].collections if isinstance(each, LineCollection)]
    ends = [tuple(np.asarray(segment)[:, 1].tolist()) for each in bars for segment in each.get_segments()]
    assert ends == [(30.0, 45.0), (50.0, 60.0)]


def test_forest_fills_the_points_whose_interval_excludes_zero() -> None:
    figure = drawn(figures.forest([("queries", "k1", -2.0, -3.0, -1.0), ("queries", "k4", 0.5, -1.0, 2.0)], xlabel="points"))
    marks = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert [line.get_markerfacecolor() == "white" for line in marks] == [False, True]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["queries: k1", "queries: k4"]


def test_line_panels_share_one_legend_and_draw_a_single_point_as_a_point() -> None:
    point = Band((7.0,), (1.0,), (0.5,), (2.0,))
    panels = {"one": {"train": (RISING, "blue", ":"), "val": (point, "red", "-")}, "two": {"train": (RISING, "blue", ":")}, "three": {}}
    figure = drawn(figures.line_panels(panels, xlabel="step"))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["train", "val"]
    assert (7.0, 1.0) in points(figure)["val"]
    assert any(line.get_marker() == "D" for line in figure.axes[0].lines)
    assert not figure.axes[3].get_visible()


def test_budget_figure_has_a_band_as_wide_as_the_tolerance() -> None:
    figure = drawn(figures.budget_figure([(10.0, 9.0, 8.0, 12.0)], tolerance=0.1))
    edge = figure.axes[0].get_xlim()[1]
    assert edge == pytest.approx(1.08 * 12.0)
    assert points(figure)["spent = asked"] == [(0.0, 0.0), (edge, edge)]
    assert {round(height, 6) for height in edges(figure)} == {0.0, round(0.9 * edge, 6), round(1.1 * edge, 6)}


def test_figures_load_without_torch() -> None:
    code = "import sys, twn_lightning.evaluation.figures; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
