"""Nothing that a test query asks about was trained."""

from __future__ import annotations

import pytest

from datamodules.mini.assets import concepts, countries
from datamodules.mini.splits import SPLITS, country_split, digit_pair_split, digit_range, drawing_split, scene_concepts, triple_split
from datamodules.mini.suite import load_pairs, load_tasks
from datamodules.mini.tasks import TASKS


def test_splits_cover_everything_once() -> None:
    for split, whole in (
        (country_split(), set(countries())),
        (digit_pair_split(), {(left, right) for left in range(10) for right in range(10)}),
        (drawing_split(), set(concepts())),
    ):
        parts = [set(split[name]) for name in SPLITS]
        assert set.union(*parts) == whole
        assert sum(len(part) for part in parts) == len(whole)


def test_digit_pictures_of_different_splits_do_not_overlap() -> None:
    ranges = [set(digit_range(split)) for split in SPLITS]
    assert sum(len(part) for part in ranges) == len(set.union(*ranges)) == 500


def test_training_never_sees_the_second_drawing_style() -> None:
    for name in ("EmojiName", "FlagName", "FlagCapital"):
        assert {subject[1] for subject in TASKS[name].subjects("train")} == {"twemoji"}
    assert {subject[1] for subject in TASKS["EmojiName"].subjects("test")} == {"openmoji"}


@pytest.mark.parametrize("name", ["FlagCapital", "DigitSum", "SceneNext", "ClipSum", "PageByCapital"])
def test_composing_tasks_never_train_the_subject_they_test(name: str) -> None:
    asked = 3 if name == "SceneNext" else (1 if name in ("FlagCapital", "PageByCapital") else 2)
    subjects = {
        split: {tuple(sorted(subject[:asked])) if asked == 3 else subject[:asked] for subject in TASKS[name].subjects(split)} for split in SPLITS
    }
    assert subjects["test"]
    assert not subjects["train"] & subjects["test"]
    assert not subjects["train"] & subjects["validation"]


def test_a_triple_belongs_to_one_split_whatever_its_order() -> None:
    first, second, third = (concept.name for concept in scene_concepts()[:3])
    assert len({triple_split(order) for order in ((first, second, third), (third, first, second), (second, third, first))}) == 1


def test_pairs_are_the_same_every_time_and_match_their_task() -> None:
    source = load_pairs("train", num_pairs=5)["FlagCapital"]
    first, again = source[3], source[3]
    assert first.query_cot == again.query_cot
    assert first.query.images[0].tobytes() == again.query.images[0].tobytes()  # type: ignore[union-attr]
    assert first.query_cot.endswith(f"is {first.positive.text}.")


@pytest.mark.parametrize("split", ["validation", "test"])
def test_every_task_has_its_labels_among_its_candidates(split: str) -> None:
    tasks = load_tasks(split, max_queries=6)  # type: ignore[arg-type]
    assert [task.name for task in tasks] == list(TASKS)
    for task in tasks:
        assert len(task.queries) == 6
        for query in task.queries:
            offered = query.candidates if query.candidates is not None else tuple(task.candidates)
            assert set(query.labels) <= set(offered)
            assert len(set(offered)) == len(offered)


def test_every_test_task_asks_at_least_fifty_queries() -> None:
    assert min(len(task.subjects("test")) * task.repeats for task in TASKS.values()) >= 50
