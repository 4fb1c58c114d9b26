"""The files of a folder, listed once on disk, so that any number of them can be read by number."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from twn_lightning.corpus.rows import TEXT_SUFFIXES
from twn_lightning.corpus.tables import TABLE_SUFFIXES
from twn_lightning.errors import DataError
from twn_lightning.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from twn_lightning.utf8 import is_utf8

MEDIA_SUFFIXES = (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES)
"""Files of these endings are pictures or clips."""

_LISTING = pa.schema([("root", pa.int32()), ("name", pa.string()), ("bytes", pa.int64())])
_NAMELESS = {".": "hidden", "?": "name is no UTF-8", "!": "cannot be looked at", "/": "link to a folder"}
_ROWS_A_GROUP = 1 << 16


@dataclass(frozen=True)
class Listing:
    """What was listed.

    Attributes:
        num_files: Files in the list.
        num_bytes: Of them together.
        digest: Of their roots, names and sizes.
        left_out: Files that are not in it, by their ending.
    """

    num_files: int
    num_bytes: int
    digest: str
    left_out: dict[str, int]


def walk(folder: Path, *, without: Path | None = None) -> Iterator[tuple[str, int]]:
    """Path below the folder, with slashes, and size of each file, sorted by path.

    Hidden ones are given as ".", those whose names are no UTF-8 as "?", links to themselves as "!", and links to folders, which are not followed,
    as "/". Memory: the names of one folder at a time.

    Args:
        folder: Where.
        without: A folder below it that is passed over, resolved.

    Raises:
        DataError: A folder cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            if entry.name.startswith(".") or not is_utf8(entry.name):
                yield "." if entry.name.startswith(".") else "?", 0
            elif not entry.is_dir(follow_symlinks=False):
                yield _measured(entry)
            elif without is None or Path(entry.path).resolve() != without:
                yield from ((name if name in _NAMELESS else f"{entry.name}/{name}", size) for name, size in walk(Path(entry.path), without=without))
    except OSError as error:
        raise DataError(f"{error.filename}: this cannot be read ({error.strerror}): mend its permissions, or leave it out.") from error


def _measured(entry: os.DirEntry[str]) -> tuple[str, int]:
    """Name and size of a file; a link to a folder or to itself, and whatever else cannot be looked at, is counted and left out."""
    try:
        if entry.is_dir():
            return "/", 0
        return entry.name, entry.stat().st_size if entry.is_file() else 0
    except OSError:
        return "!", 0


def suffix_of(name: str) -> str:
    """The ending of a name that `walk` gives, in small letters and with its dot, or why it has none."""
    return _NAMELESS.get(name) or os.path.splitext(name)[1].lower() or "no ending"  # noqa: PTH122 - a Path each for millions of names


def has_media(folder: Path, *, without: Path | None = None) -> bool:
    """Whether there is a picture or a clip in a folder or below it; arguments as of `walk`."""
    return any(suffix_of(name) in MEDIA_SUFFIXES for name, _ in walk(folder, without=without))


def table_files(folder: Path, *, without: Path | None = None) -> tuple[list[Path], Counter[str]]:
    """Tables in a folder and below it, sorted by path, and how many other files there are, by their ending; arguments as of `walk`."""
    names, left_out = [], Counter[str]()
    for name, _ in walk(folder, without=without):
        if suffix_of(name) in TABLE_SUFFIXES:
            names.append(name)
        else:
            left_out[suffix_of(name)] += 1
    return [folder / name for name in names], left_out


def write_listing(roots: Sequence[Path], path: Path, *, without: Path) -> Listing:
    """Lists pictures, clips and texts: the number of their root and their names below it, or as they were given.

    Args:
        roots: Folders and files.
        path: Parquet file to write.
        without: A folder that is passed over.

    Raises:
        DataError: A folder cannot be read.
    """
    left_out = Counter[str]()
    hasher, num_files, num_bytes = hashlib.blake2b(digest_size=16), 0, 0
    found = _found(roots, left_out, without=without)
    with pq.ParquetWriter(path, _LISTING) as writer:
        while rows := list(itertools.islice(found, _ROWS_A_GROUP)):
            columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), _LISTING, strict=True)]
            writer.write_table(pa.table(columns, schema=_LISTING))
            hasher.update("".join(f"{root}\0{name}\0{size}\0" for root, name, size in rows).encode())
            num_files += len(rows)
            num_bytes += sum(size for _, _, size in rows)
    return Listing(num_files, num_bytes, hasher.hexdigest(), dict(left_out.most_common()))


def first_difference(old: Path, new: Path) -> str:
    """The first file in which two listings differ, in words; empty if they do not."""
    for one, other in itertools.zip_longest(_listed(old), _listed(new)):
        if one != other:
            name = min(row[0] for row in (one, other) if row is not None)
            if one is not None and other is not None and one[0] == other[0]:
                return f"{name} has another size"
            return f"{name} is {'missing' if one is not None and one[0] == name else 'new'}"
    return ""


def _found(roots: Sequence[Path], left_out: Counter[str], *, without: Path) -> Iterator[tuple[int, str, int]]:
    for number, root in enumerate(roots):
        files = walk(root, without=without) if root.is_dir() else iter([(root.as_posix(), root.stat().st_size)])
        for name, size in files:
            if suffix_of(name) in (*MEDIA_SUFFIXES, *TEXT_SUFFIXES):
                yield number, name, size
            else:
                left_out[suffix_of(name)] += 1


def _listed(path: Path) -> Iterator[tuple[str, int]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(columns=["name", "bytes"]):
            yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)
