"""The picture of the suite shows every task."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from datamodules.mini.tasks import TASKS
from experiments.draw_suite import META_TASKS, main, suite_figure


def test_every_task_has_a_card_with_its_number_of_candidates() -> None:
    figure = suite_figure(0)
    titles = [card.texts[0].get_text() for card in figure.axes]
    assert titles == list(TASKS)
    assert {task.subgroup for task in TASKS.values()} == set(META_TASKS)
    assert figure.axes[list(TASKS).index("PageByName")].texts[-1].get_text() == "positive, 1 of 352"


def test_the_picture_is_small_and_the_same_every_time(tmp_path: Path) -> None:
    first, again = tmp_path / "first.png", tmp_path / "again.png"
    for path in (first, again):
        main(["--file", str(path), "--seed", "3"])
    assert first.stat().st_size < 300_000
    with Image.open(first) as one, Image.open(again) as other:
        assert one.tobytes() == other.tobytes()
