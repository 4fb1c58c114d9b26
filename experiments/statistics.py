"""Means over tasks with their 95 % intervals: how far a figure would move with other seeds and other test queries. Loads without torch."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from twn_lightning.errors import DataError

NUM_DRAWS = 2000
LEVEL = 0.95
SEED = 2605
PerQuery: TypeAlias = Sequence[Sequence[Sequence[float]]]
"""Of each seed, of each task, the metric of each query, 0 to 1."""


@dataclass(frozen=True)
class Interval:
    """A mean and its percentile bootstrap interval, in points (0 to 100, or a difference of such).

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

    def __str__(self) -> str:
        return f"{self.mean:.1f} [{self.low:.1f}, {self.high:.1f}]"


def interval(values: PerQuery, *, num_draws: int = NUM_DRAWS, seed: int = SEED) -> Interval:
    """The mean over tasks, with its interval.

    A draw takes as many seeds as there are, with replacement, and within each task as many queries as there are, the same for every seed,
    because every seed was asked the same queries.

    Args:
        values: Each seed has the same tasks with the same queries.
        num_draws: Of the bootstrap.
        seed: Of the bootstrap.

    Raises:
        DataError: The seeds do not have the same tasks and numbers of queries, or there is nothing.
    """
    return _bootstrap(_matrices(values), num_draws=num_draws, seed=seed)


def paired_interval(values: PerQuery, others: PerQuery, *, num_draws: int = NUM_DRAWS, seed: int = SEED) -> Interval:
    """The mean over tasks of values - others, each query paired with itself and each seed with itself (arguments as in `interval`).

    Raises:
        DataError: The two do not have the same seeds, tasks and numbers of queries.
    """
    first, second = _matrices(values), _matrices(others)
    if [task.shape for task in first] != [task.shape for task in second]:
        raise DataError(
            f"A paired difference needs the same seeds, tasks and queries on both sides, but one has {_shape(first)}, the other {_shape(second)}: "
            "evaluate both on the same suite, and compare the seeds that both have."
        )
    return _bootstrap([one - other for one, other in zip(first, second, strict=True)], num_draws=num_draws, seed=seed)


def _matrices(values: PerQuery) -> list[NDArray[np.float64]]:
    """Of each task, ``(seeds, queries)``."""
    shapes = {tuple(len(task) for task in tasks) for tasks in values}
    if len(shapes) != 1 or not min(shapes) or 0 in min(shapes):
        raise DataError(f"An interval needs at least one seed, and of each seed the same tasks and queries, but there are {sorted(shapes)}.")
    return [np.asarray(task, dtype=np.float64) for task in zip(*values, strict=True)]


def _bootstrap(tasks: Sequence[NDArray[np.float64]], *, num_draws: int, seed: int) -> Interval:
    num_seeds = tasks[0].shape[0]
    seed_counts, query_counts = _draws(num_seeds, tuple(task.shape[1] for task in tasks), num_draws, seed)
    total = np.zeros(num_draws)
    for task, counts in zip(tasks, query_counts, strict=True):
        total += ((counts @ task.T) * seed_counts).sum(axis=1) / task.size
    means = 100.0 * total / len(tasks)
    low, high = np.quantile(means, [0.5 - LEVEL / 2, 0.5 + LEVEL / 2])
    return Interval(mean=float(100.0 * np.mean([task.mean() for task in tasks])), low=float(low), high=float(high))


@functools.lru_cache(maxsize=4)  # about 30 MB each for 2,000 queries; a page asks for hundreds of intervals of few shapes
def _draws(num_seeds: int, num_queries: tuple[int, ...], num_draws: int, seed: int) -> tuple[NDArray[np.float64], tuple[NDArray[np.float64], ...]]:
    """How often each draw takes each seed, and of each task each query; rows are draws."""
    rng = np.random.default_rng(seed)
    seeds, *queries = (rng.multinomial(count, np.full(count, 1.0 / count), size=num_draws).astype(np.float64) for count in (num_seeds, *num_queries))
    return seeds, tuple(queries)


def _shape(tasks: Sequence[NDArray[np.float64]]) -> str:
    return f"{tasks[0].shape[0]} seeds, {len(tasks)} tasks and {sum(task.shape[1] for task in tasks)} queries"
