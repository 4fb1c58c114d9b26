"""Rows of CSV, JSON Lines and Parquet files from any row on, a few at a time.

CSV and JSON Lines are read by Python's own modules, which name a broken row and go on with the next, and tell at which byte a row stands, so that
reading from row n on begins near it; one pass over the file (one or two seconds for a million rows) finds that out. Parquet begins at a row group.
"""

from __future__ import annotations

import bisect
import csv
import json
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import IO, Protocol, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from twn_lightning.errors import DataError
from twn_lightning.utf8 import is_utf8

Cells: TypeAlias = dict[str, object]
"""A row's cells by the names of their columns."""
RawRow: TypeAlias = Cells | str
"""A row, or why it cannot be read."""
Record: TypeAlias = bytes | list[str] | str
"""A line of JSON, the cells of a row of CSV, or why a row cannot be read."""

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
"""Files of these endings are tables."""

_ROWS_A_MARK = 1024
_LONGEST_CELL = 1 << 24
_QUOTES_BESIDE = 32
"""Pairs of quotes that a row of several lines may have within its cells, of which none encloses a cell."""
_BATCH_OF_WORDS, _BATCH_OF_BYTES = 256, 16
_JSON = json.JSONDecoder()
_BOM = b"\xef\xbb\xbf"


class Table(Protocol):
    """A file of rows."""

    @property
    def path(self) -> Path:
        """The file."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of its columns; of JSON Lines those that any row has."""

    @property
    def num_rows(self) -> int:
        """How many it has, broken ones included."""

    def anchor(self, row: int) -> int:
        """The row at which reading begins when it is to begin at a row: that one or one before it."""

    def rows(self, first: int, columns: Collection[str]) -> Iterator[RawRow]:
        """Rows from a number on, counted from 0; cells of other columns are left out, so are those that a row does not have.

        Raises:
            DataError: The file cannot be read any further.
        """


