"""Words and pictures in, documents out; models that did not make the index are refused."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.support.index_files import COLOURS, TEXTS
from twn_lightning.encoder import Encoder
from twn_lightning.errors import CheckpointError, ConfigError, DataError
from twn_lightning.index import VectorIndex
from twn_lightning.index.searcher import DEPTH, Query, Searcher, check_provenance


def test_a_document_is_found_by_itself_with_its_words_and_its_file(searcher: Searcher) -> None:
    ranking, thinking = searcher.search(Query(text=TEXTS["sum"]), think="never", top_k=3)
    first = ranking.hits[0]
    assert (first.rank, first.document.id, first.document.text) == (1, "texts/sum.txt", TEXTS["sum"])
    assert first.score == pytest.approx(1.0, abs=1e-5)
    assert (thinking.thinks, thinking.thought, thinking.num_reasoning_tokens) == (False, "", 0)
    ranking, _ = searcher.search(Query(image=Image.new("RGB", (48, 32), COLOURS["blue"])), think="never", top_k=1)
    document = ranking.hits[0].document
    assert document.id == "pictures/blue.png"
    assert Path(document.path).is_absolute()
    with Image.open(document.path) as picture:
        assert picture.getpixel((5, 5)) == COLOURS["blue"]


def test_both_rankings_are_the_encoders_own_and_know_each_others_places(searcher: Searcher) -> None:
    comparison = searcher.compare(Query(text="a red bird", instruction="Find it."), top_k=7)
    ids = [hit.document.id for hit in searcher.compare(Query(text="a red bird", instruction="Find it."), top_k=7).without.hits]
    documents = torch.from_numpy(searcher.index.vectors(sorted(ids)))
    asked = [{"text": "a red bird", "instruction": "Find it."}]
    for ranking, think in ((comparison.without, "never"), (comparison.after, "always")):
        vectors = searcher.encoder.encode(asked, think=think)  # type: ignore[call-overload]
        expected = searcher.encoder.search(vectors, documents, top_k=7)
        assert [hit.document.id for hit in ranking.hits] == [sorted(ids)[column] for column in expected.indices[0].tolist()]
        assert [hit.score for hit in ranking.hits] == pytest.approx(expected.scores[0].tolist(), abs=1e-5)
    places = {hit.document.id: hit.rank for hit in comparison.without.hits}
    assert [hit.previous_rank for hit in comparison.after.hits] == [places[hit.document.id] for hit in comparison.after.hits]
    assert comparison.thinking.num_reasoning_tokens == 5
    assert comparison.cosine == pytest.approx(float(comparison.without.vector @ comparison.after.vector))
    assert len(searcher.compare(Query(text="x"), top_k=2).after.hits) == 2
    assert len(searcher.index) <= DEPTH


def test_the_gate_decides_and_says_why(searcher: Searcher) -> None:
    _, thinking = searcher.search(Query(text="seven"))
    assert thinking.threshold == searcher.encoder.model.gate.threshold
    assert thinking.thinks == thinking.is_chosen == (thinking.probability >= thinking.threshold)
    _, thrifty = searcher.search(Query(text="seven"), budget=0.0)  # the curve's point without a token is the threshold 1
    assert (thrifty.threshold, thrifty.thinks) == (1.0, False)
    assert searcher.compare(Query(text="seven"), budget=0.0).thinking.threshold == 1.0
    with pytest.raises(ConfigError, match="budget"):
        searcher.search(Query(text="seven"), budget=-1.0)


@pytest.mark.parametrize("query", [Query(), Query(text="  "), Query(instruction="Find it.")])
def test_an_empty_query_is_refused(searcher: Searcher, query: Query) -> None:
    with pytest.raises(DataError, match="nothing to search with"):
        searcher.search(query)


def test_an_index_finds_its_bundle_and_refuses_another(searched_index: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    assert Searcher.open(searched_index, device="cpu").encoder.bundle == tiny_bundle
    other = tmp_path / "other"
    shutil.copytree(tiny_bundle, other)
    queries = torch.load(other / "queries.pt", weights_only=True)
    torch.save({"queries": queries["queries"] + 1.0}, other / "queries.pt")
    with pytest.raises(CheckpointError, match=r"other is not what made .*index \(bundle was .*scores across models mean nothing"):
        Searcher.open(searched_index, bundle=other, device="cpu")
    assert Searcher.open(searched_index, bundle=other, device="cpu", force=True).encoder.bundle == other


def test_a_bundle_that_is_gone_or_not_named_is_asked_for(searched_index: Path, tmp_path: Path) -> None:
    shutil.copytree(searched_index, tmp_path / "index")
    facts = VectorIndex.open(tmp_path / "index").facts
    for bundle, words in (("/nowhere/bundle", "is not at /nowhere/bundle"), ("", "is not named in it")):
        (tmp_path / "index" / "index.json").write_text(dataclasses.replace(facts, bundle=bundle).json())
        with pytest.raises(CheckpointError, match=f"{words}: say where it is, with --bundle"):
            Searcher.open(tmp_path / "index")


def test_another_version_of_the_program_is_said(searcher: Searcher, tiny_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    index = searcher.index
    made = {**index.facts.provenance, "code": "0" * 32, "device": "tpu"}
    check_provenance(
        VectorIndex(index.folder, dataclasses.replace(index.facts, provenance=made), index.table),
        Encoder.from_pretrained(tiny_bundle, device="cpu"),
        force=False,
    )
    assert "made by another version of this program" in caplog.text
