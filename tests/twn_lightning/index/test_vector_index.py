"""The store of vectors: what is found, in which order, and what is refused."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from tests.support.index_files import clustered, unit, write_embeddings
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.index import BuildOptions, Document, VectorIndex, recall

pytest.importorskip("lancedb")


def built(tmp_path: Path, vectors: np.ndarray, **options: object) -> VectorIndex:
    write_embeddings(tmp_path / "vectors", vectors)
    return VectorIndex.build(tmp_path / "vectors", tmp_path / "index", options=BuildOptions(**options))  # type: ignore[arg-type]


def test_a_search_finds_what_a_product_of_all_vectors_finds(tmp_path: Path) -> None:
    vectors, queries = clustered(2500, 24, clusters=30), clustered(5, 24, clusters=30, seed=1)
    index = built(tmp_path, vectors)
    ids, scores, rows = VectorIndex.open(index.folder).search(torch.from_numpy(queries), top_k=10)
    by_hand = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    for query in range(5):
        order = np.argsort(-by_hand[query])[:10]
        assert list(ids[query]) == [f"d{row}" for row in order]
        np.testing.assert_allclose(scores[query], by_hand[query][order], atol=1e-6)
        assert rows[query][0] == Document(id=ids[query][0], thought=f"of {ids[query][0]}")
    assert index.search(queries[0], top_k=5000).ids[0] == index.search(queries[0], top_k=2500).ids[0]  # as many as there are


def test_equal_scores_come_in_the_order_of_ids_even_across_the_last_place(tmp_path: Path) -> None:
    others = clustered(300, 16, clusters=300)
    same = np.repeat(clustered(1, 16, clusters=1, seed=3), 200, axis=0)
    ids = [f"a{row:03d}" for row in np.random.default_rng(0).permutation(200)] + [f"b{row}" for row in range(300)]
    write_embeddings(tmp_path / "vectors", np.concatenate([same, others]), ids=ids, part_rows=37)
    index = VectorIndex.build(tmp_path / "vectors", tmp_path / "index")
    found = index.search(same[:1], top_k=7)
    assert found.ids[0] == tuple(f"a{row:03d}" for row in range(7))
    assert len(set(found.scores[0])) == 1


def test_vectors_that_cannot_be_searched_are_named_counted_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vectors = clustered(60, 8, clusters=5)
    vectors[3, 2], vectors[7] = np.nan, np.inf
    vectors[11] *= 1.5
    vectors[12] *= 1.0005  # as far from 1 as float16 brings it
    index = built(tmp_path, vectors)
    assert len(index) == 57
    assert index.facts.left_out == {"with NaN or infinity": 2, "not of length 1": 1}
    assert "2 vectors with NaN or infinity (d3, d7); 1 vector not of length 1 (d11) left out." in caplog.text
    assert np.linalg.norm(index.vectors(["d12"])[0]) == pytest.approx(1.0, abs=1e-6)
    with pytest.raises(DataError, match=r"2 vectors with NaN or infinity \(d3, d7\).*without --strict"):
        VectorIndex.build(tmp_path / "vectors", tmp_path / "strict", options=BuildOptions(strict=True))
    assert not (tmp_path / "strict").exists()
    with pytest.raises(DataError, match="no vector that can be searched: 2 vectors with NaN"):
        built(tmp_path / "none", np.full((2, 8), np.nan, np.float32))


def test_a_second_row_of_an_id_gets_a_number(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_embeddings(tmp_path / "vectors", clustered(5, 8, clusters=5), ids=["x", "y", "x", "z", "x"], part_rows=2)
    index = VectorIndex.build(tmp_path / "vectors", tmp_path / "index")
    assert sorted(index.search(clustered(1, 8, clusters=1), top_k=9).ids[0]) == ["x", "x (2)", "x (3)", "y", "z"]
    assert "2 rows have the id of an earlier row" in caplog.text
    with pytest.raises(DataError, match="'x' is the id of several rows"):
        VectorIndex.build(tmp_path / "vectors", tmp_path / "strict", options=BuildOptions(strict=True))


@pytest.mark.slow
def test_the_approximate_search_finds_the_share_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "_ROWS_A_PARTITION", 200)
    vectors = clustered(8000, 32, clusters=80)
    index = built(tmp_path, vectors, ann="always", recall=0.9)
    ann = index.facts.ann
    assert ann is not None
    assert (ann.kind, ann.partitions, ann.sampled) == ("IVF_SQ", 40, 100)
    assert ann.recall >= 0.9
    assert ann.probes < ann.partitions
    mixed = unit(vectors[:50] + 0.5 * clustered(50, 32, clusters=80, seed=9))  # between their clusters and others
    exact = np.argsort(-(mixed @ vectors.T), axis=1)[:, :10]
    found = index.search(mixed, top_k=10)
    share = np.mean([len({f"d{row}" for row in truth} & set(ids)) / 10 for truth, ids in zip(exact, found.ids, strict=True)])
    assert share >= 0.85
    assert index.search(mixed, top_k=10, exact=True).ids == tuple(tuple(f"d{row}" for row in truth) for truth in exact)


def test_a_recall_that_takes_every_cluster_gets_every_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recall, "_ROWS_A_PARTITION", 100)
    index = built(tmp_path, clustered(1200, 24, clusters=1200), ann="always", recall=1.0)  # no clusters to find
    assert index.facts.ann is not None
    assert index.facts.ann.probes == index.facts.ann.partitions == 12
    assert index.facts.ann.recall >= 0.95


def test_many_documents_are_searched_approximately_and_few_are_not(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "vectors", clustered(300, 8, clusters=5))
    for number, (options, is_approximate) in enumerate(
        [(BuildOptions(ann_from=300), True), (BuildOptions(ann_from=301), False), (BuildOptions(ann="never", ann_from=1), False)]
    ):
        index = VectorIndex.build(tmp_path / "vectors", tmp_path / str(number), options=options)
        assert (index.facts.ann is not None) == is_approximate
        assert index.search(clustered(1, 8, clusters=1), top_k=4).ids[0] == index.search(clustered(1, 8, clusters=1), top_k=4, exact=True).ids[0]


def test_the_bundle_is_the_one_that_embedded_unless_another_place_is_named(tmp_path: Path) -> None:
    vectors = write_embeddings(tmp_path / "vectors", clustered(5, 8, clusters=5), changes={"bundle": "/models/bundle"})
    assert VectorIndex.build(vectors, tmp_path / "one").facts.bundle == "/models/bundle"
    assert VectorIndex.build(vectors, tmp_path / "two", options=BuildOptions(bundle=Path("/copies/b"))).facts.bundle == "/copies/b"
    assert VectorIndex.open(tmp_path / "one").facts.provenance == {"bundle": "0" * 32}


def test_documents_are_found_by_ids_of_any_kind_in_the_order_asked_for(tmp_path: Path) -> None:
    ids = ["it's", 'a "b"', "c%d_e", "f\\g", "日本/h.png"]
    write_embeddings(tmp_path / "vectors", clustered(5, 8, clusters=5), ids=ids)
    index = VectorIndex.build(tmp_path / "vectors", tmp_path / "index")
    assert [document.id for document in index.documents(ids[::-1])] == ids[::-1]
    with pytest.raises(DataError, match='no document "x\' OR 1=1"'):
        index.documents(["it's", "x' OR 1=1"])


def test_a_place_that_is_taken_is_left_alone(tmp_path: Path) -> None:
    index = built(tmp_path, clustered(20, 8, clusters=2))
    with pytest.raises(ConfigError, match="There is an index at .* already: .*--overwrite"):
        VectorIndex.build(tmp_path / "vectors", index.folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(ConfigError, match="is there and no index"):
        VectorIndex.build(tmp_path / "vectors", tmp_path / "mine", options=BuildOptions(overwrite=True))
    write_embeddings(tmp_path / "broken", np.full((2, 8), np.nan, np.float32))
    with pytest.raises(DataError, match="no vector that can be searched"):
        VectorIndex.build(tmp_path / "broken", index.folder, options=BuildOptions(overwrite=True))
    assert len(VectorIndex.open(index.folder)) == 20  # the old one is still whole
    write_embeddings(tmp_path / "more", clustered(30, 8, clusters=2))
    assert len(VectorIndex.build(tmp_path / "more", index.folder, options=BuildOptions(overwrite=True))) == 30
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "index", "mine", "more", "vectors"]


def test_embeddings_that_are_incomplete_or_damaged_are_refused(tmp_path: Path) -> None:
    vectors = clustered(30, 8, clusters=2)
    unfinished = write_embeddings(tmp_path / "unfinished", vectors, changes={"complete": False})
    shorter = write_embeddings(tmp_path / "shorter", vectors, part_rows=10)
    (shorter / "part-00001.parquet").unlink()
    broken = write_embeddings(tmp_path / "broken", vectors)
    (broken / "part-00000.parquet").write_bytes(b"PAR1 and nothing else")
    other = write_embeddings(tmp_path / "other", vectors, changes={"dim": 16})
    old = write_embeddings(tmp_path / "old", vectors, changes={"format": 7})
    (tmp_path / "empty").mkdir()
    for folder, words in {
        unfinished: "is not complete: run `twn embed` again",
        shorter: "hold 20 rows, embedding.json says 30",
        broken: r"part-00000.parquet cannot be read",
        other: "has vectors of 8 numbers, embedding.json says 16",
        old: "no manifest of this version",
        tmp_path / "empty": "holds no embedding.json: name the folder that `twn embed` wrote",
    }.items():
        with pytest.raises(DataError, match=words):
            VectorIndex.build(folder, tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_an_index_that_is_missing_or_damaged_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no index at .*: `twn index"):
        VectorIndex.open(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()
    folder = built(tmp_path, clustered(20, 8, clusters=2)).folder
    facts = json.loads((folder / "index.json").read_text())
    for changes, words in (({"format": 9}, "of another version"), ({"num_rows": 21}, "holds 20 documents, its index.json says 21")):
        (folder / "index.json").write_text(json.dumps(facts | changes))
        with pytest.raises(DataError, match=words):
            VectorIndex.open(folder)
    (folder / "index.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read"):
        VectorIndex.open(folder)


def test_queries_that_cannot_be_compared_are_refused(tmp_path: Path) -> None:
    index = built(tmp_path, clustered(20, 8, clusters=2))
    with pytest.raises(DataError, match=r"shape \(1, 9\); this index searches with vectors of 8"):
        index.search(np.ones((1, 9), np.float32))
    with pytest.raises(DataError, match="NaN or infinity"):
        index.search(np.full((1, 8), np.nan, np.float32))
    with pytest.raises(ConfigError, match="top_k is 0"):
        index.search(np.ones((1, 8), np.float32), top_k=0)


@pytest.mark.parametrize(
    ("options", "words"), [({"ann": "perhaps"}, "ann is 'perhaps'"), ({"recall": 0.0}, "recall is 0.0"), ({"recall": 1.5}, "recall is 1.5")]
)
def test_options_out_of_range_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        BuildOptions(**options)  # type: ignore[arg-type]


def test_without_lancedb_the_way_to_install_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = built(tmp_path, clustered(20, 8, clusters=2)).folder
    monkeypatch.setitem(sys.modules, "lancedb", None)
    for attempt in (partial(VectorIndex.open, folder), partial(VectorIndex.build, tmp_path / "vectors", tmp_path / "other")):
        with pytest.raises(ConfigError, match=r"needs the package lancedb: pip install 'twn-lightning\[search\]'"):
            attempt()


def test_a_number_that_makes_another_rows_id_is_passed_over(tmp_path: Path) -> None:
    vectors = clustered(5, 8, clusters=5)
    write_embeddings(tmp_path / "vectors", vectors, ids=["a", "a", "a (2)", "a (2)", "a"])
    index = VectorIndex.build(tmp_path / "vectors", tmp_path / "index")
    assert sorted(index.search(vectors[0], top_k=5).ids[0]) == ["a", "a (2)", "a (2) (2)", "a (3)", "a (4)"]
    for row, name in enumerate(["a", "a (3)", "a (2)", "a (2) (2)", "a (4)"]):
        np.testing.assert_allclose(index.vectors([name])[0], vectors[row], atol=1e-6)


def test_embeddings_without_a_vector_are_said_to_be_empty(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "vectors", np.empty((0, 8), np.float32))
    pq.write_table(
        pa.table({"id": pa.array([], pa.string()), "vector": pa.array([], pa.list_(pa.float32(), 8)), "thought": pa.array([], pa.string())}),
        tmp_path / "vectors/part-00000.parquet",
    )
    with pytest.raises(DataError, match="holds no vector that can be searched: it is empty"):
        VectorIndex.build(tmp_path / "vectors", tmp_path / "index")


def test_ctrl_c_while_vectors_are_read_stays_one_and_leaves_nothing(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "vectors", clustered(50, 8, clusters=5))

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        VectorIndex.build(tmp_path / "vectors", tmp_path / "index", progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["vectors"]


def test_two_builds_of_one_place_do_not_meet_and_a_killed_one_loses_no_index(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "vectors", clustered(50, 8, clusters=5))
    refused = []

    def meanwhile(done: int, total: int) -> None:
        with pytest.raises(ConfigError, match="Another `twn index` is writing") as caught:
            VectorIndex.build(tmp_path / "vectors", tmp_path / "index")
        refused.append(caught)

    VectorIndex.build(tmp_path / "vectors", tmp_path / "index", progress=meanwhile)
    assert refused
    (tmp_path / "index").rename(tmp_path / ".index.old")  # as between the two renames
    with pytest.raises(DataError, match=r"is being replaced, or that was broken off: .*\.index\.old"):
        VectorIndex.open(tmp_path / "index")
    with pytest.raises(ConfigError, match="There is an index at"):
        VectorIndex.build(tmp_path / "vectors", tmp_path / "index")
    assert len(VectorIndex.open(tmp_path / "index")) == 50


def test_an_index_may_be_made_in_the_folder_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_embeddings(tmp_path / "vectors", clustered(5, 8, clusters=5))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    VectorIndex.build("../vectors", ".")
    assert len(VectorIndex.open(tmp_path / "here")) == 5


def test_other_files_beside_the_parts_are_passed_over(tmp_path: Path) -> None:
    write_embeddings(tmp_path / "vectors", clustered(5, 8, clusters=2))
    for name in ("part-0000-3f2a.parquet", "part-00000-copy.parquet", "part-1.parquet"):
        pq.write_table(pa.table({"text": ["a"]}), tmp_path / "vectors" / name)
    assert len(VectorIndex.build(tmp_path / "vectors", tmp_path / "index")) == 5
