import logging
import pickle

import pytest

from datamodules.pair_source import PairSource
from datamodules.row_source import FAULT_TITLES, Fault, Reading, RowError, RowSource, RowTally
from twn_lightning.batches import Item, Pair
from twn_lightning.errors import DataError


class Numbers:
    """Rows that are their own numbers; every row that is a multiple of a number cannot be read."""

    def __init__(self, num_rows: int, unreadable: int = 1000) -> None:
        self.num_rows, self.unreadable = num_rows, unreadable

    def __len__(self) -> int:
        return self.num_rows

    def __getitem__(self, index: int) -> int:
        if index % self.unreadable == 3:
            raise DataError(f"row {index + 1}: no valid JSON.")
        return index


def parse(row: int, index: int) -> Reading:
    assert row == index
    if row % 10 == 5:
        raise RowError(f"row {index + 1}: the picture is gone.", "medium")
    return Reading(Pair(Item(str(row)), Item("x"), key=str(row)), ("markers",) if row % 4 == 0 else ())


def source(on_error: str = "skip", num_rows: int = 20, unreadable: int = 1000, max_rows: int | None = None) -> RowSource[int]:
    return RowSource("numbers", Numbers(num_rows, unreadable), parse, digest="d", on_error=on_error, max_rows=max_rows)  # type: ignore[arg-type]


def test_rows_become_pairs_of_the_source() -> None:
    rows = source(max_rows=7)
    assert isinstance(rows, PairSource)
    assert len(rows) == 7
    assert rows[6] == Pair(Item("6"), Item("x"), source="numbers", key="6")
    assert pickle.loads(pickle.dumps(rows))[6] == rows[6]
    with pytest.raises(IndexError):
        rows.read(7)


def test_faulty_row_is_an_error_or_the_next_usable_one_stands_in() -> None:
    with pytest.raises(RowError, match="row 6: the picture is gone"):
        source("raise")[5]
    rows = source(num_rows=16, unreadable=4)  # 3, 7, 11, 15 cannot be read, 5 and 15 cannot be parsed
    assert [rows[index].key for index in range(16)] == ["0", "1", "2", "4", "4", "6", "6", "8", "8", "9", "10", "12", "12", "13", "14", "0"]
    with pytest.raises(RowError, match="the picture is gone"):
        rows.read(5)


def test_each_kind_is_named_once_and_rows_are_counted_once(caplog: pytest.LogCaptureFixture) -> None:
    rows = source(unreadable=4)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            for index in range(len(rows)):
                rows[index]
    assert [record.getMessage().rsplit(". ", 1)[1] for record in caplog.records] == ["row 4: no valid JSON.", "row 6: the picture is gone."]
    assert rows.faults() == {"json": 5, "medium": 1}  # 3, 7, 11, 15, 19; 5
    assert rows.repairs() == {"markers": 5}  # 0, 4, 8, 12, 16
    assert rows.report() == [
        "Source 'numbers': 6 of 20 rows could not be used, the next usable row stood in (no valid JSON: 5; a medium is missing or unreadable: 1).",
        "Source 'numbers': rows that were mended (left-over markers removed from a chain of thought: 5).",
    ]
    assert source().report() == []


def test_fault_that_shows_later_counts_too() -> None:
    def refuse_even(pair: Pair) -> None:
        if int(pair.key) % 2 == 0:
            raise DataError("too long.")

    rows = source()
    assert rows.usable(4, refuse_even).key == "7"  # 4 and 6 are even, 5 is faulty
    assert rows.faults() == {"medium": 1, "prompt": 2}
    with pytest.raises(DataError, match="too long"):
        source("raise").usable(4, refuse_even)


def test_data_without_a_usable_row_are_refused() -> None:
    def refuse(row: int, index: int) -> Reading:
        raise RowError(f"row {index + 1}: pos is missing.")

    with pytest.raises(DataError, match="its first 16 rows are all faulty; the first: row 1: pos is missing"):
        RowSource("s", Numbers(20), refuse, digest="d", on_error="skip")
    with pytest.raises(RowError, match="row 1: pos is missing"):
        RowSource("s", Numbers(20), refuse, digest="d")
    with pytest.raises(DataError, match="'s' has no rows"):
        RowSource("s", Numbers(0), refuse, digest="d")

    def never(pair: Pair) -> None:
        raise DataError("too long.")

    with pytest.raises(DataError, match=r"20 rows in a row, from row 3 on, cannot be used; the first: too long\..*check_data"):
        source().usable(2, never)


def test_every_kind_has_a_number_of_its_own() -> None:
    tally = RowTally(len(FAULT_TITLES))
    kinds: list[Fault] = list(FAULT_TITLES)
    assert [tally.add_fault(index, fault) for index, fault in enumerate(kinds)] == [True] * len(kinds)
    tally.add_repairs(0, ("markers", "blank"))
    assert tally.faults() == dict.fromkeys(kinds, 1)
    assert tally.repairs() == {"markers": 1, "blank": 1}
    assert not tally.add_fault(0, "medium")
    assert tally.faults() == {**dict.fromkeys(kinds[1:], 1), "medium": 2}
