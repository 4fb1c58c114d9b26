import json
from pathlib import Path
from typing import Any

import pytest

from datamodules.collate import target_hash
from datamodules.sources import open_source
from tests.support import training_files
from twn_lightning.batches import Item
from twn_lightning.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return training_files.make(tmp_path_factory.mktemp("twn"), rows=6)


@pytest.fixture
def folders(made: dict[str, Path]) -> dict[str, str]:
    return {"mmeb_train": str(made["media"]), "sharegpt_video": str(made["media"] / "frames")}


def one(folder: Path, **row: Any) -> dict[str, object]:
    """Options of a file of one row."""
    path = folder / "one.json"
    path.write_text(json.dumps([row]))
    return {"path": path}


def test_pairs_hold_both_sides_thoughts_and_negatives(made: dict[str, Path], folders: dict[str, str]) -> None:
    source = open_source("twn", {"path": made["twn"], "media": folders, "with_cot": True})
    pair = source[1]
    assert pair.query == Item("Represent the given image for classification", images=(made["media"] / training_files.picture_name(1),))
    assert (pair.positive, pair.negatives) == (Item("Albania"), (Item("Tirana"),))
    assert pair.query_cot == "The picture shows the flag of Albania.\nAlbania"
    assert pair.positive_cot == "A country named Albania.\nAlbania"
    assert (source.name, pair.key) == ("MMEB_ImageNet_1K", "1:1")


def test_equal_target_hashes_are_equal_targets(made: dict[str, Path], folders: dict[str, str]) -> None:
    source = open_source("twn", {"path": made["twn_rl"], "media": folders})
    assert source[1].positive.video == made["media"] / "frames" / "v_1"
    hashes = [target_hash(source[row]) for row in range(6)]
    assert [hashes[0] == hashes[1], hashes[1] == hashes[2], len(set(hashes))] == [True, False, 3]


@pytest.mark.parametrize("positive", ["pos", "positive", "target", "candidate"])
@pytest.mark.parametrize("thoughts", ["inside", "beside", "beside by side", "plain"])
def test_fields_are_found_under_their_usual_names(tmp_path: Path, positive: str, thoughts: str) -> None:
    row: dict[str, Any] = {"query": {"text": "q"}, positive: {"text": "p"}}
    if thoughts == "inside":
        row["query"]["cot"], row[positive]["cot"] = "<think>why</think>", "<think>because</think>"
    elif thoughts == "beside":
        row["query_cot"], row[f"{positive}_cot"] = "<think>why</think>", "<think>because</think>"
    elif thoughts == "beside by side":
        row["query_cot"], row["positive_cot"] = "<think>why</think>", "<think>because</think>"
    else:
        row["query"]["reasoning"], row[positive]["reasoning"] = "why", "because"
    pair = open_source("twn", {**one(tmp_path, **row), "with_cot": True})[0]
    assert (pair.query, pair.positive, pair.query_cot, pair.positive_cot) == (Item("q"), Item("p"), "why", "because")


def test_fields_can_be_named(tmp_path: Path) -> None:
    options = one(tmp_path, query={"text": "q", "why": "w"}, answer="p", wrong=["n", {"text": "m", "instruction": " i "}, None], neg=["other"])
    named = {"positive_field": "answer", "negative_field": "wrong", "thought_field": "why"}
    pair = open_source("twn", {**options, **named})[0]
    assert (pair.positive, pair.negatives, pair.query_cot) == (Item("p"), (Item("n"), Item("m", instruction="i")), "w")


@pytest.mark.parametrize(
    ("row", "options", "words"),
    [
        (
            {"query": {"text": "q"}, "doc": {"text": "p"}},
            {},
            r"one\.json, row 1: the positive is missing \(looked for positive, pos, .*; here are query, doc\): name its field in positive_field",
        ),
        ({"pos": "p"}, {}, r"row 1: the query is missing \(looked for query, qry; here are pos\)\."),
        ({"query": "q", "pos": "p"}, {"positive_field": "answer"}, r"the positive is missing \(looked for answer; here are query, pos\)"),
        ({"query": "q", "pos": "p"}, {"negative_field": "wrong"}, "wrong is missing .here are query, pos.: correct negative_field"),
        ({"query": 7, "pos": "p"}, {}, "row 1: query is 7, but must be a text or an object"),
        ({"query": {"txt": "q"}, "pos": "p"}, {}, "row 1, query: query shows nothing"),
        (
            {"query": {"image": "mmeb_train://a.jpg"}, "pos": "p"},
            {},
            "image is 'mmeb_train://a.jpg', but no folder is given for mmeb_train://: name it in",
        ),
        ({"query": {"image": "mmeb_train://a.jpg"}, "pos": "p"}, {"media": {"mmeb_train": "/nowhere"}}, "but /nowhere/a.jpg does not exist"),
        (
            {"query": {"text": "q"}, "pos": {"text": "p"}},
            {"with_cot": True},
            "row 1, query: holds no chain of thought under cot, think, .*here are text.*name its field in thought_field",
        ),
    ],
)
def test_what_is_missing_is_named_with_what_is_there(tmp_path: Path, row: dict[str, Any], options: dict[str, object], words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_source("twn", {**one(tmp_path, **row), **options})


def test_misspelt_scheme_is_met_with_the_one_meant(made: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="scheme 'mmeb', which these files do not use. Did you mean 'mmeb_train'|Known: mmeb_train"):
        open_source("twn", {"path": made["twn"], "media": {"mmeb": "/data"}})
