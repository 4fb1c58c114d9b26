"""Rows that a store knows are taken from there; the others are encoded and put there."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from twn_lightning.batches import Item
from twn_lightning.engine.table import Table
from twn_lightning.errors import DataError
from twn_lightning.evaluation.store import Shelf
from twn_lightning.evaluation.store_digests import item_digest

_WINDOW = 1024


def encode_through(
    shelf: Shelf, items: Mapping[int, Item], table: Table, *, encode: Callable[[Mapping[int, Item]], None], progress: Callable[[int], None]
) -> None:
    """Fills the rows of items, some at a time, so that work that is stopped is not lost.

    What fails, and text that was cut, is not stored, so that it is spoken of each time.

    Args:
        shelf: Of what the encoder would compute.
        items: By row.
        table: Gets the rows.
        encode: Fills the rows of the items it is given.
        progress: Told of rows that were there already, or whose files cannot be read.

    Raises:
        DataError: An input cannot be read, and the table stops at errors; or vectors cannot be stored.
    """
    rows = list(items)
    for start in range(0, len(rows), _WINDOW):
        _encode_window(shelf, {row: items[row] for row in rows[start : start + _WINDOW]}, table, encode, progress)


def _encode_window(
    shelf: Shelf, items: Mapping[int, Item], table: Table, encode: Callable[[Mapping[int, Item]], None], progress: Callable[[int], None]
) -> None:
    digests: dict[int, bytes] = {}
    for row, item in items.items():
        try:
            digests[row] = item_digest(item, by_content=True)
        except DataError as error:
            table.fail({row: str(error)})
    found = shelf.take(list(digests.values()))
    missing = [row for row, digest in digests.items() if digest not in found]
    for row, digest in digests.items():
        if digest in found:
            table.copy(row, *found[digest])
    progress(len(items) - len(missing))
    try:
        if missing:
            encode({row: items[row] for row in missing})
    finally:  # an error may have stopped it: what was finished before it is kept
        kept = {digests[row]: row for row in missing if table.is_complete(row) and row not in table.truncated}
        if kept:
            shelf.put(list(kept), table.select(list(kept.values())))
