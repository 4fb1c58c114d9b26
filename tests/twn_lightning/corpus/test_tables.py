"""Rows of CSV, JSON Lines and Parquet, from any row on."""

import csv
import datetime
import json
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twn_lightning.corpus.tables import open_table
from twn_lightning.errors import DataError

ROWS = [{"id": str(number), "text": f'word {number}, "quoted"\nand a second line'} for number in range(3000)]


@pytest.fixture(params=["csv", "tsv", "jsonl", "parquet"])
def table_path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / f"rows.{request.param}"
    if request.param == "parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=700)
    elif request.param == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["id", "text"], delimiter="\t" if request.param == "tsv" else ",")
            writer.writeheader()
            writer.writerows(ROWS)
    return path


@pytest.mark.parametrize("first", [0, 1, 699, 700, 1023, 1024, 1025, 2999, 3000])
def test_rows_from_any_row_on_are_the_tail_of_all_rows(table_path: Path, first: int) -> None:
    table = open_table(table_path)
    assert (table.num_rows, table.columns) == (3000, ("id", "text"))
    assert list(table.rows(first, ["id", "text"])) == ROWS[first:]


def test_only_the_columns_that_are_asked_for_are_given(table_path: Path) -> None:
    assert next(iter(open_table(table_path).rows(7, ["id", "image"]))) == {"id": "7"}


def test_a_row_far_on_is_read_without_the_rows_before_it(table_path: Path) -> None:
    table = open_table(table_path)
    anchor = table.anchor(2900)
    assert 2900 - 1024 < anchor <= 2900
    start = len(table_path.read_bytes()) // 3  # well before the anchor's place
    with table_path.open("r+b") as file:
        file.seek(start - 5000)
        file.write(b"\xff" * 5000)
    assert list(table.rows(2900, ["id", "text"])) == ROWS[2900:]


def test_a_byte_order_mark_and_blank_lines_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("\ufeffid,text\n\n1,Bär\n\n2,two\n\n".encode())
    (tmp_path / "a.jsonl").write_bytes('\ufeff{"id": "1", "text": "Bär"}\n\n  \n{"id": "2", "text": "two"}'.encode())
    for name in ("a.csv", "a.jsonl"):
        assert list(open_table(tmp_path / name).rows(0, ["id", "text"])) == [{"id": "1", "text": "Bär"}, {"id": "2", "text": "two"}]


def test_broken_rows_of_csv_are_named_and_the_others_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'id,text\n1,one\n2\n3,"a"b\n4,\xff\n5,five\n6,"open\n7,seven\n')
    table = open_table(path)
    assert table.num_rows == 7
    assert list(table.rows(0, ["id", "text"])) == [
        {"id": "1", "text": "one"},
        "the row has not as many cells as the header (1, not 2)",
        "the row is no valid CSV (',' expected after '\"')",
        "the row is no valid UTF-8",
        {"id": "5", "text": "five"},
        "the row is no valid CSV (unexpected end of data, 1 lines on; these are read as rows of their own)",
        {"id": "7", "text": "seven"},
    ]


def test_broken_rows_of_json_lines_are_named_and_the_others_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n{"text": \n[1]\n{"text": "\xff"}\n{"text": "five"}\n')
    rows = list(open_table(path).rows(0, ["text"]))
    assert (rows[0], rows[4]) == ({"text": "one"}, {"text": "five"})
    for row, words in zip(rows[1:4], ["no valid JSON", "a JSON list, not an object", "no valid UTF-8"], strict=True):
        assert isinstance(row, str)
        assert words in row


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", b"", "no header"),
        ("a.csv", b"a,b,a\n1,2,3\n", "two columns have the same name"),
        ("a.csv", "id,text\n1,one\n".encode("utf-16"), "this file is UTF-16: save it as UTF-8"),
        ("a.csv", b"id;text\n1;one\n", "separated by semicolons: save it with commas"),
        ("a.jsonl", b'[\n{"text": "one"}\n]', "it is a JSON list: save it as JSON Lines"),
        ("a.jsonl", b"one\ntwo\n", "its rows are no JSON objects"),
        ("a.parquet", b"PAR1", "cannot be read"),
    ],
)
def test_a_file_that_is_no_table_is_refused(name: str, content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=words) as caught:
        open_table(tmp_path / name)
    assert name in str(caught.value)


def test_a_parquet_file_that_breaks_off_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=1000)
    table = open_table(path)
    with path.open("r+b") as file:
        file.seek(4)
        file.write(b"\xff" * 20_000)
    with pytest.raises(DataError, match=r"a\.parquet: this file cannot be read on from row 5 "):
        list(table.rows(5, ["text"]))


