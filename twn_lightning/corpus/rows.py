"""A row of a user's file as an input of the encoder."""

from __future__ import annotations

import base64
import difflib
import io
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from urllib.parse import unquote_to_bytes

from PIL import Image, UnidentifiedImageError

from twn_lightning.corpus.tables import Cells
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.media import BROKEN_PICTURE, VIDEO_SUFFIXES
from twn_lightning.utf8 import is_utf8

TEXT_SUFFIXES = (".txt",)
"""Files of these endings are texts."""

_CONTENT = ("text", "image", "video")
_MOST_CHARACTERS = 1 << 20
_BYTES_A_PIXEL = 4
_BYTES_OF_AN_ADDRESS = 4 << 20


@dataclass(frozen=True)
class Columns:
    """Which column is what; None for none.

    Attributes:
        id: Names the row; without one it is named by its number.
        text: Words.
        image: Path (relative to the file's folder), address or bytes of a picture, the form {"bytes", "path"}, or a list of these.
        video: Path (relative to the file's folder) or address of a clip.
        instruction: What the vector is for, where that differs from row to row.
    """

    id: str | None = None
    text: str | None = None
    image: str | None = None
    video: str | None = None
    instruction: str | None = None

    def chosen(self) -> dict[str, str]:
        """The columns that there are, by what they are."""
        return {field.name: name for field in fields(self) if (name := getattr(self, field.name)) is not None}

    def check(self, available: Collection[str], *, where: str) -> None:
        """Refuses a column that is not there.

        Args:
            available: Names of the columns that there are.
            where: For messages.

        Raises:
            ConfigError: It is not there.
        """
        for kind, name in self.chosen().items():
            if name not in available:
                near = difflib.get_close_matches(name, available, n=1, cutoff=0.5)
                hint = f"Did you mean {near[0]!r}?" if near else f"There are {', '.join(available)}."
                raise ConfigError(f"The {kind} column is to be {name!r}, which {where} does not have. {hint}")

    def resolved(self, available: Collection[str], *, where: str) -> Columns:
        """The columns to read: the chosen ones, and those of the usual names, which are the attributes' own.

        Who chooses a text, image or video column gets no other content.

        Args:
            available: Names of the columns that there are.
            where: For messages.

        Raises:
            ConfigError: There is nothing to embed.
        """
        has_chosen = any(kind in self.chosen() for kind in _CONTENT)
        usual = [kind for kind in (("id", "instruction") if has_chosen else ("id", *_CONTENT, "instruction")) if kind in available]
        columns = Columns(**{kind: kind for kind in usual} | self.chosen())
        if not any(kind in columns.chosen() for kind in _CONTENT):
            names = ", ".join(available)
            raise ConfigError(f"{where} has the columns {names}; none of them is text, image or video: choose one, as in --text COLUMN.")
        return columns


@dataclass(frozen=True)
class CorpusRow:
    """A row, read.

    Attributes:
        number: Its place among all rows, from 0.
        id: Its name.
        value: What the encoder gets; None if it cannot be used.
        error: Why not.
        size: Bytes of memory that its words and its decoded pictures take, about; files do not count, which are opened a batch at a time.
    """

    number: int
    id: str
    value: Mapping[str, object] | None
    error: str = ""
    size: int = 0


def table_row(cells: Cells, columns: Columns, *, number: int, folder: Path) -> CorpusRow:
    """An input of a table's row.

    Args:
        cells: The row's.
        columns: Which is what.
        number: Of the row, from 0.
        folder: What relative paths start from.
    """
    found = {kind: cells.get(name) for kind, name in columns.chosen().items()}
    row_id = found.pop("id", None) if columns.id is not None else number
    has_id = not _is_empty(row_id)
    name = str(row_id) if has_id else str(number)
    try:
        if not has_id:
            raise DataError(f"its id is empty (column {columns.id})")
        if not is_utf8(name):
            raise DataError("its id is no valid Unicode")
        value = {kind: cell for kind, content in found.items() if (cell := _cell(kind, content, folder))}
        if not value.keys() - {"instruction"}:
            raise DataError(f"it is empty (no {', '.join(kind for kind in found if kind != 'instruction')})")
        return CorpusRow(number, name, value, size=len(str(value.get("text", ""))) + _size(value.get("image")))
    except DataError as error:
        return CorpusRow(number, name if is_utf8(name) else str(number), None, str(error))


