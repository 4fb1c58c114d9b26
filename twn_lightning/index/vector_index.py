"""The store: opened, searched, asked for documents."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from twn_lightning.errors import ConfigError, DataError
from twn_lightning.index.hits import Document, Found

if TYPE_CHECKING:
    from twn_lightning.index.build import BuildOptions

Ann: TypeAlias = Literal["auto", "always", "never"]
Progress: TypeAlias = Callable[[int, int], None]
"""Told of rows that are done, and of how many."""
Vectors: TypeAlias = Tensor | NDArray[np.float32]

FORMAT = 1
MANIFEST, TABLE = "index.json", "documents"
REFINE = 4
"""Candidates of the approximate search that are scored with their full vectors, for each result that is wanted."""

_SPARE = 16
_COLUMNS = ["id", "text", "path", "thought"]


@dataclass(frozen=True)
class AnnFacts:
    """How the approximate search is set up, and how good it is.

    Attributes:
        kind: Of index, in LanceDB's words.
        partitions: Clusters of vectors.
        probes: Clusters that a query looks into.
        recall: Share of the ten nearest neighbours that are found, mean over a sample of documents, each without itself.
        sampled: Size of the sample.
    """

    kind: str
    partitions: int
    probes: int
    recall: float
    sampled: int


@dataclass(frozen=True)
class IndexFacts:
    """What index.json says.

    Attributes:
        num_rows: Documents.
        dim: D, length of a vector.
        bundle: Folder of the model that made the vectors.
        provenance: Everything else that made them; see `Encoder.provenance`.
        settings: With which `twn embed` ran.
        left_out: Rows that are not in the index: reason → how many.
        ann: The approximate search; None where every vector is looked at.
    """

    num_rows: int
    dim: int
    bundle: str
    provenance: Mapping[str, str]
    settings: Mapping[str, object]
    left_out: Mapping[str, int]
    ann: AnnFacts | None = None

    def json(self) -> str:
        """As it is written."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"


def database(folder: Path) -> Any:
    """LanceDB's view of a folder.

    Raises:
        ConfigError: LanceDB is not installed.
    """
    try:
        import lancedb
    except ImportError as error:
        raise ConfigError("An index needs the package lancedb: pip install 'twn-lightning[search]'.") from error
    return lancedb.connect(str(folder))


