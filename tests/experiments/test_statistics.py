"""Intervals by hand, and against draws made one by one."""

import itertools

import numpy as np
import pytest

from experiments.statistics import Interval, interval, paired_interval
from twn_lightning.errors import DataError


def random_values(seed: int, *sizes: int, num_seeds: int = 3) -> list[list[list[float]]]:
    rng = np.random.default_rng(seed)
    return [[rng.random(size).tolist() for size in sizes] for _ in range(num_seeds)]


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
    assert (found.mean, found.low, found.high) == pytest.approx((10.0, 10.0, 10.0))
    assert found.excludes_zero
    alone = interval(values)
    assert alone.high - alone.low > 10.0


def test_the_interval_of_two_queries_by_hand() -> None:
    """Means of two draws from (0, 1): 0 and 1 in a quarter of all draws each, so both ends are in the 2.5 % tails."""
    assert interval([[[0.0, 1.0]]]) == Interval(50.0, 0.0, 100.0)


def test_two_seeds_are_drawn_as_a_whole() -> None:
    """Both seeds' queries agree within the seed, so that only the draw of seeds moves the mean: 0, 50 or 100."""
    assert interval([[[0.0] * 50], [[1.0] * 50]]) == Interval(50.0, 0.0, 100.0)


def test_as_likely_as_every_possible_draw() -> None:
    """Exact distribution: every choice of seeds, and of queries (the same for all seeds), counted out."""
    values = [[[0.1, 0.6, 1.0]], [[0.3, 0.0, 0.9]]]
    means = [
        100 * float(np.mean([values[seed][0][query] for seed in seeds for query in queries]))
        for seeds in itertools.product(range(2), repeat=2)
        for queries in itertools.product(range(3), repeat=3)
    ]
    expected = np.quantile(means, [0.025, 0.975], method="inverted_cdf")
    found = interval(values, num_draws=20_000)
    assert [found.low, found.high] == pytest.approx(list(expected), abs=1.5)


def test_as_a_slow_reference_draws() -> None:
    values = random_values(2, 20, 30)
    rng = np.random.default_rng(5)
    means = []
    for _ in range(1500):
        seeds = rng.integers(0, 3, 3)
        of_tasks = []
        for task, size in ((0, 20), (1, 30)):
            queries = rng.integers(0, size, size)
            of_tasks.append(np.mean([[values[seed][task][query] for query in queries] for seed in seeds]))
        means.append(100 * float(np.mean(of_tasks)))
    found = interval(values)
    assert [found.low, found.high] == pytest.approx(np.quantile(means, [0.025, 0.975]).tolist(), abs=0.6)


def test_the_same_draws_every_time() -> None:
    values = random_values(3, 6)
    assert interval(values) == interval(values)
    assert interval(values, seed=1) != interval(values)


@pytest.mark.parametrize("values", [[], [[]], [[[]]], [[[1.0]], [[1.0, 0.0]]]])
def test_what_cannot_be_averaged_is_refused(values: list[list[list[float]]]) -> None:
    with pytest.raises(DataError, match="at least one seed"):
        interval(values)


def test_a_pair_needs_the_same_queries() -> None:
    with pytest.raises(DataError, match="one has 1 seeds, 1 tasks and 2 queries, the other 1 seeds, 1 tasks and 3 queries"):
        paired_interval([[[1.0, 0.0]]], [[[1.0, 0.0, 0.0]]])


def test_shared_draws_are_those_of_a_fresh_generator() -> None:
    """Counts drawn anew for every interval, seeds first and then each task's queries, give the same bits; another shape between changes nothing."""

    def drawn_anew(values: list[list[list[float]]]) -> Interval:
        rng, num_seeds = np.random.default_rng(2605), len(values)
        seeds = rng.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), size=2000)
        total = np.zeros(2000)
        for task in (np.array(task) for task in zip(*values, strict=True)):
            size = task.shape[1]
            total += ((rng.multinomial(size, np.full(size, 1 / size), size=2000) @ task.T) * seeds).sum(axis=1) / (size * num_seeds)
        low, high = np.quantile(100 * total / len(values[0]), [0.025, 0.975])
        return Interval(found.mean, float(low), float(high))

    first, second = random_values(4, 8, 5), random_values(5, 8, 5)
    for values in (first, random_values(6, 3, num_seeds=2), second, first):
        found = interval(values)
        assert found == drawn_anew(values)
