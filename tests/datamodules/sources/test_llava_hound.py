from pathlib import Path

import pytest

from datamodules.sources import open_source
from tests.support import training_files
from twn_lightning.batches import Item
from twn_lightning.errors import DataError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return training_files.make(tmp_path_factory.mktemp("videos"), rows=4)


@pytest.fixture
def options(made: dict[str, Path]) -> dict[str, object]:
    return {"path": made["llava_hound"], "media_root": made["media"] / "frames"}


def test_a_file_makes_three_tasks(made: dict[str, Path], options: dict[str, object]) -> None:
    video, caption = made["media"] / "frames" / "v_1", "The flag of Albania moves to the right."
    pair = open_source("llava_hound", options)[1]
    assert (pair.query, pair.positive) == (Item("Describe the video.", video=video), Item(caption))
    source = open_source("llava_hound", {**options, "task": "video", "positive_instruction": "A clip."})
    assert source.name == "video_caption_300k-video"
    assert source[1].query == Item(caption, instruction="Find the video that shows this.")
    assert source[1].positive == Item(video=video, instruction="A clip.")
    pair = open_source("llava_hound", {**options, "task": "answer"})[1]
    assert pair.query == Item("Describe the video.", video=video, instruction="Answer the question about this video.")
    assert pair.positive == Item(caption)


def test_the_tasks_differ_in_their_digests(options: dict[str, object]) -> None:
    assert len({open_source("llava_hound", {**options, "task": task}).digest() for task in ("caption", "video", "answer")}) == 3


def test_faulty_row_is_named(tmp_path: Path, options: dict[str, object]) -> None:
    path = tmp_path / "rows.jsonl"
    for row, words in (
        ('{"conversations": [{"value": "a"}, {"value": "b"}], "video": "v_9"}', "row 1: video is 'v_9', but .*v_9 does not exist"),
        ('{"conversations": [{"value": "a"}, {"value": "b"}]}', "row 1: video is missing or empty .here are conversations"),
        ('{"conversations": [{"value": "a"}], "video": "v_1"}', "row 1: conversations must be a list of two turns"),
        ('{"conversations": [{"value": "a"}, {"text": "b"}], "video": "v_1"}', "row 1, turn 2: value is missing, but must be a text .here are text"),
    ):
        path.write_text(row)
        with pytest.raises(DataError, match=words):
            open_source("llava_hound", {**options, "path": path})
