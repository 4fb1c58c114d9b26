"""Times of variants taken in turn, and what can be said of them: ratios of neighbours, their spread, slopes. Loads without torch."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

Variants = Mapping[str, Callable[[], object]]
"""Name → what is timed."""


def interleaved(
    variants: Variants, *, rounds: int, clock: Callable[[], float] = time.perf_counter, progress: Callable[[int], None] | None = None
) -> dict[str, list[float]]:
    """Seconds of each variant, after one run of each that is not counted.

    A round runs all of them there and back (A B B A), so that a machine that becomes slower or faster meanwhile favours none; the k-th times of
    two variants were taken on the same way and are neighbours.

    Args:
        variants: At least one.
        rounds: At least 1.
        clock: Seconds; on an accelerator one that waits for it.
        progress: Told how many runs are done, after each.

    Returns:
        ``2 * rounds`` of each.
    """
    names, done = list(variants), 0
    seconds: dict[str, list[float]] = {name: [] for name in names}
    with _little_garbage():
        for way in range(-1, 2 * rounds):
            for name in names if way % 2 else names[::-1]:
                took = _timed(variants[name], clock)
                if way >= 0:
                    seconds[name].append(took)
                done += 1
                if progress is not None:
                    progress(done)
    return seconds


@contextmanager
def _little_garbage() -> Iterator[None]:
    """Keeps what is there out of the collections of garbage inside, which take tenths of a second otherwise."""
    was_frozen = gc.get_freeze_count() > 0
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        if not was_frozen:
            gc.unfreeze()


def _timed(call: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds of a call in which no garbage of another is collected."""
    gc.collect()
    gc.disable()
    try:
        started = clock()
        call()
        return clock() - started
    finally:
        gc.enable()


@dataclass(frozen=True)
class Spread:
    """Where values lie.

    Attributes:
        median: Half of them are at most this.
        low: 10th percentile, linear between values.
        high: 90th percentile.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(statistics.median(values), _quantile(values, 0.1), _quantile(values, 0.9))


def ratios(over: Sequence[float], under: Sequence[float]) -> list[float]:
    """Each value of ``over`` divided by its neighbour."""
    return [first / second for first, second in zip(over, under, strict=True)]


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Exponent p of y ~ x^p, by least squares in logarithms: 1 where twice as much takes twice as long.

    Args:
        x: Above 0, at least two different values.
        y: Above 0, as many.
    """
    return statistics.linear_regression([math.log(value) for value in x], [math.log(value) for value in y]).slope


def _quantile(values: Sequence[float], share: float) -> float:
    ordered, place = sorted(values), share * (len(values) - 1)
    first = math.floor(place)
    last = min(first + 1, len(ordered) - 1)
    return ordered[first] + (place - first) * (ordered[last] - ordered[first])
