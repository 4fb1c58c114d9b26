"""Intervals by hand, and how often they hold the truth."""

import math

import numpy as np
import pytest

from experiments.statistics import Interval, interval, paired_interval
from twn_lightning.errors import DataError


def random_values(seed: int, *sizes: int, num_seeds: int = 3) -> list[list[list[float]]]:
    rng = np.random.default_rng(seed)
    return [[rng.random(size).tolist() for size in sizes] for _ in range(num_seeds)]


def ends(found: Interval) -> tuple[float, float, float]:
    return found.mean, found.low, found.high


def test_each_task_counts_as_much() -> None:
    found = interval([[[1.0], [0.0, 0.0, 0.5]]])
    assert found.mean == pytest.approx(100 * (1 + 0.5 / 3) / 2)


def test_equal_inputs_differ_by_nothing() -> None:
    values = random_values(0, 5, 9)
    assert paired_interval(values, values) == Interval(0.0, 0.0, 0.0)
    assert not paired_interval(values, values).excludes_zero


def test_a_constant_shift_has_no_width_when_paired() -> None:
    values = random_values(1, 4, 7)
    shifted = [[[value + 0.1 for value in task] for task in tasks] for tasks in values]
    found = paired_interval(shifted, values)
    assert ends(found) == pytest.approx((10.0, 10.0, 10.0))
    assert found.excludes_zero
    assert interval(values).half_width > 5.0


def test_one_seed_gives_the_part_of_the_queries_alone() -> None:
    """Two tasks: variances 1/3 of 4 queries and 0 of 2, so (1/3 / 4) / 2² for their mean."""
    found = interval([[[0.0, 1.0, 0.0, 1.0], [0.5, 0.5]]])
    half = 100 * 1.959964 * math.sqrt(1 / 48)
    assert ends(found) == pytest.approx((50.0, 50.0 - half, 50.0 + half))


def test_two_seeds_without_noise_of_queries_give_the_part_of_the_seeds_alone() -> None:
    """Seeds at 49 and 51: standard error 1, times Student's t of one degree of freedom."""
    found = interval([[[0.49] * 50], [[0.51] * 50]])
    assert ends(found) == pytest.approx((50.0, 50.0 - 12.7062, 50.0 + 12.7062))


def test_the_parts_of_seeds_and_queries_add_as_squares() -> None:
    values = [[[0.2, 0.4]], [[0.4, 0.8]], [[0.6, 0.6]]]  # seeds 0.3, 0.6, 0.6; queries 0.4 and 0.6
    seeds, queries = 4.302653 * 100 * math.sqrt(0.03 / 3), 1.959964 * 100 * math.sqrt(0.02 / 2)
    found = paired_interval(values, [[[0.0, 0.0]]] * 3)
    assert ends(found) == pytest.approx((50.0, 50.0 - math.hypot(seeds, queries), 50.0 + math.hypot(seeds, queries)))


def test_scores_end_at_0_and_100_and_differences_do_not() -> None:
    values = [[[1.0, 0.0]], [[1.0, 1.0]]]
    found = interval(values)
    assert (found.mean, found.low, found.high) == (75.0, 0.0, 100.0)
    assert found.half_width == 75.0
    assert paired_interval(values, [[[0.0, 0.0]]] * 2).high > 100.0


@pytest.mark.parametrize("num_seeds", [2, 3])
def test_the_interval_holds_the_truth_19_times_of_20_where_seeds_differ_more_than_queries(num_seeds: int) -> None:
    rng, num_trials, truth, held = np.random.default_rng(num_seeds), 1000, 0.5, 0
    for _ in range(num_trials):
        queries, shifts = rng.normal(truth, 0.1, (2, 40)), rng.normal(0.0, 0.05, (num_seeds, 2, 1))  # standard errors: 0.011; 0.035 / √seeds
        found = interval((queries + shifts + rng.normal(0.0, 0.05, (num_seeds, 2, 40))).tolist())
        held += found.low <= 100 * truth <= found.high
    assert held / num_trials >= 0.93


@pytest.mark.parametrize("values", [[], [[]], [[[]]], [[[1.0]], [[1.0, 0.0]]]])
def test_what_cannot_be_averaged_is_refused(values: list[list[list[float]]]) -> None:
    with pytest.raises(DataError, match="at least one seed"):
        interval(values)


def test_a_pair_needs_the_same_queries() -> None:
    with pytest.raises(DataError, match="one has 1 seeds, 1 tasks and 2 queries, the other 1 seeds, 1 tasks and 3 queries"):
        paired_interval([[[1.0, 0.0]]], [[[1.0, 0.0, 0.0]]])