def file_row(path: Path, *, number: int, name: str) -> CorpusRow:
    """An input of a file: a picture, a clip, or a text, of which the first million characters are read.

    Args:
        path: The file.
        number: Of the row, from 0.
        name: The row's id.
    """
    suffix = path.suffix.lower()
    if suffix not in TEXT_SUFFIXES:
        return CorpusRow(number, name, {"video" if suffix in VIDEO_SUFFIXES else "image": path})
    try:
        with path.open(encoding="utf-8-sig") as file:
            text = file.read(_MOST_CHARACTERS)
    except OSError as error:
        return CorpusRow(number, name, None, f"this text cannot be read ({error.strerror})")
    except UnicodeDecodeError as error:
        return CorpusRow(number, name, None, f"this text is no valid UTF-8 ({error.reason})")
    if not text.strip():
        return CorpusRow(number, name, None, "this text is empty")
    return CorpusRow(number, name, {"text": text}, size=len(text))


def _cell(kind: str, content: object, folder: Path) -> object:
    """What the encoder gets of a cell; None for an empty one."""
    if _is_empty(content):
        return None
    if kind in ("text", "instruction"):
        if isinstance(content, int | float):  # a column of numbers; as CSV has them
            content = str(content)
        if not isinstance(content, str):
            raise DataError(f"its {kind} is of type {type(content).__name__}, not a string")
        if not is_utf8(content):
            raise DataError(f"its {kind} is no valid Unicode (it has lone surrogates)")
        return content if content.strip() else None
    if kind == "image" and isinstance(content, list):
        return [_medium("image", one, folder) for one in content]
    return _medium(kind, content, folder)


def _is_empty(content: object) -> bool:
    """Whether a cell holds nothing; a missing value of a column of numbers is NaN."""
    return content is None or content in ("", []) or (isinstance(content, float) and math.isnan(content))


def _medium(kind: str, content: object, folder: Path) -> Path | str | Image.Image:
    if isinstance(content, Mapping) and content.keys() <= {"bytes", "path"}:
        content = content.get("bytes") or content.get("path")
    if isinstance(content, str) and content.startswith("data:"):
        if kind != "image":
            raise DataError(f"its {kind} is a data address, not a path or address")
        content = _data(content)
    if isinstance(content, str) and content:
        return content if "://" in content else folder / content
    if isinstance(content, bytes) and kind == "image":
        return _picture(content)
    forms = "path, address or bytes" if kind == "image" else "path or address"
    raise DataError(f"its {kind} is {f'of type {type(content).__name__}' if content else 'empty'}, not a {forms}")


def _data(address: str) -> bytes:
    """What an address of the form ``data:image/png;base64,…`` holds."""
    head, _, content = address.partition(",")
    try:
        return base64.b64decode(content, validate=True) if head.endswith(";base64") else unquote_to_bytes(content)
    except ValueError as error:
        raise DataError("its image cannot be read (a data address that is no base64)") from error


def _picture(content: bytes) -> Image.Image:
    """Opened, not decoded."""
    try:
        return Image.open(io.BytesIO(content))
    except UnidentifiedImageError as error:
        raise DataError("its image cannot be read (bytes of no known format)") from error
    except BROKEN_PICTURE as error:
        raise DataError(f"its image cannot be read ({error})") from error


def _size(images: object) -> int:
    if isinstance(images, Image.Image):
        return images.width * images.height * _BYTES_A_PIXEL
    if isinstance(images, str):
        return _BYTES_OF_AN_ADDRESS
    return sum(map(_size, images)) if isinstance(images, list) else 0


def reason_of(error: str) -> str:
    """The kind of an error: what is said of a file or row, without its name and without details."""
    error = re.sub(r"^.*?: (?=this )", "", error)
    return re.split(r": | \(|; |\. |\.$", error, maxsplit=1)[0]
