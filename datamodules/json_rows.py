"""Rows of a JSON list or of JSON Lines by number: one pass finds where each row stands, and only the rows asked for are parsed."""

from __future__ import annotations

import copy
import functools
import hashlib
import json
import logging
import os
import re
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from datamodules.digests import text_digest
from twn_lightning.errors import DataError
from twn_lightning.files import replacing

_log = logging.getLogger(__name__)

JsonObject: TypeAlias = dict[str, object]
Spans: TypeAlias = NDArray[np.uint64]
"""First byte of each row and the byte behind its last one, ``(2, rows)``."""

_CHUNK = 1 << 23
_KEEP_ABOVE = 64 * 2**20
"""Indices of files of at least this many bytes are kept between runs; smaller files take less than a second."""
_REVISION = "1"
"""Raised when what is kept changes."""

_BOM = b"\xef\xbb\xbf"
_QUOTE, _BACKSLASH, _NEWLINE = 0x22, 0x5C, 0x0A
_OPEN, _CLOSE, _COMMA = 0x7B, 0x7D, 0x2C
_CASE = 0x20
"""This bit makes a curly bracket of a square one, and leaves a comma as it is."""


class JsonRows:
    """Rows of a file of JSON objects, a list of them or one a line; read from the file when they are asked for.

    Memory: 16 bytes a row. It can be pickled for the workers of a data loader; each process opens the file for itself.

    Args:
        path: The file. Its first character says which of the two it is: ``[`` opens a list.

    Raises:
        DataError: The file does not exist, or is a list that is cut off or holds something else than objects.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise DataError(f"{self.path}: this data file does not exist: correct its path, or download it.")
        stat = self.path.stat()
        self._spans, self._digest = _index(self.path.resolve(), stat.st_size, stat.st_mtime_ns)
        self._numbers: NDArray[np.uint32] | None = None
        self._file = -1

    def __len__(self) -> int:
        return int(self._spans.shape[1]) if self._numbers is None else len(self._numbers)

    def __getitem__(self, index: int) -> JsonObject:
        """The row of a number.

        Raises:
            DataError: It is no valid JSON object; names the file and the row.
        """
        try:
            row = json.loads(self.raw(index))
        except UnicodeDecodeError as error:
            raise DataError(f"{self.place(index)}: no valid UTF-8 ({error.reason}): save the file as UTF-8.") from error
        except json.JSONDecodeError as error:
            raise DataError(
                f"{self.place(index)}, column {error.colno}: no valid JSON ({error.msg}): correct the row, or download the file again."
            ) from error
        if not isinstance(row, dict):
            raise DataError(f"{self.place(index)}: is a {type(row).__name__}: a row must be an object.")
        return row

    def __iter__(self) -> Iterator[JsonObject]:
        return (self[index] for index in range(len(self)))

    def raw(self, index: int) -> bytes:
        """The bytes of a row."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        start, end = (int(place) for place in self._spans[:, self._number(index)])
        if self._file < 0:
            self._file = os.open(self.path, os.O_RDONLY)
            weakref.finalize(self, os.close, self._file)
        return os.pread(self._file, end - start, start)

    def place(self, index: int) -> str:
        """Where a row stands, for messages; rows are counted from 1."""
        return f"{self.path}, row {self._number(index) + 1}"

    def _number(self, index: int) -> int:
        return index if self._numbers is None else int(self._numbers[index])

    def where(self, name: str, value: str) -> JsonRows:
        """The rows that hold ``"name": "value"``; digest and messages stay those of the file.

        The first field of that name counts, wherever it stands in the row.

        Raises:
            DataError: There is none; names the values that are there.
        """
        values, codes = _values(self, name)
        if value not in values:
            known = f"there are {', '.join(sorted(values)[:30])}" if values else "no row has this field"
            raise DataError(f"{self.path}: no row has {name} {value!r}: {known}.")
        chosen = copy.copy(self)
        chosen._file = -1
        chosen._numbers = np.flatnonzero(codes == values.index(value)).astype(np.uint32)
        return chosen

    def digest(self) -> str:
        """Hexadecimal digest of the file's size and content."""
        return self._digest

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_file": -1}


@functools.lru_cache(maxsize=64)
def _index(path: Path, size: int, modified: int) -> tuple[Spans, str]:
    """Spans and digest of a file; a large file's are kept in the user's cache folder under its path, size and time of change."""
    if size < _KEEP_ABOVE:
        return _scan(path, size)
    kept = cache_folder() / f"{text_digest([_REVISION, os.fspath(path), str(size), str(modified)])}.npz"
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{kept}.lock"):  # of several ranks one looks for the rows, the others wait for what it finds
            return _kept_index(kept, path, size)
    except OSError as error:
        _log.warning("%s: where its rows stand cannot be kept for the next time (%s).", path, error)
        return _scan(path, size)


def _kept_index(kept: Path, path: Path, size: int) -> tuple[Spans, str]:
    if kept.is_file():
        with np.load(kept) as arrays:
            return arrays["spans"], str(arrays["digest"])
    _log.info("%s: looking for its rows (%.1f GB, once).", path, size / 1e9)
    spans, digest = _scan(path, size)
    with replacing(kept) as temporary, temporary.open("wb") as file:
        np.savez(file, spans=spans, digest=np.array(digest))
    return spans, digest


@functools.lru_cache(maxsize=16)
def _values_of(path: Path, size: int, modified: int, name: str) -> tuple[tuple[str, ...], NDArray[np.int16]]:
    rows = JsonRows(path)
    pattern = re.compile(rb'"' + re.escape(json.dumps(name)[1:-1].encode()) + rb'"\s*:\s*("(?:[^"\\]|\\.)*")')
    numbers: dict[bytes, int] = {}
    codes = np.full(len(rows), -1, dtype=np.int16)
    for index in range(len(rows)):
        found = pattern.search(rows.raw(index))
        if found is not None:
            codes[index] = numbers.setdefault(found[1], len(numbers))
    return tuple(json.loads(value) for value in numbers), codes


