"""Folders as `twn embed` leaves them, of given vectors or of a small corpus, for tests of what is built on them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from twn_lightning.corpus.embed import embed_corpus
from twn_lightning.corpus.plan import EmbedSettings
from twn_lightning.corpus.sources import open_inputs
from twn_lightning.encoder import Encoder
from twn_lightning.index import BuildOptions, VectorIndex

COLOURS = {"red": (200, 30, 30), "green": (20, 160, 60), "blue": (30, 60, 200), "yellow": (220, 200, 30)}
TEXTS = {"tokyo": "the capital of Japan is Tokyo", "sum": "3 + 4 = 7", "flag": "the flag shows a red dot on white"}


def unit(rows: NDArray[np.floating]) -> NDArray[np.float32]:
    """Rows of length 1."""
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def clustered(number: int, dim: int, *, clusters: int, seed: int = 0) -> NDArray[np.float32]:
    """Unit rows around so many centres."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(clusters, dim))
    return unit(centres[rng.integers(0, clusters, number)] + 0.5 * rng.normal(size=(number, dim)))


def write_embeddings(
    folder: Path,
    vectors: NDArray[np.floating],
    *,
    ids: Sequence[str] | None = None,
    part_rows: int = 1000,
    changes: Mapping[str, object] | None = None,
) -> Path:
    """Parts and manifest of given vectors, whose input files are gone.

    Args:
        folder: Where.
        vectors: ``(N, D)``.
        ids: None for "d0", "d1", ….
        part_rows: Rows of a part.
        changes: In the manifest.
    """
    folder.mkdir(parents=True)
    names = [f"d{row}" for row in range(len(vectors))] if ids is None else list(ids)
    for part, first in enumerate(range(0, len(vectors), part_rows)):
        block = vectors[first : first + part_rows]
        table = {
            "id": pa.array(names[first : first + part_rows]),
            "vector": pa.FixedSizeListArray.from_arrays(pa.array(block.reshape(-1)), vectors.shape[1]),
            "thought": pa.array([f"of {name}" for name in names[first : first + part_rows]]),
        }
        pq.write_table(pa.table(table), folder / f"part-{part:05d}.parquet")
    manifest = {
        "format": 1,
        "complete": True,
        "dim": vectors.shape[1],
        "counts": {"num_rows": len(vectors)},
        "made_of": {"files": [{"path": "gone.jsonl"}], "columns": {}, "settings": {"side": "document"}, "model": {"bundle": "0" * 32}},
    }
    (folder / "embedding.json").write_text(json.dumps(manifest | dict(changes or {})))
    return folder


def write_corpus(folder: Path) -> Path:
    """Four pictures, of which one is named in folders, and three texts."""
    for name, colour in COLOURS.items():
        path = folder / "pictures" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (48, 32), colour).save(path)
    for name, words in TEXTS.items():
        path = folder / "texts" / f"{name}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(words)
    return folder


def make_index(bundle: Path, folder: Path) -> Path:
    """An index of `write_corpus`, made with a bundle; skips the test where LanceDB is not installed."""
    pytest.importorskip("lancedb")
    source = open_inputs([write_corpus(folder / "corpus")])
    embed_corpus(Encoder.from_pretrained(bundle, device="cpu"), source, folder / "vectors", settings=EmbedSettings(think="never"))
    return VectorIndex.build(folder / "vectors", folder / "index", options=BuildOptions(bundle=bundle)).folder
