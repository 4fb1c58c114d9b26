"""Building an index: vectors streamed from their parts into the store, and an approximate index over many of them."""

from __future__ import annotations

import dataclasses
import logging
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from twn_lightning.errors import ConfigError, DataError
from twn_lightning.index.embeddings import Embeddings, LeftOut
from twn_lightning.index.recall import approximate
from twn_lightning.index.texts import Texts
from twn_lightning.index.vector_index import MANIFEST, TABLE, Ann, IndexFacts, Progress, VectorIndex, database, replaced, restore

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildOptions:
    """How an index is made."""

    bundle: Path | None = None
    """Where searches find the model; None for where it was when it embedded."""
    ann: Ann = "auto"
    """"always" searches approximately, "never" looks at every vector, "auto" decides by the number of documents."""
    ann_from: int = 100_000
    """Documents from which on "auto" searches approximately; to look at 100,000 vectors of 256 numbers takes two cores a tenth of a second."""
    recall: float = 0.95
    """Share of the ten nearest documents that an approximate search is to find, above 0 to 1; measured on a sample."""
    strict: bool = False
    """Stops at a vector that is not finite or not of length 1, otherwise left out, and at a second row of an id, otherwise numbered."""
    overwrite: bool = False
    """Replaces an index that is there."""

    def __post_init__(self) -> None:
        if self.ann not in ("auto", "always", "never"):
            raise ConfigError(f"ann is {self.ann!r}; choose auto, always or never.")
        if not 0.0 < self.recall <= 1.0:
            raise ConfigError(f"recall is {self.recall}, but it is a share of documents to be found: choose a value above 0 and at most 1.")

    def is_approximate(self, num_rows: int) -> bool:
        """Whether so many documents are searched approximately."""
        return self.ann == "always" or (self.ann == "auto" and num_rows >= self.ann_from)


def build_index(embeddings: str | Path, out: str | Path, *, options: BuildOptions, progress: Progress | None = None) -> VectorIndex:
    """Makes an index of a folder that `twn embed` wrote; see `VectorIndex.build`."""
    out = Path(out).absolute()
    lock = FileLock(out.with_name(f".{out.name}.lock"), timeout=0)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with lock:
            try:
                return _build(embeddings, out, options, progress)
            finally:
                Path(lock.lock_file).unlink(missing_ok=True)
    except Timeout:
        raise ConfigError(f"Another `twn index` is writing {out}: wait for it, or choose another --out.") from None
    except OSError as error:
        raise DataError(f"{out.parent} cannot be written ({error.strerror}): choose another --out.") from error


def _build(embeddings: str | Path, out: Path, options: BuildOptions, progress: Progress | None) -> VectorIndex:
    restore(out)
    _check_place(out, overwrite=options.overwrite)
    source = Embeddings.open(embeddings)
    writing = out.with_name(f".{out.name}.writing")
    shutil.rmtree(writing, ignore_errors=True)  # of a build that was killed
    try:
        index = _write(source, writing, options, progress)
        if options.is_approximate(len(index)):
            index = VectorIndex(writing, dataclasses.replace(index.facts, ann=approximate(index, recall=options.recall)), index.table)
        (writing / MANIFEST).write_text(index.facts.json(), encoding="utf-8")
        _put_in_place(writing, out)
    except (OSError, RuntimeError) as error:  # LanceDB's own for a full disk
        raise DataError(f"The index cannot be written to {out} ({error}): choose a folder you may write to, with space left.") from error
    finally:
        shutil.rmtree(writing, ignore_errors=True)
    return VectorIndex.open(out)


