"""The picture of the suite shows every task."""

from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from datamodules.mini.tasks import TASKS
from experiments.draw_suite import META_TASKS, main, suite_figure


@pytest.fixture(scope="module")
def figure() -> Figure:
    """Of seed 0; not to be changed."""
    return suite_figure(0)


def test_every_task_has_a_card_with_its_number_of_candidates(figure: Figure) -> None:
    cards = dict(zip(TASKS, figure.axes, strict=False))
    assert [card.texts[0].get_text() for card in cards.values()] == list(TASKS)
    assert {task.subgroup for task in TASKS.values()} == set(META_TASKS)
    assert cards["PageByName"].texts[-1].get_text() == "positive, 1 of 352"


@pytest.mark.slow
def test_the_picture_is_small_and_the_same_every_time(tmp_path: Path) -> None:
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    for path in (first, again):
        main(["--file", str(path), "--seed", "3"])
    assert first.stat().st_size < 300_000
    with Image.open(first) as one, Image.open(again) as other:
        assert one.tobytes() == other.tobytes()


def test_the_thought_shown_is_that_of_the_side_that_composes(figure: Figure) -> None:
    cards = dict(zip(TASKS, figure.axes, strict=False))
    for name, task in TASKS.items():
        words = {text.get_text() for text in cards[name].texts}
        assert ("thought of the positive" in words) == (task.side == "candidate")
        assert ("thought of the query" in words) == (task.side != "candidate")


def test_every_frame_of_a_clip_is_drawn(figure: Figure) -> None:
    cards = dict(zip(TASKS, figure.axes, strict=False))
    assert {name: len(cards[name].images) for name in ("MomentNext", "ClipBySum", "PageByCapital", "EmojiName")} == {
        "MomentNext": 8,  # six frames of the query, two of the positive
        "ClipBySum": 4,
        "PageByCapital": 1,
        "EmojiName": 1,
    }