def open_table(path: Path) -> Table:
    """The rows of a file, by its ending.

    Raises:
        DataError: It is missing, empty, or cannot be read.
    """
    if not path.is_file():
        raise DataError(f"{path}: this file does not exist: correct its path.")
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            return _open_parquet(path)
        return _open_json_lines(path) if suffix in (".jsonl", ".ndjson") else _open_csv(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: this file cannot be read ({error}): copy it again, or leave it out.") from error


@dataclass(frozen=True)
class ParquetTable:
    """Rows of a Parquet file; see `Table`.

    Attributes:
        path: The file.
        columns: All of them.
        starts: First row of each row group, and the number of rows.
    """

    path: Path
    columns: tuple[str, ...]
    starts: tuple[int, ...]

    @property
    def num_rows(self) -> int:
        """How many it has."""
        return self.starts[-1]

    def anchor(self, row: int) -> int:
        """First row of the row's group."""
        return self.starts[self._group(row)]

    def rows(self, first: int, columns: Collection[str]) -> Iterator[RawRow]:
        """See `Table.rows`."""
        if first >= self.num_rows:
            return
        group = self._group(first)
        skip = first - self.starts[group]
        try:
            with pq.ParquetFile(self.path, pre_buffer=False, buffer_size=1 << 20) as file:  # a page at a time, not a row group
                own = [name for name in self.columns if name in columns]
                has_bytes = any(_holds_bytes(file.schema_arrow.field(name).type) for name in own)
                batches = file.iter_batches(
                    _BATCH_OF_BYTES if has_bytes else _BATCH_OF_WORDS, row_groups=list(range(group, len(self.starts) - 1)), columns=own
                )
                for batch in batches:
                    yield from _rows_of(batch.slice(min(skip, len(batch))))
                    skip = max(0, skip - len(batch))
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{self.path}: this file cannot be read on from row {first} ({error}): copy it again.") from error

    def _group(self, row: int) -> int:
        return bisect.bisect_right(self.starts, row, hi=len(self.starts) - 1) - 1


def _open_parquet(path: Path) -> ParquetTable:
    with pq.ParquetFile(path) as file:
        counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
        names = tuple(file.schema_arrow.names)
    _check_names(path, names)
    starts = [0]
    for count in counts:
        starts.append(starts[-1] + count)
    return ParquetTable(path, names, tuple(starts))


def _rows_of(batch: pa.RecordBatch) -> list[RawRow]:
    """Rows, or why one cannot be read: its text is no UTF-8, its date is beyond those of Python."""
    try:
        return list(batch.to_pylist())
    except (ValueError, OverflowError, pa.ArrowException) as error:
        if len(batch) == 1:
            return [f"the row cannot be read ({error})"]
        return [row for number in range(len(batch)) for row in _rows_of(batch.slice(number, 1))]


def _check_names(path: Path, names: Sequence[str]) -> None:
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise DataError(f"{path}: two columns have the same name ({', '.join(twice)}): rename one.")


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(_holds_bytes(field.type) for field in kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _holds_bytes(kind.value_type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


@dataclass(frozen=True)
class TextTable:
    """Rows of a CSV or JSON Lines file; see `Table`.

    Attributes:
        path: The file.
        columns: Of a CSV file its header's, of JSON Lines those that any row has.
        num_rows: How many it has.
        marks: At which byte each 1,024th row begins.
        delimiter: Between cells; None for JSON Lines.
    """

    path: Path
    columns: tuple[str, ...]
    num_rows: int
    marks: tuple[int, ...]
    delimiter: str | None

    def anchor(self, row: int) -> int:
        """The nearest row before it of which the place is known."""
        return row - row % _ROWS_A_MARK

    def rows(self, first: int, columns: Collection[str]) -> Iterator[RawRow]:
        """See `Table.rows`."""
        if first >= self.num_rows:
            return
        with self.path.open("rb") as file:
            number = self.anchor(first)
            file.seek(self.marks[number // _ROWS_A_MARK])
            lines = _Lines(file)
            records = _json_records(lines) if self.delimiter is None else _csv_records(lines, self.delimiter, num_cells=len(self.columns))
            for record in records:
                if number >= first:
                    yield self._cells(record, columns)
                number += 1

    def _cells(self, record: Record, columns: Collection[str]) -> RawRow:
        if isinstance(record, str):
            return record
        if isinstance(record, bytes):
            cells = _json_object(record)
            return cells if isinstance(cells, str) else {name: cells[name] for name in columns if name in cells}
        chosen: Cells = {name: cell for name, cell in zip(self.columns, record, strict=True) if name and name in columns}
        return chosen if all(is_utf8(str(cell)) for cell in chosen.values()) else "the row is no valid UTF-8"


class _Lines:
    """Lines of an opened file, and at which byte the next one begins."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._again = deque[bytes]()
        self.place = file.tell()

    def __iter__(self) -> Iterator[bytes]:
        while self._again:
            self.place += len(self._again[0])
            yield self._again.popleft()
        for line in self._file:
            self.place += len(line)
            yield line

    def give_back(self, lines: Sequence[bytes]) -> None:
        """Takes back the lines that were given last; who iterates from now on gets them again."""
        self._again.extendleft(reversed(lines))
        self.place -= sum(map(len, lines))


def _json_records(lines: _Lines) -> Iterator[bytes]:
    """Lines that are not blank; each is parsed only if it is wanted."""
    return (line for line in lines if not line.isspace())


def _csv_records(lines: _Lines, delimiter: str, *, num_cells: int) -> Iterator[Record]:
    """Rows that are not blank, and in the place of a broken one what is wrong with it. Of the file exactly the lines that were given are read.

    A quote that is not closed takes all lines up to the next quote for its cell: its own line is broken, the others are read again.

    Args:
        lines: Of the file.
        delimiter: Between cells.
        num_cells: Of a row; 0 for the header, which may have any number.
    """
    csv.field_size_limit(_LONGEST_CELL)
    taken: list[bytes] = []
    most_quotes = 2 * (num_cells + _QUOTES_BESIDE)
    reader = csv.reader(_decoded(lines, taken, most_quotes), delimiter=delimiter, strict=True)
    while True:
        taken.clear()
        try:
            cells = next(reader, None)
        except csv.Error as error:
            again = taken[1:]
            lines.give_back(again)
            reader = csv.reader(_decoded(lines, taken, most_quotes), delimiter=delimiter, strict=True)
            yield f"the row is no valid CSV ({error}{f', {len(again)} lines on; these are read as rows of their own' * bool(again)})"
            continue
        if cells is None:
            return
        if num_cells and cells and len(cells) != num_cells:
            yield f"the row has not as many cells as the header ({len(cells)}, not {num_cells}{f'; it has {len(taken)} lines' * (len(taken) > 1)})"
        elif cells:
            yield cells


def _decoded(lines: _Lines, taken: list[bytes], most_quotes: int) -> Iterator[str]:
    """Lines as text, and as they are into the list; a row with more quotes than its cells can have ends, or every line would read the file."""
    num_quotes = 0
    for line in lines:
        taken.append(line)
        num_quotes = num_quotes + line.replace(b'""', b"").count(b'"') if len(taken) > 1 else 0
        if num_quotes > most_quotes:
            raise csv.Error("too many quotes")
        yield line.decode("utf-8", "surrogateescape")


def _json_object(line: bytes) -> RawRow:
    try:
        cells = json.loads(line)
    except UnicodeDecodeError as error:
        return f"the row is no valid UTF-8 ({error.reason})"
    except (ValueError, RecursionError) as error:  # also a number of thousands of digits
        return f"the row is no valid JSON ({error})"
    return cells if isinstance(cells, dict) else f"the row is a JSON {type(cells).__name__}, not an object"


def _open_json_lines(path: Path) -> TextTable:
    names: dict[str, None] = {}
    with path.open("rb") as file:
        is_list = _past_bom(file).read(1) == b"["
        lines = _Lines(_past_bom(file))
        num_rows, marks = _marked(lines, _with_names(_json_records(lines), names))
    if num_rows and (is_list or not names):
        why = "it is a JSON list" if is_list else "its rows are no JSON objects"
        raise DataError(f"{path}: {why}: save it as JSON Lines, an object a line.")
    return TextTable(path, tuple(names), num_rows, marks, None)


def _with_names(records: Iterator[bytes], names: dict[str, None]) -> Iterator[bytes]:
    """The same lines, of whose objects the keys are gathered."""
    for record in records:
        try:
            cells, _ = _JSON.raw_decode(record.decode().lstrip())
        except (ValueError, RecursionError):  # its row says so when it is read
            cells = None
        if isinstance(cells, dict) and not cells.keys() <= names.keys():
            names.update(dict.fromkeys(cells))
        yield record


def _open_csv(path: Path) -> TextTable:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open("rb") as file:
        lines = _Lines(_past_bom(file))
        if file.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise DataError(f"{path}: this file is UTF-16: save it as UTF-8.")
        header = next(_csv_records(lines, delimiter, num_cells=0), "it is empty")
        if not isinstance(header, list):
            raise DataError(f"{path}: this file has no header ({header!r}): its first line must name the columns.")
        _check_names(path, [name for name in header if name])
        if len(header) == 1 and ";" in header[0]:
            raise DataError(f"{path}: its columns are separated by semicolons: save it with commas, or with tabs as .tsv.")
        num_rows, marks = _marked(lines, _csv_records(lines, delimiter, num_cells=len(header)))
    return TextTable(path, tuple(header), num_rows, marks, delimiter)


def _past_bom(file: BufferedReader) -> BufferedReader:
    file.seek(0)
    if file.read(len(_BOM)) != _BOM:
        file.seek(0)
    return file


def _marked(lines: _Lines, records: Iterator[object]) -> tuple[int, tuple[int, ...]]:
    """How many records there are, and at which byte each 1,024th begins."""
    num_rows, marks, place = 0, [], lines.place
    for _ in records:
        if num_rows % _ROWS_A_MARK == 0:
            marks.append(place)
        place = lines.place
        num_rows += 1
    return num_rows, tuple(marks)
