"""Nothing that a test query asks about was trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import pytest
from numpy.typing import NDArray

from datamodules.mini import render
from datamodules.mini.assets import STYLES, Style, concepts, countries, digit_images
from datamodules.mini.splits import SPLITS, Split, country_split, digit_pair_split, digit_range, drawing_split, scene_concepts, triple_split
from datamodules.mini.suite import load_pairs, load_tasks
from datamodules.mini.tasks import AUXILIARY, TASKS, Subject

FAMILIES: Mapping[str, tuple[tuple[str, ...], Callable[[Subject], object]]] = {
    "country": (("FlagCapital", "PageByCapital"), lambda subject: subject[0]),
    "digit pair": (("DigitSum", "ClipSum", "PictureBySum", "ClipBySum"), lambda subject: subject),
    "triple": (("SceneFind", "SceneNext", "MomentFind", "MomentNext"), lambda subject: frozenset(subject[:3])),
    "motion": (("ClipMotion", "ClipByMotion"), lambda subject: subject),
}
"""What is held out of training, the tasks it is held out of, and how it is read off a subject."""

DRAWN_ANEW = ("EmojiName", "EmojiT2I", "FlagName", "DigitRead", "PageByName")
"""Tasks whose subjects are all trained; new is the plain drawing, or the handwriting."""


def test_every_task_holds_something_out() -> None:
    held_out = [name for names, _ in FAMILIES.values() for name in names]
    assert sorted([*held_out, *DRAWN_ANEW]) == sorted(TASKS)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_one_task_tests_no_task_of_its_family_trains(family: str) -> None:
    names, identity = FAMILIES[family]
    asked = {split: {identity(subject) for name in names for subject in TASKS[name].subjects(split)} for split in SPLITS}
    assert all(asked.values())
    assert not asked["train"] & asked["test"]
    assert not asked["train"] & asked["validation"]
    assert not asked["validation"] & asked["test"]


def test_splits_cover_everything_once() -> None:
    for split, whole in (
        (country_split(), set(countries())),
        (digit_pair_split(), {(left, right) for left in range(10) for right in range(10)}),
        (drawing_split(), set(concepts())),
    ):
        parts = [set(split[name]) for name in SPLITS]
        assert set.union(*parts) == whole
        assert sum(len(part) for part in parts) == len(whole)


def test_a_triple_belongs_to_one_split_whatever_its_order() -> None:
    first, second, third = (concept.name for concept in scene_concepts()[:3])
    assert len({triple_split(order) for order in ((first, second, third), (third, first, second), (second, third, first))}) == 1


def test_a_page_found_by_its_capital_in_the_test_is_no_page_of_training() -> None:
    task = TASKS["PageByCapital"]
    relevant = {split: {key for subject in task.subjects(split) for key in task.grades(subject)} for split in SPLITS}
    assert not relevant["test"] & (relevant["train"] | relevant["validation"] | set(task.corpus("train")))


def test_flags_of_validation_countries_are_not_tested_in_the_style_they_were_validated_in() -> None:
    asked = {split: {(name, style) for name, style, _ in TASKS["FlagName"].subjects(split)} for split in SPLITS}
    assert len(asked["validation"]) + len(asked["test"]) == len(countries())
    assert not asked["validation"] & asked["test"]


def test_digit_pictures_of_different_splits_do_not_overlap() -> None:
    ranges = [set(digit_range(split)) for split in SPLITS]
    assert sum(len(part) for part in ranges) == len(set.union(*ranges)) == 500


@pytest.fixture
def brightness_is_split(monkeypatch: pytest.MonkeyPatch) -> dict[Split, int]:
    """Handwriting whose brightness tells its split: 50 in training, 100 in validation, 150 in test."""
    levels: dict[Split, int] = {"train": 50, "validation": 100, "test": 150}
    written = {digit: np.zeros((500, 28, 28), dtype=np.uint8) for digit in digit_images()}
    for split, level in levels.items():
        for pictures in written.values():
            pictures[list(digit_range(split)), 8:20, 8:20] = level
    found: Callable[[], dict[int, NDArray[np.uint8]]] = lambda: written  # noqa: E731
    monkeypatch.setattr(render, "digit_images", found)
    return levels


@pytest.mark.parametrize("name", ["DigitRead", "DigitSum", "PictureBySum", "ClipSum", "ClipBySum"])
def test_handwriting_is_that_of_the_split(name: str, brightness_is_split: dict[Split, int]) -> None:
    def brightest(item_pictures: tuple[object, ...]) -> set[int]:
        return {int(np.asarray(picture).max()) for picture in item_pictures}

    pairs = [load_pairs("train", tasks=[name], num_pairs=20)[name][index] for index in range(20)]
    trained = [item for pair in pairs for item in (pair.query, pair.positive)]
    (task,) = load_tasks("test", tasks=[name])
    tested = [*(query.item for query in task.queries), *task.candidates.values()]
    for items, split in ((trained, "train"), (tested, "test")):
        shown = [(*item.images, *(item.video if isinstance(item.video, tuple) else ())) for item in items]
        assert set().union(*map(brightest, shown)) == {brightness_is_split[split]}  # type: ignore[index]


@pytest.fixture
def styles_drawn(monkeypatch: pytest.MonkeyPatch) -> set[Style]:
    """Every style that is drawn from now on."""
    seen: set[Style] = set()

    def watched(draw: Callable[..., object]) -> Callable[..., object]:
        def watching(code: str, style: Style, *, with_ink: bool | None = None) -> object:
            seen.add(style)
            return draw(code, style) if with_ink is None else draw(code, style, with_ink=with_ink)

        return watching

    for name in ("drawing", "inked", "flag"):
        monkeypatch.setattr(render, name, watched(getattr(render, name)))
    return seen


@pytest.mark.parametrize("name", TASKS)
def test_composing_tasks_train_on_one_drawing_style_and_tasks_that_only_name_on_both(name: str, styles_drawn: set[Style]) -> None:
    source = load_pairs("train", tasks=[name], num_pairs=30)[name]
    assert len([source[index] for index in range(30)]) == 30
    only_names = name in DRAWN_ANEW and name != "DigitRead"
    assert styles_drawn == {"twemoji", "openmoji"} if only_names else styles_drawn <= {"twemoji"}


def test_no_thing_or_flag_is_left_out_of_a_style_in_training() -> None:
    for name, whole in (("EmojiName", concepts()), ("EmojiT2I", concepts()), ("FlagName", countries())):
        assert {subject[:2] for subject in TASKS[name].subjects("train")} == {(each.name, style) for each in whole for style in STYLES}


@pytest.mark.parametrize("name", DRAWN_ANEW)
def test_tasks_whose_subjects_are_trained_are_tested_in_the_second_style_or_other_handwriting(name: str, styles_drawn: set[Style]) -> None:
    load_tasks("test", tasks=[name], max_queries=10)
    assert styles_drawn == (set() if name == "DigitRead" else {"openmoji"})


@pytest.mark.slow
def test_facts_in_words_are_training_alone_and_show_no_picture() -> None:
    facts = set(load_pairs("train")) - set(TASKS)
    assert facts == {"CapitalOf", "SumOf"}
    assert not facts & set(load_pairs("validation"))
    assert not facts & {task.name for task in load_tasks("test")}
    capital, total = (load_pairs("train", tasks=[name])[name][0] for name in ("CapitalOf", "SumOf"))
    assert not capital.query.images
    assert not total.query.images
    assert capital.query_cot == f"The capital of {capital.query.text} is {capital.positive.text}."
    assert total.query_cot == f"{total.query.text.replace('and', 'plus')} is {total.positive.text}."


@pytest.mark.parametrize(("name", "num_facts"), [("CapitalOf", 176), ("SumOf", 100)])
def test_every_fact_is_trained_in_words(name: str, num_facts: int) -> None:
    assert len(set(AUXILIARY[name].subjects("train"))) == num_facts


def test_a_run_may_name_an_auxiliary_source_among_its_tasks() -> None:
    assert list(load_pairs("train", tasks=["CapitalOf", "FlagName"])) == ["CapitalOf", "FlagName"]
    assert [task.name for task in load_tasks("validation", tasks=["CapitalOf", "FlagName"], max_queries=1)] == ["FlagName"]
