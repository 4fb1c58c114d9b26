from collections import Counter

import pytest

from datamodules.mixing import BatchPlan
from twn_lightning.errors import ConfigError, DataError

SIZES = {"flags": 40, "digits": 96, "pages": 17}


def test_batch_is_a_function_of_seed_and_number_alone() -> None:
    in_order = [BatchPlan(SIZES, batch_size=8, seed=3).draw(index) for index in range(150)]
    jumping = BatchPlan(dict(reversed(SIZES.items())), batch_size=8, seed=3)
    assert [jumping.draw(index) for index in reversed(range(150))] == in_order[::-1]
    assert [BatchPlan(SIZES, batch_size=8, seed=4).draw(index) for index in range(150)] != in_order


def test_no_row_comes_twice_in_an_epoch_and_every_row_comes_once() -> None:
    plan = BatchPlan({"digits": 96}, batch_size=8, seed=0)
    epochs = [[row for index in range(12 * epoch, 12 * (epoch + 1)) for row in plan.draw(index).rows] for epoch in range(3)]
    for rows in epochs:
        assert sorted(rows) == list(range(96))
    assert epochs[0] != epochs[1]


def test_left_over_rows_differ_from_epoch_to_epoch() -> None:
    plan = BatchPlan({"pages": 17}, batch_size=8, seed=0)
    left_over = {next(iter(set(range(17)) - set(plan.draw(2 * epoch).rows) - set(plan.draw(2 * epoch + 1).rows))) for epoch in range(20)}
    assert len(left_over) > 5


def test_small_source_runs_on_into_its_next_epoch() -> None:
    plan = BatchPlan({"six": 6}, batch_size=8, seed=0)
    rows = [row for index in range(3) for row in plan.draw(index).rows]
    assert Counter(rows) == dict.fromkeys(range(6), 4)
    assert sorted(rows[:6]) == list(range(6))


@pytest.mark.parametrize("sizes", [SIZES, {"six": 6}])
def test_two_ranks_of_four_see_what_one_of_eight_sees(sizes: dict[str, int]) -> None:
    whole, shared = BatchPlan(sizes, batch_size=8, seed=5), BatchPlan(sizes, batch_size=4, seed=5)
    for index in range(60):
        shares = [shared.draw(index, rank=rank, world_size=2) for rank in range(2)]
        together = whole.draw(index)
        assert {share.source for share in shares} == {together.source}
        assert shares[0].rows + shares[1].rows == together.rows


def test_shares_follow_the_weights_within_every_block() -> None:
    plan = BatchPlan(SIZES, {"flags": 3.0, "pages": 0.0}, batch_size=4, seed=1)
    for block in range(3):
        counts = Counter(plan.draw(64 * block + index).source for index in range(64))
        assert abs(counts["flags"] - 48) <= 1  # 3 of 3 + 1 (no weight given) + 0
        assert abs(counts["digits"] - 16) <= 1
        assert counts["pages"] == 0


def test_misspelt_weight_is_met_with_the_name_meant() -> None:
    with pytest.raises(ConfigError, match=r"weights\.flag is 2\.0, but there is no source of that name\. Did you mean 'flags'\?"):
        BatchPlan(SIZES, {"flag": 2.0}, batch_size=4, seed=0)
    with pytest.raises(ConfigError, match="Known: digits, flags, pages"):
        BatchPlan(SIZES, {"zebra": 2.0}, batch_size=4, seed=0)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_weight_that_is_no_share_is_refused(weight: float) -> None:
    with pytest.raises(ConfigError, match="relative share of batches"):
        BatchPlan(SIZES, {"flags": weight}, batch_size=4, seed=0)


def test_nothing_to_draw_from_is_refused() -> None:
    with pytest.raises(ConfigError, match="All weights are 0"):
        BatchPlan({"flags": 4}, {"flags": 0.0}, batch_size=4, seed=0)
    with pytest.raises(DataError, match="no data source"):
        BatchPlan({}, batch_size=4, seed=0)
    with pytest.raises(DataError, match="'flags' has no rows"):
        BatchPlan({"flags": 0}, batch_size=4, seed=0)


def test_numbers_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="batch_size is 0"):
        BatchPlan(SIZES, batch_size=0, seed=0)
    with pytest.raises(ConfigError, match="seed is -1"):
        BatchPlan(SIZES, batch_size=4, seed=-1)
