"""Tables of the hub: their content's digest, and pictures that stay encoded until a row is asked for."""

from __future__ import annotations

import functools
import hashlib
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

from PIL import Image

from datamodules.hub import open_table
from datamodules.row_source import RowError
from datamodules.sources.fields import CheckMedia, shown
from twn_lightning.errors import DataError
from twn_lightning.media import BROKEN_PICTURE

if TYPE_CHECKING:
    import pyarrow
    from datasets import Dataset


def open_folder(path: Path, config: str, split: str, *, columns: tuple[str, ...], optional: tuple[str, ...] = ()) -> Dataset:
    """A split of a folder that holds a hub repository, memory-mapped; pictures stay encoded.

    Args:
        path: The folder.
        config: The configuration; "default" where the repository has one only.
        split: The split.
        columns: Those that must be there; others are left in the file.
        optional: Those that are read where they are there.

    Raises:
        DataError: The folder, configuration, split or a column is not there.
    """
    table = open_table(path.parent, path.name, config, split)
    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise DataError(
            f"{path}, {config}/{split}: the column {missing[0]} is missing; there are {', '.join(table.column_names)}: is this the folder?"
        )
    return table.select_columns([*columns, *(name for name in optional if name in table.column_names)])


def table_digest(table: Dataset) -> str:
    """Hexadecimal digest of a table's texts and of the sizes of its pictures; the same wherever its files lie."""
    return _digest(_Table(table._fingerprint, table))


@dataclass(frozen=True)
class _Table:
    """A table that equals another one if `datasets` knows their content to be the same."""

    fingerprint: str
    table: Dataset = field(compare=False)


@functools.lru_cache(maxsize=64)
def _digest(known: _Table) -> str:
    table = known.table
    hasher = hashlib.blake2b(json.dumps([table.column_names, table.num_rows]).encode(), digest_size=16)
    for batch in table.with_format("arrow").iter(batch_size=1000):
        for column in cast("pyarrow.Table", batch).columns:
            hasher.update(json.dumps(_content(column), default=str).encode())
    return hasher.hexdigest()


def _content(column: pyarrow.ChunkedArray) -> list[object]:
    import pyarrow
    import pyarrow.compute

    if not (pyarrow.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0):
        return cast("list[object]", column.to_pylist())
    return cast("list[object]", pyarrow.compute.binary_length(pyarrow.compute.struct_field(column, "bytes")).to_pylist())


def encoded_picture(value: object, place: str, name: str, *, check: CheckMedia) -> tuple[Image.Image, str]:
    """A picture of a table and a digest of its bytes.

    Args:
        value: What the table holds: an encoded picture and perhaps the path of its file.
        place: Where the row stands, for messages.
        name: The column.
        check: open decodes the picture, exists only reads its header.

    Raises:
        RowError: It is no picture.
    """
    content = value.get("bytes") if isinstance(value, dict) else None
    if not isinstance(content, bytes):
        raise RowError(f"{place}: {name} is {shown(value)}, but must be a picture.", "medium")
    try:
        picture = Image.open(io.BytesIO(content))
        if check == "open":
            picture.load()
    except BROKEN_PICTURE as error:
        raise RowError(f"{place}: {name} cannot be read as a picture ({error}): download the file again, or set on_error=skip.", "medium") from error
    return picture, hashlib.blake2b(content, digest_size=16).hexdigest()
