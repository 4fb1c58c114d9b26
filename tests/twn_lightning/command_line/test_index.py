"""`twn index` on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.support.index_files import clustered, write_embeddings
from twn_lightning.index import VectorIndex

pytest.importorskip("lancedb")
Twn = Callable[..., tuple[int, str, str]]


def test_the_report_says_how_it_is_searched_and_what_is_left_out(twn: Twn, tmp_path: Path) -> None:
    vectors = clustered(500, 16, clusters=10)
    vectors[4] = np.nan
    write_embeddings(tmp_path / "vectors", vectors)
    code, out, said = twn("index", tmp_path / "vectors", "--out", tmp_path / "exact")
    assert (code, out) == (0, "")
    assert f"{tmp_path / 'exact'}: 499 documents, vectors of 16 numbers." in said
    assert "search      exact: every vector is looked at" in said
    assert "left out    1 vector with NaN or infinity" in said
    assert "model       not named: search with --bundle FOLDER" in said
    code, _, said = twn("index", tmp_path / "vectors", "--out", tmp_path / "ann", "--ann", "always", "--bundle", tmp_path / "bundle")
    assert code == 0
    facts = VectorIndex.open(tmp_path / "ann").facts
    assert facts.ann is not None
    assert f"search      approximate (IVF_SQ): 1 of 1 clusters are looked into; recall@10 {facts.ann.recall:.3f} on 100 documents" in said
    assert facts.bundle == str(tmp_path / "bundle")


def test_what_cannot_be_indexed_is_one_line(twn: Twn, tmp_path: Path) -> None:
    vectors = clustered(5, 8, clusters=2)
    vectors[1] = np.inf
    write_embeddings(tmp_path / "vectors", vectors)
    (tmp_path / "in.csv").write_text("id,text\n")
    for arguments, words in (
        ((tmp_path / "vectors", "--out", tmp_path / "out", "--strict"), "1 vector with NaN or infinity (d1)"),
        ((tmp_path, "--out", tmp_path / "out"), "holds no embedding.json: name the folder that `twn embed` wrote"),
        ((tmp_path / "in.csv", "--out", tmp_path / "out"), "in.csv holds no embedding.json: name the folder that `twn embed` wrote"),
        ((tmp_path / "vectors", "--out", tmp_path / "vectors"), "is there and no index: choose another folder for --out"),
        ((tmp_path / "vectors", "--out", tmp_path / "out", "--recall", "2"), "recall is 2.0"),
    ):
        code, out, said = twn("index", *arguments)
        assert (code, out) == (1, "")
        assert words in said.splitlines()[-1]
        assert said.splitlines()[-1].startswith("twn: ")
        assert not (tmp_path / "out").exists()
