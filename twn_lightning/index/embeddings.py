"""The folder that `twn embed` leaves, read a few thousand vectors at a time."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from twn_lightning.corpus.manifest import MANIFEST, read_manifest
from twn_lightning.corpus.parts import part_batches, vectors_of
from twn_lightning.errors import DataError

UNIT_TOLERANCE = 2e-3
"""By how much a vector's length may differ from 1; float16 vectors differ by less."""
MOST_NAMED = 20

_PART = re.compile(r"part-(\d{5}|[1-9]\d{5,})\.parquet")
_NEEDED = {"complete", "counts", "dim", "made_of"}


@dataclass
class LeftOut:
    """Rows that are not searched, and why.

    Attributes:
        counts: Reasons, and how many rows each has.
        examples: The first ids of each.
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def add(self, reason: str, ids: list[str]) -> None:
        """Counts rows."""
        if ids:
            self.counts[reason] += len(ids)
            named = self.examples.setdefault(reason, [])
            named += ids[: MOST_NAMED - len(named)]

    def words(self) -> str:
        """Counts, reasons and names in one line; empty if there are none."""
        parts = []
        for reason, count in self.counts.most_common():
            named = self.examples[reason]
            more = ", …" if count > len(named) else ""
            parts.append(f"{count:,} {'vector' if count == 1 else 'vectors'} {reason} ({', '.join(named)}{more})")
        return "; ".join(parts)


@dataclass(frozen=True)
class Embeddings:
    """Vectors on disk and what is known of them.

    Attributes:
        folder: Where they are.
        manifest: What embedding.json says.
        parts: Numbers of the part files, in order.
    """

    folder: Path
    manifest: Mapping[str, Any]
    parts: tuple[int, ...]

    @classmethod
    def open(cls, folder: str | Path) -> Embeddings:
        """Reads the manifest and the parts' headers.

        Raises:
            DataError: It is no such folder, or something is missing or does not fit.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        if manifest is None:
            raise DataError(f"{folder} holds no {MANIFEST}: name the folder that `twn embed` wrote.")
        missing = _NEEDED - set(manifest)
        if missing:
            raise DataError(f"{folder / MANIFEST} lacks {', '.join(sorted(missing))}: it was changed by hand; embed the corpus again.")
        if not manifest["complete"]:
            raise DataError(f"{folder} is not complete: run `twn embed` again, which goes on where it stopped.")
        parts = tuple(sorted(int(found[1]) for part in folder.iterdir() if (found := _PART.fullmatch(part.name))))
        embeddings = cls(folder, manifest, parts)
        embeddings._check_parts()
        return embeddings

    @property
    def dim(self) -> int:
        """D, length of a vector."""
        return int(self.manifest["dim"])

    @property
    def num_rows(self) -> int:
        """Rows with a vector."""
        return int(self.manifest["counts"]["num_rows"])

    def id_hashes(self) -> tuple[NDArray[np.int64], set[int]]:
        """Hashes of all ids, sorted, eight bytes a row, and those of the ids that name several rows."""
        hashes = [np.fromiter(map(hash, batch["id"].to_pylist()), np.int64, len(batch["id"])) for batch in self._read(["id"])]
        values, counts = np.unique(np.concatenate([np.empty(0, np.int64), *hashes]), return_counts=True)
        return values, set(values[counts > 1].tolist())

    def batches(self, left_out: LeftOut) -> Iterator[tuple[list[str], list[int], list[str], NDArray[np.float32]]]:
        """Ids of some rows, places of those among them that can be searched, and their thoughts and unit vectors ``(places, D)``.

        Args:
            left_out: Gets the others.
        """
        for batch in self._read(["id", "vector", "thought"]):
            ids, thoughts = batch["id"].to_pylist(), batch["thought"].to_pylist()
            vectors = vectors_of(batch["vector"]).astype(np.float32)
            norms = np.linalg.norm(vectors, axis=1)
            is_finite = np.isfinite(norms)
            is_unit = is_finite & (np.abs(norms - 1.0) <= UNIT_TOLERANCE)
            left_out.add("with NaN or infinity", [ids[row] for row in np.flatnonzero(~is_finite)])
            left_out.add("not of length 1", [ids[row] for row in np.flatnonzero(is_finite & ~is_unit)])
            kept = np.flatnonzero(is_unit)
            yield ids, kept.tolist(), [thoughts[row] for row in kept], vectors[kept] / norms[kept, None]

    def _read(self, columns: list[str]) -> Iterator[Mapping[str, Any]]:
        return part_batches(self.folder, self.parts, columns)

    def _check_parts(self) -> None:
        if not self.parts:
            raise DataError(f"{self.folder} holds no part-00000.parquet: run `twn embed` again, which makes what is missing.")
        num_rows = 0
        for part in self.parts:
            path = self.folder / f"part-{part:05d}.parquet"
            try:
                about = pq.read_metadata(path)
                schema = about.schema.to_arrow_schema()
            except (OSError, pa.ArrowException) as error:
                raise DataError(f"{path} cannot be read ({error}): run `twn embed` again, which makes it anew.") from error
            lacking = [name for name in ("id", "vector", "thought") if name not in schema.names]
            size = getattr(schema.field("vector").type, "list_size", None) if not lacking else None
            if lacking or size != self.dim:
                what = f"lacks the columns {', '.join(lacking)}" if lacking else f"has vectors of {size} numbers, {MANIFEST} says {self.dim}"
                raise DataError(f"{path} {what}: it belongs to other embeddings; run `twn embed` again into an empty folder.")
            num_rows += about.num_rows
        if num_rows != self.num_rows:
            raise DataError(f"The parts in {self.folder} hold {num_rows:,} rows, {MANIFEST} says {self.num_rows:,}: run `twn embed` again.")
