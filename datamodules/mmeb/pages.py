"""Tasks of pages, in three tables: queries, pages with their pictures (corpus), and which page answers which query how well (qrels)."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from datamodules.mmeb.reading import shown
from twn_lightning.batches import ImageSource, Item
from twn_lightning.errors import DataError
from twn_lightning.media import BROKEN_PICTURE, check_image

if TYPE_CHECKING:
    import datasets

QUERY_COLUMNS, QRELS_COLUMNS, CORPUS_COLUMNS = ("query-id", "query"), ("query-id", "corpus-id", "score"), ("corpus-id", "image")


class PageItems(Mapping[str, Item]):
    """Pages as items. A page is decoded when it is asked for, and kept by nobody: a corpus of thousands costs the memory of one.

    Args:
        table: Its columns corpus-id and image.
        where: Folder of the data set, for messages and for pictures that the table names by a path.
        instruction: Of every page.
    """

    def __init__(self, table: datasets.Dataset, where: Path, instruction: str) -> None:
        self._table, self._where, self._instruction = table, where, instruction
        self._rows: dict[str, int] = {}
        self.num_repeated = 0
        """Rows that repeat the corpus-id of an earlier row, which stays."""
        for number, key in enumerate(table["corpus-id"]):
            self.num_repeated += int(str(key) in self._rows)
            self._rows.setdefault(str(key), number)

    def __getitem__(self, key: str) -> Item:
        return Item(images=(self._picture(key, fully=True),), instruction=self._instruction)

    def __contains__(self, key: object) -> bool:
        return key in self._rows  # the Mapping's own would decode the page

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, key: str) -> int:
        """Number of a page's row."""
        return self._rows[key]

    def check(self, key: str) -> None:
        """Reads the header of a page's picture only.

        Raises:
            DataError: It is missing or no picture.
        """
        self._picture(key, fully=False)

    def _picture(self, key: str, *, fully: bool) -> ImageSource:
        stored = self._table[self._rows[key]]["image"]
        where = f"{self._where}, corpus, row {self._rows[key]}"
        if isinstance(stored, dict) and stored.get("bytes"):
            try:
                picture = Image.open(io.BytesIO(stored["bytes"]))
                if fully:
                    picture.load()
            except BROKEN_PICTURE as error:
                raise DataError(f"{where}: the image of page {key!r} cannot be read ({error}): download the data set again.") from error
            return picture
        if isinstance(stored, dict) and stored.get("path"):
            file = Path(self._where, stored["path"])
            if not fully:
                check_image(file)
            return file
        raise DataError(f"{where}: the image of page {key!r} is {shown(stored)}, but must be an encoded picture: download the data set again.")


def grades(qrels: datasets.Dataset, fault: Callable[[int, str], None]) -> dict[str, dict[str, float]]:
    """Query-id → corpus-id → grade, of all grades above 0; of several grades of one pair the highest.

    Args:
        qrels: The table.
        fault: Told of each row whose grade is no number, and what it is.
    """
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for row, (query, page, score) in enumerate(zip(qrels["query-id"], qrels["corpus-id"], qrels["score"], strict=True)):
        if not isinstance(score, int | float):
            fault(row, f"score is {shown(score)}, but must be a number")
        elif score > 0:
            labels = found[str(query)]
            labels[str(page)] = max(labels.get(str(page), 0.0), float(score))
    return dict(found)


def picture_sizes(corpus: datasets.Dataset) -> Iterator[str]:
    """Id and number of encoded bytes (or path) of each page, without reading the pictures."""
    import pyarrow.compute as pc

    pictures = corpus.data.column("image")
    lengths = pc.binary_length(pc.struct_field(pictures, "bytes")).to_pylist()
    paths = pc.struct_field(pictures, "path").to_pylist()
    for key, length, path in zip(corpus["corpus-id"], lengths, paths, strict=True):
        yield f"{key} {path if length is None else length}"
