"""What the documents of embedded rows say and show: read again from the files they came from, a row at a time, in the rows' order."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twn_lightning.corpus.plan import LISTING
from twn_lightning.corpus.rows import Columns, CorpusRow
from twn_lightning.corpus.sources import Corpus, FileCorpus, TableCorpus, open_inputs
from twn_lightning.corpus.tables import open_table
from twn_lightning.errors import DataError, TwnError

log = logging.getLogger(__name__)

EXCERPT = 300
"""Characters of a text that are kept."""


@dataclass
class Texts:
    """Words and paths of rows, asked for in their order; rows that have no vector are passed over.

    Attributes:
        rows: All rows of the corpus that are still to come.
        num_unknown: Rows asked for that are not in it.
        are_there: Whether the corpus is.
    """

    rows: Iterator[CorpusRow] = field(default_factory=lambda: iter(()))
    num_unknown: int = 0
    are_there: bool = True

    @classmethod
    def of(cls, folder: Path, made_of: Mapping[str, Any]) -> Texts:
        """Of embeddings; without any words, and a warning, where their files are gone.

        Args:
            folder: Of the embeddings.
            made_of: Their manifest's files and columns.
        """
        try:
            return cls(corpus_of(folder, made_of).rows(0))
        except TwnError as error:
            log.warning("Words and pictures of the documents are not known, only their ids: %s", error)
            return cls(are_there=False)

    def take(self, ids: Sequence[str]) -> tuple[list[str], list[str]]:
        """Beginnings of texts, and absolute paths or addresses of pictures and clips; empty where there are none."""
        words, paths = [], []
        for name in ids:
            row = next((row for row in self.rows if row.id == name), None)
            self.num_unknown += row is None
            value = row.value if row is not None and isinstance(row.value, Mapping) else {}
            words.append(" ".join(str(value.get("text", ""))[: 2 * EXCERPT].split())[:EXCERPT])
            paths.append(_path(value.get("image") or value.get("video")))
        return words, paths


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
