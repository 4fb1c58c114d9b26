"""The picture of how times grow. Loads without torch."""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from experiments.bench.cases import Result
from experiments.bench.limits import SLOPES, grows_by, growth
from experiments.bench.timing import Spread
from experiments.results_page.__main__ import LOOK, PIXELS_AN_INCH
from twn_lightning.evaluation.figures import WIDTH

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
_MARKERS = ("o", "s", "^", "D")


def scaling_picture(results: Sequence[Result]) -> bytes | None:
    """PNG of the results of the part "scaling", a panel for each thing that grows; None if there are none."""
    scalings = [result for result in results if result.part == "scaling"]
    panels = {name: [result for result in scalings if grows_by(result) == name] for name in SLOPES}
    shown = {name: found for name, found in panels.items() if found}
    if not shown:
        return None
    matplotlib.use("agg")
    with style.context(["default", LOOK]):
        figure = Figure(figsize=(WIDTH, 1.0 + 3.0 * len(shown)), layout="constrained")
        for axes, (name, found) in zip(np.atleast_1d(figure.subplots(len(shown), 1)), shown.items(), strict=True):
            _draw(axes, name, found)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=PIXELS_AN_INCH, metadata={"Software": None})
    return buffer.getvalue()


def same_pixels(one: bytes, other: bytes) -> bool:
    """Whether two PNG show the same; another version of zlib may have packed them otherwise."""
    with Image.open(io.BytesIO(one)) as first, Image.open(io.BytesIO(other)) as second:
        return first.size == second.size and np.array_equal(np.asarray(first.convert("RGBA")), np.asarray(second.convert("RGBA")))


def _draw(axes: Axes, name: str, results: Sequence[Result]) -> None:
    for number, result in enumerate(results):
        sizes = [float(size) for size in result.seconds]
        times = [Spread.of([1000.0 * value for value in values]) for values in result.seconds.values()]
        medians = [time.median for time in times]
        reach = [[time.median - time.low for time in times], [time.high - time.median for time in times]]
        mode = result.setting.partition(":")[0].partition(", ")[2]
        title = result.setting.partition(": ")[2].partition(";")[0]
        label = f"{mode}: {title}; exponent {growth(result):.2f}"
        colour = _COLOURS[number % len(_COLOURS)]
        axes.errorbar(sizes, medians, yerr=reach, color=colour, marker=_MARKERS[number % len(_MARKERS)], markersize=5, capsize=3, label=label)
        axes.plot(sizes, [medians[0] * size / sizes[0] for size in sizes], color=colour, linestyle=":", linewidth=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    ticks = sorted({float(size) for result in results for size in result.seconds})
    axes.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel(f"{name}; dotted: proportional to the smallest")
    axes.set_ylabel("ms a call")
    axes.legend(frameon=False, fontsize=9)