class VectorIndex:
    """Documents by their vectors, on disk.

    Args:
        folder: Where it is.
        facts: What its index.json says.
        table: LanceDB's.

    Example:
        >>> index = VectorIndex.build("embeddings", "index")
        >>> ids, scores, rows = index.search(encoder.encode(["a red bird"]), top_k=5)
    """

    def __init__(self, folder: Path, facts: IndexFacts, table: Any) -> None:
        self.folder = folder
        self.facts = facts
        self.table = table

    @classmethod
    def build(cls, embeddings: str | Path, out: str | Path, *, options: BuildOptions | None = None, progress: Progress | None = None) -> VectorIndex:
        """Makes an index of a folder that `twn embed` wrote. It appears when it is whole; memory does not grow with the vectors.

        Args:
            embeddings: The folder.
            out: Where the index is to be.
            options: How.
            progress: Told of rows that are done.

        Raises:
            ConfigError: The place is taken, or LanceDB is not installed.
            DataError: The folder is incomplete or damaged, no vector can be searched, or one cannot and the options are strict.
        """
        from twn_lightning.index.build import BuildOptions, build_index

        return build_index(embeddings, out, options=options or BuildOptions(), progress=progress)

    @classmethod
    def open(cls, folder: str | Path) -> VectorIndex:
        """An index that is there.

        Raises:
            DataError: It is none, or damaged, or of another version.
            ConfigError: LanceDB is not installed.
        """
        folder = Path(folder)
        facts = read_facts(folder)
        try:
            table = database(folder).open_table(TABLE)
            num_rows = table.count_rows()
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(f"The documents in {folder} cannot be read ({error}): build the index again.") from error
        if num_rows != facts.num_rows:
            raise DataError(f"{folder} holds {num_rows:,} documents, its {MANIFEST} says {facts.num_rows:,}: build the index again.")
        return cls(folder, facts, table)

    def __len__(self) -> int:
        return self.facts.num_rows

    @property
    def dim(self) -> int:
        """D, length of a vector."""
        return self.facts.dim

    def search(self, vectors: Vectors, top_k: int = 10, *, exact: bool = False) -> Found:
        """The best documents of each query.

        Args:
            vectors: Unit rows, ``(Q, D)`` or ``(D,)``.
            top_k: Wanted, at least 1; as many as there are if there are fewer.
            exact: Looks at every vector, even where there is an approximate index.

        Raises:
            ConfigError: top_k is less than 1.
            DataError: Vectors of another length, or not finite.
        """
        if top_k < 1:
            raise ConfigError(f"top_k is {top_k}; choose at least 1.")
        best = [self._best(query, top_k, exact=exact or self.facts.ann is None) for query in self._queries(vectors)]
        documents = self._documents_at(sorted({row for found in best for row, _, _ in found}))
        return Found(
            ids=tuple(tuple(name for _, name, _ in found) for found in best),
            scores=tuple(tuple(score for _, _, score in found) for found in best),
            rows=tuple(tuple(documents[row] for row, _, _ in found) for found in best),
        )

    def documents(self, ids: Sequence[str]) -> tuple[Document, ...]:
        """Documents by their ids, in the order asked for.

        Raises:
            DataError: There is none of an id.
        """
        found = {row["id"]: Document(**row) for row in self._where(ids, _COLUMNS)}
        return tuple(found[name] for name in ids)

    def vectors(self, ids: Sequence[str]) -> NDArray[np.float32]:
        """Unit rows of documents, in the order asked for, ``(len(ids), D)``.

        Raises:
            DataError: There is none of an id.
        """
        found = {row["id"]: row["vector"] for row in self._where(ids, ["id", "vector"])}
        return np.array([found[name] for name in ids], np.float32).reshape(len(ids), self.dim)

    def batches(self) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
        """Ids and unit vectors ``(rows, D)`` of all documents, some thousand at a time."""
        for batch in self.table.search().select(["id", "vector"]).to_batches(max(64, 2**22 // self.dim)):
            values = batch["vector"].flatten().to_numpy(zero_copy_only=False)
            yield batch["id"].to_pylist(), values.reshape(-1, self.dim)

    def nearest(self, query: NDArray[np.float32], num: int, *, probes: int | None) -> Any:
        """LanceDB's nearest rows as an Arrow table of "id", "_distance" (1 - cosine) and "_rowid", nearest first.

        Args:
            query: ``(D,)``.
            num: Rows.
            probes: Clusters to look into; None looks at every vector.
        """
        search = self.table.search(query, vector_column_name="vector").distance_type("cosine").limit(num).with_row_id(True)
        search = search.bypass_vector_index() if probes is None else search.nprobes(probes).refine_factor(REFINE)
        return search.select(["id", "_distance"]).to_arrow()

    def _best(self, query: NDArray[np.float32], top_k: int, *, exact: bool) -> list[tuple[int, str, float]]:
        """Row, id and score of the best documents, the first by id among equals: more are fetched until the last place's equals are all there."""
        ann = self.facts.ann
        probes = None if exact or ann is None else ann.probes
        num = min(top_k + _SPARE, len(self))
        while True:
            found = self.nearest(query, num, probes=probes)
            distances = found["_distance"].to_numpy()
            if num == len(self) or len(distances) < num or distances[-1] > distances[top_k - 1]:
                break
            num = min(4 * num, len(self))
        rows = sorted(zip(distances.tolist(), found["id"].to_pylist(), found["_rowid"].to_pylist(), strict=True))
        return [(row, name, 1.0 - distance) for distance, name, row in rows[:top_k]]

    def _queries(self, vectors: Vectors) -> Iterable[NDArray[np.float32]]:
        array = np.asarray(vectors.detach().cpu() if isinstance(vectors, Tensor) else vectors, np.float32)
        if array.ndim not in (1, 2) or array.shape[-1] != self.dim:
            raise DataError(f"The queries have the shape {array.shape}; this index searches with vectors of {self.dim} numbers.")
        if not np.isfinite(array).all():
            raise DataError("A query's vector holds NaN or infinity: leave out the inputs that Encoding.errors names.")
        return array.reshape(-1, self.dim)

    def _documents_at(self, rows: Sequence[int]) -> dict[int, Document]:
        if not rows:
            return {}
        found = self.table.take_row_ids(list(rows)).select(_COLUMNS).with_row_id().to_arrow().to_pylist()
        return {row.pop("_rowid"): Document(**row) for row in found}

    def _where(self, ids: Sequence[str], columns: list[str]) -> list[dict[str, Any]]:
        quoted = ", ".join("'" + name.replace("'", "''") + "'" for name in dict.fromkeys(ids))
        rows: list[dict[str, Any]] = self.table.search().where(f"id IN ({quoted})").select(columns).to_arrow().to_pylist() if ids else []
        missing = [name for name in ids if name not in {row["id"] for row in rows}]
        if missing:
            raise DataError(f"There is no document {missing[0]!r} in {self.folder}: ids are written as in the results of a search.")
        return rows


def replaced(folder: Path) -> Path:
    """Where an index is between the moment that it is put aside and the one in which a new one takes its place."""
    return folder.with_name(f".{folder.name}.old")


def restore(folder: Path) -> None:
    """Puts an index back that was put aside by a build that was killed before the new one took its place; to be called under the build's lock."""
    if not folder.exists() and (replaced(folder) / MANIFEST).is_file():
        replaced(folder).rename(folder)


def read_facts(folder: Path) -> IndexFacts:
    """What an index.json says.

    Raises:
        DataError: It is not there, or not of this version.
    """
    path = folder / MANIFEST
    if not folder.exists() and (replaced(folder.absolute()) / MANIFEST).is_file():
        aside = replaced(folder.absolute())
        raise DataError(f"The index at {folder} is being replaced, or that was broken off: wait, run `twn index` again, or rename {aside} to it.")
    if not path.is_file():
        raise DataError(f"There is no index at {folder}: `twn index EMBEDDINGS --out {folder}` makes one.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise DataError(f"{path} is of another version (this one reads format {FORMAT}): build the index again.")
        ann = content.pop("ann")
        return IndexFacts(**content, ann=None if ann is None else AnnFacts(**ann))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} cannot be read ({error}): build the index again.") from error
