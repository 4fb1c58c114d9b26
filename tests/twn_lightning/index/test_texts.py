"""What documents say and show, read again from the files that were embedded."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.support.index_files import clustered, write_corpus, write_embeddings
from twn_lightning.corpus.embed import embed_corpus
from twn_lightning.corpus.plan import EmbedSettings
from twn_lightning.corpus.rows import Columns
from twn_lightning.corpus.sources import open_inputs
from twn_lightning.index import BuildOptions, VectorIndex
from twn_lightning.index.searcher import Searcher
from twn_lightning.index.texts import EXCERPT, Texts

pytest.importorskip("lancedb")


def test_words_and_files_of_a_tables_rows_skip_those_without_a_vector(tmp_path: Path) -> None:
    rows = [
        {"name": "a", "title": "one  red\nbird", "photo": "red.png"},
        {"name": "b", "title": "", "photo": None},
        {"name": "c", "title": "x" * 1000, "photo": None},
        {"name": "d", "title": "two", "photo": "https://example.org/2.png"},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = open_inputs([tmp_path / "in.jsonl"], Columns(id="name", text="title", image="photo"))
    made_of = {"files": [{"path": str(tmp_path / "in.jsonl")}], "columns": source.columns.chosen()}  # type: ignore[union-attr]
    texts = Texts.of(tmp_path, made_of)
    words, paths = texts.take(["a", "c"])
    assert words == ["one red bird", "x" * EXCERPT]
    assert paths == [str(tmp_path / "red.png"), ""]
    assert texts.take(["d"]) == (["two"], ["https://example.org/2.png"])
    assert texts.num_unknown == 0


def test_files_of_a_folder_are_found_where_they_are(searched_index: Path) -> None:
    index = VectorIndex.open(searched_index)
    picture, text = index.documents(["pictures/red.png", "texts/tokyo.txt"])
    assert (picture.path, picture.text) == (str(searched_index.parent / "corpus" / "pictures" / "red.png"), "")
    assert (text.path, text.text) == ("", "the capital of Japan is Tokyo")


def test_files_of_one_name_in_two_folders_keep_their_own_pictures(searcher: Searcher, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name, colour in (("cats", (9, 9, 9)), ("dogs", (200, 200, 200))):
        (tmp_path / name).mkdir()
        Image.new("RGB", (32, 32), colour).save(tmp_path / name / "1.png")
    source = open_inputs([tmp_path / "cats", tmp_path / "dogs"])
    embed_corpus(searcher.encoder, source, tmp_path / "vectors", settings=EmbedSettings(think="never"))
    index = VectorIndex.build(tmp_path / "vectors", tmp_path / "index")
    assert [row.path for row in index.documents(["1.png", "1.png (2)"])] == [str(tmp_path / name / "1.png") for name in ("cats", "dogs")]
    (tmp_path / "dogs").rename(tmp_path / "wolves")
    index = VectorIndex.build(tmp_path / "vectors", tmp_path / "later")
    assert [row.path for row in index.documents(["1.png", "1.png (2)"])] == ["", ""]
    assert f"{tmp_path / 'dogs'}: there is no such folder or file any more" in caplog.text


def test_a_corpus_that_is_gone_or_changed_leaves_the_ids(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    vectors = clustered(3, 8, clusters=3)
    index = VectorIndex.build(write_embeddings(tmp_path / "gone", vectors), tmp_path / "gone-index")
    assert [(row.text, row.path) for row in index.documents(["d0", "d2"])] == [("", ""), ("", "")]
    assert "only their ids: gone.jsonl: there is no such file" in caplog.text
    write_corpus(tmp_path / "corpus")
    (tmp_path / "in.csv").write_text("id,text\nd0,zero\nd7,seven\n")
    made_of = {"files": [{"path": str(tmp_path / "in.csv")}], "columns": {"id": "id", "text": "text"}, "settings": {}, "model": {}}
    write_embeddings(tmp_path / "changed", vectors, changes={"made_of": made_of})
    index = VectorIndex.build(tmp_path / "changed", tmp_path / "changed-index", options=BuildOptions())
    assert [row.text for row in index.documents(["d0", "d1", "d2"])] == ["zero", "", ""]
    assert "of 2 documents are not known: their files have changed" in caplog.text


def test_rows_that_failed_give_their_words_to_no_row_of_their_id(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,text,image\na,bad,none.png\na,good,\nb,bee,\n")
    folder = write_embeddings(tmp_path / "vectors", clustered(2, 8, clusters=2), ids=["a", "b"])
    (folder / "part-00000.errors.jsonl").write_text('{"id": "a", "row": 0, "error": "gone"}\n')
    made_of = {"files": [{"path": str(tmp_path / "in.csv")}], "columns": {"id": "id", "text": "text", "image": "image"}}
    texts = Texts.of(folder, made_of, [0])
    assert texts.take(["a", "b"]) == (["good", "bee"], ["", ""])


def test_an_unknown_id_costs_no_other_document_its_words(tmp_path: Path) -> None:
    (tmp_path / "in.csv").write_text("id,text\na,one\nb,two\nc,three\n")
    texts = Texts.of(tmp_path, {"files": [{"path": str(tmp_path / "in.csv")}], "columns": {"id": "id", "text": "text"}})
    assert texts.take(["a", "gone", "b", "c"])[0] == ["one", "", "two", "three"]
    assert texts.num_unknown == 1
