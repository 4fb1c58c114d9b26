import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from datamodules.row_source import RowSource
from datamodules.sources import open_source
from tests.support import training_files
from twn_lightning.batches import Item
from twn_lightning.errors import DataError

ASKED = "Represent the given image with the following question: Which country is it?"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return training_files.make(tmp_path_factory.mktemp("ume"), rows=9)


def write(folder: Path, made: dict[str, Path], *, lines: bool = False, **changes: Any) -> dict[str, object]:
    """Options of a file of one row, changed."""
    row = json.loads(made["ume_r1"].read_text())[0]
    for side, fields in changes.items():
        row[side].update(fields)
    path = folder / "one.json"
    path.write_text(json.dumps(row) if lines else json.dumps([row]))
    return {"path": path, "media_root": made["media"]}


def test_pairs_hold_input_and_thought_without_the_request_to_think(made: dict[str, Path]) -> None:
    source = open_source("ume_r1", {"path": made["ume_r1"], "media_root": made["media"], "with_cot": True})
    pair = source[0]
    assert pair.query == Item(ASKED, images=(made["media"] / training_files.picture_name(0),))
    assert pair.query_cot == "The picture shows the flag of Afghanistan.\nAfghanistan"
    assert pair.positive == Item("Afghanistan")  # its blank.jpg stands for no picture
    assert pair.positive_cot == "The picture shows the flag of Afghanistan.\nAfghanistan"
    assert (source.name, pair.key) == ("UME-sft-train", "0")
    short = open_source("ume_r1", {"path": made["ume_r1"], "media_root": made["media"], "with_answer": False})
    assert short[0].query_cot == "The picture shows the flag of Afghanistan."


def test_videos_are_folders_files_or_lists_of_frames(made: dict[str, Path], tmp_path: Path) -> None:
    source = open_source("ume_r1", {"path": made["ume_r1"], "media_root": made["media"]})
    assert source[3].query == Item(ASKED, video=made["media"] / "frames" / "v_3")
    frames = [f"frames/v_0/c01_000{number}.jpeg" for number in (1, 2, 3)]
    (pair,) = [open_source("ume_r1", write(tmp_path, made, qry={"image": [], "video": frames}))[0]]
    assert isinstance(pair.query.video, tuple)
    assert [isinstance(frame, Image.Image) for frame in pair.query.video] == [True] * 3


def test_debris_is_removed_and_counted(made: dict[str, Path]) -> None:
    source = open_source("ume_r1", {"path": made["ume_r1"], "media_root": made["media"]})
    assert isinstance(source, RowSource)
    cots = [source[row].query_cot for row in range(9)]
    assert not [cot for cot in cots if "box" in cot or "<" in cot]
    assert source.repairs() == {"markers": 1, "blank": 9}


def test_reinforcement_rows_have_no_thoughts(made: dict[str, Path]) -> None:
    pair = open_source("ume_r1", {"path": made["ume_r1_rl"], "media_root": made["media"]})[1]
    assert pair.query == Item("Represent the given image for classification", images=(made["media"] / training_files.picture_name(1),))
    assert (pair.positive, pair.query_cot) == (Item("Albania"), "")


def test_rows_of_one_data_set_can_be_had(made: dict[str, Path], tmp_path: Path) -> None:
    options = {"path": made["ume_r1"], "media_root": made["media"]}
    videos = open_source("ume_r1", {**options, "dataset": "video"})
    assert (videos.name, len(videos)) == ("video", 2)
    assert all(videos[row].query.video for row in range(2))
    assert videos.digest() != open_source("ume_r1", options).digest()
    (made["media"] / "frames" / "v_7").rename(tmp_path / "v_7")
    try:
        with pytest.raises(DataError, match="UME-sft-train.json, row 8, qry: video is 'frames/v_7'"):  # its number in the file
            videos[1]
    finally:
        (tmp_path / "v_7").rename(made["media"] / "frames" / "v_7")


def test_the_same_rows_one_a_line_are_the_same_pairs(made: dict[str, Path], tmp_path: Path) -> None:
    lines = open_source("ume_r1", write(tmp_path, made, lines=True))
    assert lines[0].query == open_source("ume_r1", {"path": made["ume_r1"], "media_root": made["media"]})[0].query


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"qry": {"conversations": None}}, r"one\.json, row 1, qry: conversations is missing or no list of turns .here are conversations, image"),
        ({"qry": {"conversations": [{"from": "gpt", "value": "x"}]}}, "row 1, qry: conversations holds no turn of human"),
        ({"qry": {"conversations": [{"from": "human"}]}}, "row 1, qry, turn 1: value is missing, but must be a text"),
        ({"qry": {"conversations": [{"from": "human", "value": "<image>"}], "image": ""}}, "row 1, qry: query shows nothing"),
        ({"pos": {"image": "images/gone.jpg"}}, "row 1, pos: image is 'images/gone.jpg', but .* does not exist"),
        ({"pos": {"image": 7}}, "row 1, pos: image is 7, but must be a path"),
    ],
)
def test_faulty_row_is_named(made: dict[str, Path], tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        open_source("ume_r1", write(tmp_path, made, **changes))


def test_missing_thought_is_named_where_thoughts_are_learnt(made: dict[str, Path], tmp_path: Path) -> None:
    options = write(tmp_path, made, pos={"conversations": [{"from": "human", "value": "Kabul"}]})
    assert open_source("ume_r1", options)[0].positive_cot == ""
    with pytest.raises(DataError, match="row 1, pos: the gpt turn holds no <think>"):
        open_source("ume_r1", {**options, "with_cot": True})
