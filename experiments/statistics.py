"""Means over tasks with their 95 % intervals: how far a figure would move with other seeds and other test queries. Loads without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from twn_lightning.errors import DataError

LEVEL = 0.975
"""Of the quantiles: 2.5 % of a distribution lie beyond each end of a 95 % interval."""
PerQuery: TypeAlias = Sequence[Sequence[Sequence[float]]]
"""Of each seed, of each task, the metric of each query, 0 to 1."""


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval, in points (0 to 100, or a difference of such).

    Attributes:
        mean: Over seeds, tasks and queries, each task counting as much.
        low: Lower end.
        high: Upper end.
    """

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether the whole interval lies on one side of 0."""
        return self.low > 0.0 or self.high < 0.0

    @property
    def half_width(self) -> float:
        """From the mean to the farther end: the nearer one may be cut off at 0 or 100."""
        return max(self.high - self.mean, self.mean - self.low)

    def __str__(self) -> str:
        return f"{self.mean:.1f} [{self.low:.1f}, {self.high:.1f}]"


def interval(values: PerQuery) -> Interval:
    """The mean over tasks, with its interval, cut off at 0 and 100.

    Half its width is the root of a² + b². a, of the seeds: Student's t for their number less 1, times the standard error of the seeds' means over
    tasks; 0 for one seed. b, of the queries: 1.96 times the standard error of the mean over tasks of each query's mean over seeds; a task with one
    query adds nothing. What differs between seeds and queries at once is in both, so that the interval is rather too wide.

    Args:
        values: Each seed has the same tasks with the same queries.

    Raises:
        DataError: The seeds do not have the same tasks and numbers of queries, or there is nothing.
    """
    found = _interval(_matrices(values))
    return Interval(mean=found.mean, low=max(0.0, found.low), high=min(100.0, found.high))


def paired_interval(values: PerQuery, others: PerQuery) -> Interval:
    """The mean over tasks of values - others, each query paired with itself and each seed with itself (as `interval`, but not cut off).

    Raises:
        DataError: The two do not have the same seeds, tasks and numbers of queries.
    """
    first, second = _matrices(values), _matrices(others)
    if [task.shape for task in first] != [task.shape for task in second]:
        raise DataError(
            f"A paired difference needs the same seeds, tasks and queries on both sides, but one has {_shape(first)}, the other {_shape(second)}: "
            "evaluate both on the same suite, and compare the seeds that both have."
        )
    return _interval([one - other for one, other in zip(first, second, strict=True)])


def _matrices(values: PerQuery) -> list[NDArray[np.float64]]:
    """Of each task, ``(seeds, queries)``."""
    shapes = {tuple(len(task) for task in tasks) for tasks in values}
    if len(shapes) != 1 or not min(shapes) or 0 in min(shapes):
        raise DataError(f"An interval needs at least one seed, and of each seed the same tasks and queries, but there are {sorted(shapes)}.")
    return [np.asarray(task, dtype=np.float64) for task in zip(*values, strict=True)]


def _interval(tasks: Sequence[NDArray[np.float64]]) -> Interval:
    of_seeds = np.mean([task.mean(axis=1) for task in tasks], axis=0)
    of_queries = [task.mean(axis=0) for task in tasks]
    variance = math.fsum(float(task.var(ddof=1)) / len(task) for task in of_queries if len(task) > 1) / len(tasks) ** 2
    half = 100.0 * math.hypot(_of_seeds(of_seeds), float(ndtri(LEVEL)) * math.sqrt(variance))
    mean = 100.0 * float(of_seeds.mean())
    return Interval(mean=mean, low=mean - half, high=mean + half)


def _of_seeds(means: NDArray[np.float64]) -> float:
    number = len(means)
    if number == 1:
        return 0.0
    return float(stdtrit(number - 1, LEVEL)) * float(means.std(ddof=1)) / math.sqrt(number)


def _shape(tasks: Sequence[NDArray[np.float64]]) -> str:
    return f"{tasks[0].shape[0]} seeds, {len(tasks)} tasks and {sum(task.shape[1] for task in tasks)} queries"