def _write(source: Embeddings, folder: Path, options: BuildOptions, progress: Progress | None) -> VectorIndex:
    folder.mkdir(parents=True)
    store = database(folder)
    from lancedb.index import BTree

    left_out = LeftOut()
    schema = pa.schema([(name, pa.string()) for name in ("id", "text", "path", "thought")] + [("vector", pa.list_(pa.float32(), source.dim))])
    table = _stored(store, schema, _records(source, schema, left_out, strict=options.strict, progress=progress))
    num_rows = table.count_rows()
    if left_out.counts:
        log.warning("%s left out.", left_out.words())
    if not num_rows:
        raise DataError(f"{source.folder} holds no vector that can be searched: {left_out.words() or 'it is empty'}.")
    table.create_index("id", config=BTree())
    bundle = options.bundle or source.manifest.get("bundle")
    facts = IndexFacts(
        num_rows=num_rows,
        dim=source.dim,
        bundle=str(Path(bundle).absolute()) if bundle else "",
        provenance=source.manifest["made_of"]["model"],
        settings=source.manifest["made_of"]["settings"],
        left_out=dict(left_out.counts),
    )
    return VectorIndex(folder, facts, table)


def _stored(store: Any, schema: Any, records: Iterator[Any]) -> Any:
    """LanceDB's table of the records. What goes wrong in reading them comes through as it is, not as LanceDB words it."""
    failures: list[BaseException] = []

    def watched() -> Iterator[Any]:
        try:
            yield from records
        except GeneratorExit:  # LanceDB itself has failed
            raise
        except BaseException as error:  # Ctrl-C as well
            failures.append(error)
            raise

    try:
        return store.create_table(TABLE, data=pa.RecordBatchReader.from_batches(schema, watched()), schema=schema)
    except BaseException:
        if failures:
            raise failures[0] from None
        raise


def _records(source: Embeddings, schema: Any, left_out: LeftOut, *, strict: bool, progress: Progress | None) -> Iterator[Any]:
    texts, names, done = Texts.of(source.folder, source.manifest["made_of"], source.parts), Names(*source.id_hashes()), 0
    for ids, kept, thoughts, vectors in source.batches(left_out):
        shown = texts.take(ids)
        unique = names.unique([ids[place] for place in kept])
        if strict and (left_out.counts or names.num_changed):
            what = left_out.words() or f"{names.example[0]!r} is the id of several rows"
            raise DataError(f"{source.folder}: {what}. Embed the corpus again, or build without --strict, which goes on.")
        columns = [unique, *([column[place] for place in kept] for column in shown), thoughts]
        flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), source.dim)
        yield pa.record_batch([*(pa.array(column, pa.string()) for column in columns), flat], schema)
        done += len(kept)
        if progress is not None:
            progress(done + sum(left_out.counts.values()), source.num_rows)
    if names.num_changed:
        log.warning("%s rows have the id of an earlier row (%r among them) and are numbered: %r.", f"{names.num_changed:,}", *names.example)
    if texts.num_unknown and texts.are_there:
        log.warning("The words and pictures of %s documents are not known: their files have changed.", f"{texts.num_unknown:,}")


@dataclass
class Names:
    """Ids that name one document each: of equal ones the second is "id (2)", or the next number that makes the id of no row.

    Attributes:
        known: Hashes of all ids, sorted.
        doubtful: Hashes of the ids that may be equal.
        num_changed: Ids that were changed.
        example: One of them, before and after.
    """

    known: NDArray[np.int64]
    doubtful: set[int]
    num_changed: int = 0
    example: tuple[str, str] = ("", "")
    _seen: Counter[str] = field(default_factory=Counter)

    def unique(self, ids: list[str]) -> list[str]:
        """These ids, told apart from earlier ones."""
        return [self._own(name) if hash(name) in self.doubtful else name for name in ids]

    def _own(self, name: str) -> str:
        self._seen[name] += 1
        if self._seen[name] == 1:
            return name
        while self._is_known(own := f"{name} ({self._seen[name]})"):
            self._seen[name] += 1
        self.num_changed += 1
        self.example = (name, own)
        return own

    def _is_known(self, name: str) -> bool:
        place = int(np.searchsorted(self.known, hash(name)))
        return place < len(self.known) and int(self.known[place]) == hash(name)


def _check_place(out: Path, *, overwrite: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / MANIFEST).is_file():
        raise ConfigError(f"{out} is there and no index: choose another folder for --out.")
    if not overwrite:
        raise ConfigError(f"There is an index at {out} already: choose another folder for --out, or --overwrite it.")


def _put_in_place(writing: Path, out: Path) -> None:
    old = replaced(out)
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    writing.rename(out)
    shutil.rmtree(old, ignore_errors=True)