def _values(rows: JsonRows, name: str) -> tuple[tuple[str, ...], NDArray[np.int16]]:
    """Different values of a text field in a file, and which of them each row has; -1 for none."""
    stat = rows.path.stat()
    return _values_of(rows.path.resolve(), stat.st_size, stat.st_mtime_ns, name)


def cache_folder() -> Path:
    """Where the row indices of large files are kept: ``$XDG_CACHE_HOME/twn_lightning/rows``, by default under ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "twn_lightning" / "rows"


def _scan(path: Path, size: int) -> tuple[Spans, str]:
    hasher = hashlib.blake2b(str(size).encode(), digest_size=16)
    with path.open("rb") as file:
        head = file.read(1 << 16)
        first = len(_BOM) if head.startswith(_BOM) else 0
        is_list = head[first:].lstrip()[:1] == b"["
        scanner: _ListScanner | _LineScanner = _ListScanner() if is_list else _LineScanner(first)
        file.seek(0)
        offset = 0
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
            scanner.feed(np.frombuffer(chunk, dtype=np.uint8), offset)
            offset += len(chunk)
    return scanner.finish(path, offset, functools.partial(_bytes_of, path)), hasher.hexdigest()


def _bytes_of(path: Path, start: int, end: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(end - start)


class _LineScanner:
    """Finds the lines of a file; those of nothing but white space are no rows."""

    def __init__(self, first: int) -> None:
        self._first = first
        self._ends: list[NDArray[np.int64]] = []

    def feed(self, chunk: NDArray[np.uint8], offset: int) -> None:
        self._ends.append(np.flatnonzero(chunk == _NEWLINE) + offset)

    def finish(self, path: Path, size: int, read: Callable[[int, int], bytes]) -> Spans:
        ends = np.concatenate([*self._ends, np.array([size], dtype=np.int64)])
        starts = np.concatenate([np.array([self._first], dtype=np.int64), ends[:-1] + 1])
        keep = ends > starts
        for line in np.flatnonzero(keep & (ends - starts < _SHORT)):  # blank lines are short, and there are few short rows
            keep[line] = bool(read(int(starts[line]), int(ends[line])).strip())
        return np.stack([starts[keep], ends[keep]]).astype(np.uint64)


_SHORT = 64
"""Bytes of a line that is looked at: nobody writes as many blanks in a row, and to look at all lines would be to read the file twice."""


class _ListScanner:
    """Finds the elements of a JSON list: brackets are counted outside of strings, over any number of chunks."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = 0
        self._escaped = False
        self._commas = 0
        self._closed = False
        self._faulty = False
        self._starts: list[NDArray[np.int64]] = []
        self._ends: list[NDArray[np.int64]] = []

    def feed(self, chunk: NDArray[np.uint8], offset: int) -> None:
        quotes = self._quotes(chunk)
        folded = chunk | _CASE
        marks = np.flatnonzero((folded == _OPEN) | (folded == _CLOSE) | (chunk == _COMMA))
        marks = marks[(np.searchsorted(quotes, marks) + self._in_string) % 2 == 0]
        self._in_string = (self._in_string + len(quotes)) % 2
        if not len(marks):
            return
        kinds = folded[marks]
        depths = self._depth + np.cumsum((kinds == _OPEN).astype(np.int64) - (kinds == _CLOSE))
        self._faulty |= self._closed or bool((depths[:-1] <= 0).any())  # nothing may follow the end of the list
        self._closed = bool(depths[-1] <= 0)
        self._depth = int(depths[-1])
        self._commas += int(np.count_nonzero((kinds == _COMMA) & (depths == 1)))
        self._starts.append(marks[(kinds == _OPEN) & (depths == 2)] + offset)
        self._ends.append(marks[(kinds == _CLOSE) & (depths == 1)] + offset + 1)

    def _quotes(self, chunk: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Where strings begin and end: quotation marks without an active backslash in front of them."""
        escaped = np.zeros(len(chunk) + 1, dtype=bool)
        escaped[0] = self._escaped
        backslashes = np.flatnonzero(chunk == _BACKSLASH)
        if self._escaped and len(backslashes) and backslashes[0] == 0:
            backslashes = backslashes[1:]
        begins = np.diff(backslashes, prepend=-2) != 1
        if begins.all():
            escaped[backslashes + 1] = True
        else:  # of a run of backslashes every second one, from the first, escapes what follows it
            number = np.arange(len(backslashes))
            within_run = number - np.maximum.accumulate(np.where(begins, number, 0))
            escaped[backslashes[within_run % 2 == 0] + 1] = True
        self._escaped = bool(escaped[-1])
        quotes = np.flatnonzero(chunk == _QUOTE)
        return quotes[~escaped[quotes]]

    def finish(self, path: Path, size: int, read: Callable[[int, int], bytes]) -> Spans:
        starts, ends = (np.concatenate([*places, np.empty(0, dtype=np.int64)]) for places in (self._starts, self._ends))
        if not self._closed or self._in_string:
            raise DataError(f"{path}: this JSON list ends within row {len(ends) + 1}: the file is cut off; download it again.")
        if self._faulty:
            raise DataError(f"{path}: something follows the end of this JSON list: write one list of objects, or one object a line.")
        if self._commas != max(0, len(starts) - 1):
            raise DataError(
                f"{path}: this JSON list holds {len(starts)} objects, but {self._commas} commas between its elements: every element must be an "
                "object, and a comma must stand between two of them and nowhere else."
            )
        return np.stack([starts, ends]).astype(np.uint64)
