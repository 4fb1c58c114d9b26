"""What is to be embedded, as rows by number: tables of a user's, or the files of a folder."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from glob import glob
from pathlib import Path
from typing import Protocol, TypeAlias

from twn_lightning.corpus.folders import MEDIA_SUFFIXES, Listing, has_media, table_files
from twn_lightning.corpus.rows import TEXT_SUFFIXES, Columns, CorpusRow, file_row, table_row
from twn_lightning.corpus.tables import TABLE_SUFFIXES, Table, open_table
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.evaluation.store_digests import file_digest


class Corpus(Protocol):
    """Rows by number; it can be pickled, and holds neither rows nor opened files."""

    @property
    def num_rows(self) -> int:
        """How many there are."""

    @property
    def has_own_ids(self) -> bool:
        """Whether two rows may have the same id."""

    def anchor(self, row: int) -> int:
        """The row at which reading begins when it is to begin at a row: that one or one before it."""

    def rows(self, first: int) -> Iterator[CorpusRow]:
        """Rows from a number on.

        Raises:
            DataError: A file cannot be read any further.
        """


@dataclass(frozen=True)
class TableCorpus:
    """Rows of tables, one after the other; see `Corpus`.

    Attributes:
        tables: In order.
        columns: Which is what.
        left_out: Other files in their folders, by their ending.
    """

    tables: tuple[Table, ...]
    columns: Columns
    left_out: dict[str, int] = field(default_factory=dict)

    @property
    def num_rows(self) -> int:
        """How many there are."""
        return sum(table.num_rows for table in self.tables)

    @property
    def has_own_ids(self) -> bool:
        """Whether the rows bring their ids."""
        return self.columns.id is not None

    def anchor(self, row: int) -> int:
        """See `Corpus.anchor`."""
        return max((start + table.anchor(row - start) for start, table in self._starts() if start <= row), default=0)

    def rows(self, first: int) -> Iterator[CorpusRow]:
        """See `Corpus.rows`."""
        names = set(self.columns.chosen().values())
        for start, table in self._starts():
            if first >= start + table.num_rows:
                continue
            skipped = max(0, first - start)
            for number, cells in enumerate(table.rows(skipped, names), start + skipped):
                if isinstance(cells, str):
                    yield CorpusRow(number, str(number), None, cells)
                else:
                    yield table_row(cells, self.columns, number=number, folder=table.path.parent)

    def facts(self) -> dict[str, object]:
        """Names, sizes and digests of the files, and the columns: what two corpora differ in."""
        files = [
            {"path": str(table.path.absolute()), "bytes": table.path.stat().st_size, "digest": file_digest(table.path).hex(), "rows": table.num_rows}
            for table in self.tables
        ]
        return {"files": files, "columns": self.columns.chosen()}

    def _starts(self) -> Iterator[tuple[int, Table]]:
        ends = itertools.accumulate((table.num_rows for table in self.tables), initial=0)
        return zip(ends, self.tables, strict=False)


@dataclass(frozen=True)
class FileCorpus:
    """Pictures, clips and texts, a row each; see `Corpus`.

    Attributes:
        listing: Table of the files.
        roots: Folders and files that were listed.
    """

    listing: Table
    roots: tuple[Path, ...]

    @property
    def num_rows(self) -> int:
        """How many there are."""
        return self.listing.num_rows

    @property
    def has_own_ids(self) -> bool:
        """Several folders may hold files of the same name."""
        return len(self.roots) > 1

    def anchor(self, row: int) -> int:
        """See `Corpus.anchor`."""
        return self.listing.anchor(row)

    def rows(self, first: int) -> Iterator[CorpusRow]:
        """See `Corpus.rows`."""
        is_folder = [root.is_dir() for root in self.roots]
        for number, cells in enumerate(self.listing.rows(first, ("root", "name")), first):
            assert isinstance(cells, dict)
            root, name = int(str(cells["root"])), str(cells["name"])
            yield file_row(self.roots[root] / name if is_folder[root] else self.roots[root], number=number, name=name)


@dataclass
class RowReader:
    """Reads stretches of rows; a stretch that follows the last one costs no more than its own rows.

    Attributes:
        corpus: Whose rows.
    """

    corpus: Corpus
    _rows: Iterator[CorpusRow] = field(default_factory=lambda: iter(()))
    _next: int = -1

    def take(self, first: int, stop: int) -> Iterator[CorpusRow]:
        """Rows of numbers from first to before stop.

        Raises:
            DataError: A file cannot be read any further, or has become shorter.
        """
        if not self.corpus.anchor(first) <= self._next <= first:
            self._rows, self._next = self.corpus.rows(first), first
        while self._next < stop:
            row = next(self._rows, None)
            if row is None:
                raise DataError(f"The input has ended at row {self._next} of {self.corpus.num_rows}: it was changed while it was read.")
            self._next += 1
            if row.number >= first:
                yield row


@dataclass(frozen=True)
class MediaInput:
    """Pictures, clips and texts that are still to be listed.

    Attributes:
        roots: Folders and files.
    """

    roots: tuple[Path, ...]


Input: TypeAlias = TableCorpus | MediaInput
"""What was named to be embedded."""


def open_inputs(inputs: Sequence[str | Path], columns: Columns | None = None, *, without: Path | None = None) -> Input:
    """Looks at what is to be embedded: one pass over CSV and JSON Lines, the footers of Parquet, the folders up to the first picture or clip.

    A folder with a picture or a clip in it or below it is a folder of media; else its tables are meant, and else its texts.

    Args:
        inputs: Files, folders and patterns of files.
        columns: Those of tables that are chosen; None for those of the usual names.
        without: Folder that is passed over: that of the vectors. An input that lies in it is refused.

    Raises:
        DataError: Something is not there, or unreadable, of no known kind, or empty.
        ConfigError: Tables and media are named together, an input lies in the folder for the vectors, a chosen column is not there, or there is
            nothing to embed in any.
    """
    columns = columns or Columns()
    tables: list[Path] = []
    media: list[Path] = []
    left_out = Counter[str]()
    without = None if without is None else without.resolve()
    for path in itertools.chain.from_iterable(map(_matches, inputs)):
        if path.resolve() == without:
            raise ConfigError(f"{path} is the folder for the vectors, and an input: choose another --out, such as {path / 'vectors'}.")
        if without is not None and path.resolve().is_relative_to(without):
            raise ConfigError(f"{path} lies in the folder for the vectors, and is an input: choose an --out of its own.")
        if path.is_dir() and not has_media(path, without=without):
            found, others = table_files(path, without=without)
            if not found and not any(suffix in others for suffix in TEXT_SUFFIXES):
                raise DataError(nothing_found(path, others))
            tables += found
            left_out.update(others if found else {})
            media += [] if found else [path]
        elif path.is_dir() or path.suffix.lower() in (*MEDIA_SUFFIXES, *TEXT_SUFFIXES):
            media.append(path)
        elif path.suffix.lower() in TABLE_SUFFIXES:
            tables.append(path)
        else:
            hint = "save it as JSON Lines (.jsonl)" if path.suffix.lower() == ".json" else "rename it, or leave it out"
            raise DataError(f"{path}: its ending is none of {', '.join((*TABLE_SUFFIXES, *TEXT_SUFFIXES, *MEDIA_SUFFIXES))}: {hint}.")
    if tables and media:
        raise ConfigError(f"{tables[0]} holds rows, but {media[0]} is or holds pictures, clips or texts: embed them into two folders.")
    if media and columns.chosen():
        raise ConfigError(f"{media[0]} holds no table, of which the column {next(iter(columns.chosen().values()))!r} could be: leave it out.")
    return MediaInput(tuple(media)) if media else _open_tables(tables, columns, dict(left_out.most_common()))


def nothing_found(folder: Path, left_out: Mapping[str, int]) -> str:
    """Says that a folder holds nothing to embed."""
    others = ", ".join(f"{count} of {suffix}" for suffix, count in left_out.items())
    return f"{folder}: no picture, clip, text or table is in it or below it{f' ({others})' * bool(others)}: check the path."


def file_facts(listing: Listing, roots: Sequence[Path]) -> dict[str, object]:
    """Names, number, size and digest of listed files: what two corpora differ in."""
    about = {"bytes": listing.num_bytes, "digest": listing.digest, "rows": listing.num_files}
    return {"files": [{"path": str(root.absolute())} for root in roots], "listing": about, "columns": {}}


def _open_tables(paths: Sequence[Path], columns: Columns, left_out: dict[str, int]) -> TableCorpus:
    tables = tuple(table for table in map(open_table, paths) if table.num_rows)
    where = ", ".join(map(str, paths[:3])) + ", …" * (len(paths) > 3)
    if not tables:
        raise DataError(f"{where}: there is no row to embed: check the path.")
    for table in tables:
        columns.check(table.columns, where=str(table.path))
    names = dict.fromkeys(name for table in tables for name in table.columns)
    return TableCorpus(tables, columns.resolved(names, where=where), left_out)


def _matches(given: str | Path) -> list[Path]:
    path = Path(given)
    if path.exists():
        return [path]
    matches = sorted(map(Path, glob(str(given), recursive=True)))  # noqa: PTH207 - a pattern may be absolute
    if not matches:
        what = "no file matches this pattern" if any(char in str(given) for char in "*?[") else "there is no such file or folder"
        raise DataError(f"{given}: {what}: correct it.")
    return matches
