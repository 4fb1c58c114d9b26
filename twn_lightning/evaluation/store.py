"""Vectors and thoughts on disk, so that an evaluation that was stopped goes on where it was, and none reads what another model made.

    FOLDER/<digest of what made them>/made_by.json                  what that was, for people
    FOLDER/<digest of what made them>/<think mode>/<name>.safetensors   vectors of a few items, and their digests
    FOLDER/<digest of what made them>/<think mode>/<name>.jsonl         their thoughts, a line each

A file appears whole or not at all. The folder may be deleted at any time, at the price of encoding again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from twn_lightning.errors import DataError
from twn_lightning.evaluation.encoded import EncodedItems, ThinkMode
from twn_lightning.files import replacing
from twn_lightning.models.outputs import Decoding

log = logging.getLogger(__name__)

_OPEN_FILES = 4
"""Whose vectors stay in memory, for the next items that lie in them."""
_UNIT_TOLERANCE = 1e-2


@dataclass
class StoreCounts:
    """What became of the items that a store was asked for, since it was opened by this process."""

    read: int = 0
    """Items whose vectors were read."""
    written: int = 0
    """Items that were encoded and stored."""
    damaged: int = 0
    """Files that were unreadable, of another shape, or held no finite unit rows; their items are encoded again."""


class VectorStore:
    """Vectors on disk under everything that made them.

    Args:
        folder: Made if it is not there; several ranks share one, several runs may.
        made_by: All that a vector depends on besides its item, the think mode and the decoding, as names and values: weights, processor options,
            code.
        width: Of a vector.

    Raises:
        DataError: The folder cannot be written.
    """

    def __init__(self, folder: Path, made_by: Mapping[str, str], *, width: int) -> None:
        self.made_by = dict(made_by)
        self.folder = folder / _digest_of(made_by)
        self.width = width
        self.counts = StoreCounts()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            _write(self.folder / "made_by.json", json.dumps(dict(made_by), indent=1, sort_keys=True).encode() + b"\n")
        except OSError as error:
            raise DataError(f"{self.folder} cannot be written ({error.strerror}): choose another folder, or go without a cache.") from error

    def shelf(self, think: ThinkMode, decoding: Decoding) -> Shelf:
        """The vectors of one think mode; a thinking one by its decoding too."""
        name = think if think == "never" else f"{think}-{_digest_of(dataclasses.asdict(decoding))[:8]}"
        return Shelf(self.folder / name, width=self.width, with_generative=think != "never", counts=self.counts)


class Shelf:
    """Vectors of one think mode. It knows what was there when it was opened or refreshed last, and what it has stored itself.

    Args:
        folder: Of the files.
        width: Of a vector.
        with_generative: Whether the files hold generative vectors.
        counts: Of the store.
    """

    def __init__(self, folder: Path, *, width: int, with_generative: bool, counts: StoreCounts) -> None:
        self.folder = folder
        self._names = {"discriminative", "gate_probability", "num_reasoning_tokens", "thought"} | ({"generative"} if with_generative else set())
        self._width = width
        self._counts = counts
        self._opened: OrderedDict[Path, EncodedItems] = OrderedDict()
        self._places: dict[bytes, tuple[Path, int]] = {}
        self._files: set[str] = set()
        self._looked: int | None = None
        self.refresh()

    def __len__(self) -> int:
        return len(self._places)

    def refresh(self) -> None:
        """Looks for files that others have stored or removed; where none of them did, this takes no time.

        What another process stores in the same moment may be seen only with its next file; until then it is encoded here too.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        changed = _changed(self.folder)  # before the files are listed: what comes meanwhile changes it again
        if changed == self._looked:
            return
        self._looked = changed
        there = {path.name for path in self.folder.glob("*.safetensors")}
        self._forget(self._files - there)
        for name in sorted(there - self._files):
            self._note(self.folder / name)

    def take(self, digests: Sequence[bytes]) -> dict[bytes, tuple[EncodedItems, int]]:
        """Those of the items that are there: digest → rows that hold no others than these items', and its row among them.

        Each file is read once, in whatever order the items come. What is damaged is named in the log, counted, removed, and not given.

        Args:
            digests: Of items, see `store_digests.item_digest`.
        """
        wanted: dict[Path, dict[bytes, int]] = {}
        for digest in digests:
            if digest in self._places:
                path, row = self._places[digest]
                wanted.setdefault(path, {})[digest] = row
        found = {}
        for path, places in wanted.items():
            rows = self._read(path)
            if rows is not None:
                chosen = rows.select(torch.tensor(list(places.values())))
                found.update({digest: (chosen, number) for number, digest in enumerate(places)})
        self._counts.read += len(found)
        return found

    def put(self, digests: Sequence[bytes], rows: EncodedItems) -> None:
        """Stores the vectors of items; those that are not finite are left to fail where they are ranked.

        Args:
            digests: Of the items, in the rows' order.
            rows: As many.

        Raises:
            DataError: They cannot be written.
        """
        path = self.folder / f"{hashlib.blake2b(b''.join(digests), digest_size=16).hexdigest()}.safetensors"
        tensors = {name: tensor.contiguous() for name, tensor in rows.tensors().items() if name in self._names}
        if self._fault(tensors, len(digests), len(rows.thoughts)):
            return
        about = {"items": b"".join(digests).hex(), "seconds": repr(rows.seconds)}
        lines = [json.dumps({"item": digest.hex(), "thought": thought}) for digest, thought in zip(digests, rows.thoughts, strict=True)]
        try:
            is_ours = _changed(self.folder) == self._looked
            _write(path.with_suffix(".jsonl"), ("\n".join(lines) + "\n").encode())
            with replacing(path) as temporary:  # last: what has this file is complete
                save_file(tensors, str(temporary), metadata=about)
            if is_ours:  # the folder's change was this file: nobody has to look for others'
                self._looked = _changed(self.folder)
        except (OSError, SafetensorError) as error:
            raise DataError(f"Vectors cannot be stored in {self.folder} ({error}): make room there, or go without a cache.") from error
        self._counts.written += len(digests)
        self._files.add(path.name)
        self._places.update({digest: (path, row) for row, digest in enumerate(digests)})

    def _note(self, path: Path) -> None:
        try:
            with safe_open(str(path), framework="pt") as file:
                digests = _items_of(file.metadata())
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            self._drop(path, f"it cannot be read: {error}")
            return
        self._files.add(path.name)
        self._places.update({digest: (path, row) for row, digest in enumerate(digests)})

    def _read(self, path: Path) -> EncodedItems | None:
        """All rows of a file; None where they are damaged."""
        rows = self._opened.pop(path, None)
        if rows is None:
            rows = self._checked(path)
        if rows is not None:
            self._opened[path] = rows
            if len(self._opened) > _OPEN_FILES:
                self._opened.popitem(last=False)
        return rows

    def _checked(self, path: Path) -> EncodedItems | None:
        try:
            with safe_open(str(path), framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 -- not a mapping
                num_items, seconds = len(_items_of(file.metadata())), float(file.metadata()["seconds"])
            lines = path.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()
            thoughts = tuple(str(json.loads(line)["thought"]) for line in lines)
        except (OSError, SafetensorError, KeyError, ValueError, TypeError) as error:
            self._drop(path, f"it cannot be read: {error}")
            return None
        why = self._fault(tensors, num_items, len(thoughts))
        if why:
            self._drop(path, why)
            return None
        return EncodedItems(
            discriminative=tensors["discriminative"],
            generative=tensors.get("generative"),
            gate_probability=tensors["gate_probability"],
            num_reasoning_tokens=tensors["num_reasoning_tokens"],
            thoughts=thoughts,
            seconds=seconds,
            thought=tensors["thought"],
        )

    def _fault(self, tensors: Mapping[str, Tensor], num_items: int, num_thoughts: int) -> str:
        if set(tensors) != self._names:
            return f"it holds {', '.join(sorted(tensors)) or 'nothing'}"
        for name, tensor in tensors.items():
            expected = (num_items, self._width) if name in ("discriminative", "generative") else (num_items,)
            if tuple(tensor.shape) != expected:
                return f"{name} has the shape {tuple(tensor.shape)}, not {expected}"
            if not bool(tensor.float().isfinite().all()):
                return f"{name} holds a value that is NaN or infinite"
            if len(expected) == 2 and bool(((tensor.float().norm(dim=1) - 1.0).abs() > _UNIT_TOLERANCE).any()):
                return f"{name} holds a row that has not length 1"
        return "" if num_thoughts == num_items else f"there are {num_thoughts} thoughts for {num_items} items"

    def _drop(self, path: Path, why: str) -> None:
        log.warning("%s is damaged (%s): what it held is encoded again.", path, why)
        self._counts.damaged += 1
        self._forget({path.name})
        path.unlink(missing_ok=True)

    def _forget(self, files: Set[str]) -> None:
        if files:
            self._files -= files
            self._places = {digest: place for digest, place in self._places.items() if place[0].name not in files}
            for name in files:
                self._opened.pop(self.folder / name, None)


def _items_of(about: Mapping[str, str] | None) -> list[bytes]:
    """The digests of a file's items, in the rows' order."""
    joined = bytes.fromhex((about or {})["items"])
    return [joined[start : start + 16] for start in range(0, len(joined), 16)]


def _changed(folder: Path) -> int:
    """When a file came or went last, in nanoseconds."""
    return folder.stat().st_mtime_ns


def _digest_of(made_by: Mapping[str, object]) -> str:
    return hashlib.blake2b(json.dumps(dict(made_by), sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


def _write(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)
