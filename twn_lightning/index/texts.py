"""What the documents of embedded rows say and show: read again from the files they came from, a row at a time, in the rows' order."""

from __future__ import annotations

import json
import logging
import os
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twn_lightning.corpus.parts import errors_path
from twn_lightning.corpus.plan import LISTING
from twn_lightning.corpus.rows import Columns, CorpusRow
from twn_lightning.corpus.sources import Corpus, FileCorpus, TableCorpus, open_inputs
from twn_lightning.corpus.tables import open_table
from twn_lightning.errors import DataError, TwnError

log = logging.getLogger(__name__)

EXCERPT = 300
"""Characters of a text that are kept."""
_AHEAD = 4096
"""Rows that are looked through for an id that is not the next one's."""


@dataclass
class Texts:
    """Words and paths of rows, asked for in their order.

    Attributes:
        rows: Rows of the corpus that are still to come, without those that have no vector.
        num_unknown: Rows asked for that are not in it.
        are_there: Whether the corpus is.
    """

    rows: Iterator[CorpusRow] = field(default_factory=lambda: iter(()))
    num_unknown: int = 0
    are_there: bool = True
    _waiting: deque[tuple[str, str, str]] = field(default_factory=deque)
    _ids: Counter[str] = field(default_factory=Counter)

    @classmethod
    def of(cls, folder: Path, made_of: Mapping[str, Any], parts: Iterable[int] = ()) -> Texts:
        """Of embeddings; without any words, and a warning, where their files are gone.

        Args:
            folder: Of the embeddings.
            made_of: Their manifest's files and columns.
            parts: Numbers of their parts, beside which the rows without a vector are named.
        """
        try:
            return cls(_embedded(corpus_of(folder, made_of).rows(0), _failed(folder, parts)))
        except TwnError as error:
            log.warning("Words and pictures of the documents are not known, only their ids: %s", error)
            return cls(are_there=False)

    def take(self, ids: Sequence[str]) -> tuple[list[str], list[str]]:
        """Beginnings of texts, and absolute paths or addresses of pictures and clips; empty where there are none."""
        words, paths = [], []
        for name in ids:
            found = self._found(name)
            self.num_unknown += found is None
            words.append(found[1] if found else "")
            paths.append(found[2] if found else "")
        return words, paths

    def _found(self, name: str) -> tuple[str, str, str] | None:
        """The next row of an id, and the rows before it are gone; None, and no row is gone, if none of the next rows has it."""
        while name not in self._ids and len(self._waiting) < _AHEAD:
            row = next(self.rows, None)
            if row is None:
                break
            value = row.value or {}
            words = " ".join(str(value.get("text", ""))[: 2 * EXCERPT].split())[:EXCERPT]
            self._waiting.append((row.id, words, _path(value.get("image") or value.get("video"))))
            self._ids[row.id] += 1
        if name not in self._ids:
            return None
        while True:
            found = self._waiting.popleft()
            self._ids[found[0]] -= 1
            if not self._ids[found[0]]:
                del self._ids[found[0]]
            if found[0] == name:
                return found


def _failed(folder: Path, parts: Iterable[int]) -> Iterator[int]:
    """Numbers of the rows that have no vector, in order."""
    for part in parts:
        path = errors_path(folder, part)
        if path.is_file():
            with path.open(encoding="utf-8") as file:
                yield from sorted(int(json.loads(line)["row"]) for line in file)


def _embedded(rows: Iterator[CorpusRow], failed: Iterator[int]) -> Iterator[CorpusRow]:
    """Rows that can be used and are not among the failed ones."""
    number = next(failed, -1)
    for row in rows:
        while -1 < number < row.number:
            number = next(failed, -1)
        if row.number != number and row.value is not None:
            yield row


def corpus_of(folder: Path, made_of: Mapping[str, Any]) -> Corpus:
    """The rows that a folder of embeddings was made of.

    Raises:
        TwnError: A file is not there any more, or cannot be read.
    """
    paths = [Path(file["path"]) for file in made_of["files"]]
    if (folder / LISTING).is_file():
        gone = [str(path) for path in paths if not path.exists()]
        if gone:
            raise DataError(f"{', '.join(gone)}: there is no such folder or file any more.")
        return FileCorpus(open_table(folder / LISTING), tuple(paths))
    found = open_inputs(paths, Columns(**made_of["columns"]))
    assert isinstance(found, TableCorpus), "media have a listing"
    return found


def _path(medium: object) -> str:
    if isinstance(medium, list):
        medium = medium[0] if medium else None
    if isinstance(medium, str) and "://" in medium:
        return medium
    return os.path.abspath(medium) if isinstance(medium, str | Path) else ""  # noqa: PTH100 - names only, of millions of rows