def test_rows_of_a_missing_column_are_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS[:5]), path)
    assert list(open_table(path).rows(2, ["image"])) == [{}] * 3


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_memory_does_not_grow_with_the_rows_that_are_read(suffix: str, tmp_path: Path, resident_mib: Callable[[], float]) -> None:
    path = tmp_path / f"long.{suffix}"
    text = "word " * 2000
    if suffix == "jsonl":
        with path.open("w") as file:
            file.writelines(json.dumps({"text": text, "id": number}) + "\n" for number in range(6000))
    else:
        schema = pa.schema([("id", pa.int64()), ("text", pa.string())])
        with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
            writer.write_table(pa.table({"id": range(6000), "text": [text] * 6000}, schema=schema))  # a row group of 57 MiB
    table = open_table(path)
    list(table.rows(5990, ["id", "text"]))  # what is loaded and allocated once
    before = resident_mib()
    held = [resident_mib() for number, _ in enumerate(table.rows(0, ["id", "text"])) if number % 500 == 0]
    assert len(held) == 12
    assert max(held) - before < 30  # a reader that takes a row group, or keeps rows, needs 57 and more


def test_a_number_of_thousands_of_digits_costs_its_row_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n{"text": "two", "n": ' + "9" * 5000 + '}\n{"text": "three"}\n')
    one, two, three = open_table(path).rows(0, ["text"])
    assert (one, three) == ({"text": "one"}, {"text": "three"})
    assert str(two).startswith("the row is no valid JSON (Exceeds the limit")


def test_cells_of_parquet_that_python_cannot_hold_cost_their_rows_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    words = pa.array([b"one", b"\xff\xfe", b"three"], pa.binary()).view(pa.string())
    when = pa.array([0, 0, 1 << 60], pa.int64()).view(pa.timestamp("ms"))
    pq.write_table(pa.table({"text": words, "id": when}), path)
    one, two, three = open_table(path).rows(0, ["id", "text"])
    assert one == {"text": "one", "id": datetime.datetime(1970, 1, 1)}
    assert str(two).startswith("the row cannot be read ('utf-8' codec")
    assert str(three).startswith("the row cannot be read (")


def test_two_columns_of_parquet_of_one_name_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table([pa.array([1]), pa.array([2])], names=["a", "a"]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: two columns have the same name \(a\): rename one"):
        open_table(tmp_path / "a.parquet")


def test_columns_without_a_name_are_passed_over(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text,,\n1,one,,\n2,two,x,y\n")
    assert list(open_table(tmp_path / "a.csv").rows(0, ["id", "text"])) == [{"id": "1", "text": "one"}, {"id": "2", "text": "two"}]


@pytest.mark.parametrize(
    ("later", "why"),
    [
        ("", "unexpected end of data, 2480 lines on"),
        ('2200,"a cell\nof two lines"\n', "',' expected after '\"', 2181 lines on"),
    ],
)
def test_a_stray_quote_costs_its_own_row_alone(later: str, why: str, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    lines = [f"{number},words {number}\n" for number in range(2500)]
    lines[19] = '19,"quote opens\n'
    lines[2200] = later or lines[2200]
    path.write_text("id,text\n" + "".join(lines))
    table = open_table(path)
    assert table.num_rows == 2500
    expected: list[object] = [{"id": str(number), "text": f"words {number}"} for number in range(2500)]
    expected[19] = f"the row is no valid CSV ({why}; these are read as rows of their own)"
    expected[2200] = {"id": "2200", "text": "a cell\nof two lines"} if later else expected[2200]
    assert list(table.rows(0, ["id", "text"])) == expected
    assert list(table.rows(1024, ["id", "text"])) == expected[1024:]
    assert list(table.rows(2100, ["id", "text"])) == expected[2100:]


def test_a_file_whose_every_line_opens_a_quote_is_read_in_passable_time(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("id,text\n" + "".join(f'{number}","words\n' for number in range(20_000)))
    started = time.perf_counter()
    assert open_table(tmp_path / "a.csv").num_rows == 20_000
    assert time.perf_counter() - started < 20.0  # a line that reads all that follow: some minutes


def test_a_row_with_another_number_of_cells_says_how_many_lines_it_has(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id,text\n1,"opens\n2,two\n3,closes",x\n4,four\n')
    assert list(open_table(tmp_path / "a.csv").rows(0, ["id", "text"])) == [
        "the row has not as many cells as the header (3, not 2; it has 3 lines)",
        {"id": "4", "text": "four"},
    ]


def test_columns_of_json_lines_that_only_a_late_row_has_are_known(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "same"}\n' * 1500 + '{"text": "same", "image": "red.png"}\n{"broken\n[1]\n')
    table = open_table(path)
    assert (table.columns, table.num_rows) == (("text", "image"), 1503)
    assert next(iter(table.rows(1500, ["text", "image"]))) == {"text": "same", "image": "red.png"}
