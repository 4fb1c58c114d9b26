"""What each task asks, what is right, and among what."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from PIL import Image

from datamodules.collate import target_hash
from datamodules.mini import suite
from datamodules.mini.splits import scene_concepts, triple_split
from datamodules.mini.suite import load_pairs, load_tasks
from datamodules.mini.tasks import TASKS, Side
from twn_lightning.batches import Item
from twn_lightning.evaluation.task import RetrievalTask

NEXT_TASKS = ("SceneNext", "MomentNext")
SUM_TASKS = ("PictureBySum", "ClipBySum")
WORDS_OF_REVISION = {"5": "405c4193944ceeee"}
"""Digest of what the test queries say and choose among, by revision."""


@pytest.fixture(scope="module")
def tested() -> list[RetrievalTask]:
    return load_tasks("test")


def frames(item: Item) -> tuple[Image.Image, ...]:
    assert isinstance(item.video, tuple)
    assert all(isinstance(frame, Image.Image) for frame in item.video)
    return tuple(frame for frame in item.video if isinstance(frame, Image.Image))


def asked(name: str, *subject: str) -> Side:
    return TASKS[name].query(subject, "test", np.random.default_rng(0))


def test_the_nine_meta_tasks_of_mmeb_v2_are_all_there() -> None:
    assert {task.subgroup for task in TASKS.values()} == {"IMG_CLS", "IMG_QA", "IMG_RET", "IMG_VG", "V_CLS", "V_QA", "V_RET", "V_MRET", "VISDOC"}
    for task in TASKS.values():
        assert task.modality == {"I": "image", "V": "video"}.get(task.subgroup.split("_")[0][:1] if "_" in task.subgroup else "", "visdoc")


def test_every_test_task_asks_at_least_a_hundred_queries() -> None:
    assert min(len(task.subjects("test")) * task.repeats for task in TASKS.values()) >= 100


def test_composing_tasks_and_they_alone_say_the_side_that_composes() -> None:
    assert {task.name for task in TASKS.values() if task.side == "candidate"} == set(SUM_TASKS)
    assert all((task.side == "") == (task.kind == "plain") for task in TASKS.values())


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.kind == "composing"])
def test_the_composing_side_works_out_what_the_other_side_says(name: str) -> None:
    task = TASKS[name]
    for subject in task.subjects("test")[:5]:
        query = task.query(subject, "test", np.random.default_rng(0))
        key = next(iter(task.grades(subject)))
        if task.side == "candidate":
            assert task.candidate(key, "test", None).cot.endswith(f" is {query.item.text}.")
            assert query.cot == "No picture."
        else:
            answer = key.split("/", maxsplit=1)[0]
            assert query.cot.endswith(f" {answer}.")
            assert answer not in query.item.text


def test_pairs_are_the_same_every_time_and_match_their_task() -> None:
    source = load_pairs("train", num_pairs=5)["FlagCapital"]
    first, again = source[3], source[3]
    assert first.query_cot == again.query_cot
    assert first.query.images[0].tobytes() == again.query.images[0].tobytes()  # type: ignore[union-attr]
    assert first.query_cot.endswith(f"is {first.positive.text}.")


def test_every_task_has_its_labels_among_its_candidates(tested: list[RetrievalTask]) -> None:
    assert [task.name for task in tested] == list(TASKS)
    for task in tested:
        sizes = set()
        for query in task.queries:
            offered = query.candidates if query.candidates is not None else tuple(task.candidates)
            assert set(query.labels) <= set(offered)
            assert len(set(offered)) == len(offered)
            sizes.add(len(offered))
        assert len(sizes) == 1


def test_queries_and_candidates_are_drawn_the_same_every_time(tested: list[RetrievalTask]) -> None:
    for whole, few in zip(tested, load_tasks("test", max_queries=4), strict=True):
        by_key = {query.key: query for query in whole.queries}
        assert all(query == by_key[query.key] for query in few.queries)
        assert all(item == whole.candidates[key] for key, item in few.candidates.items())


def test_words_and_sampling_change_with_the_revision_alone(tested: list[RetrievalTask]) -> None:
    digest = hashlib.blake2b(digest_size=8)
    for task in tested:
        for query in task.queries:
            digest.update(repr((task.name, query.key, query.item.instruction, query.item.text, dict(query.labels), query.candidates)).encode())
    assert WORDS_OF_REVISION[suite._REVISION] == digest.hexdigest()


def test_a_page_is_the_positive_as_often_as_its_grade_says() -> None:
    pairs = load_pairs("train", tasks=["PageByName"])["PageByName"]
    is_asked_layout = []
    for pair in (pairs[index] for index in range(300)):
        country, layout = pair.positive_key.split("/")
        title, _, name = f"{pair.query.instruction} {pair.query.text}".partition(" of ")
        assert name.strip() == country
        is_asked_layout.append({"Fact sheet": "sheet", "Profile": "profile"}[title] == layout)
    assert 0.6 < np.mean(is_asked_layout) < 0.74  # 2 of 3


@pytest.mark.parametrize("name", SUM_TASKS)
def test_a_sum_is_asked_for_among_pairs_of_ten_different_sums(name: str) -> None:
    task = TASKS[name]
    side = asked(name, "3", "5")
    assert (side.item.text, side.cot) == ("8", "No picture.")
    assert side.item.instruction == f"Find the {'clip' if name == 'ClipBySum' else 'picture'} with sum"
    assert task.grades(("3", "5")) == {"8=3+5": 1.0}
    assert task.local is not None
    for pair in (("0", "0"), ("9", "9"), ("3", "5")):
        for seed in range(20):
            keys = task.local(pair, np.random.default_rng(seed))
            assert keys[0] in task.grades(pair)
            assert set(keys) <= set(task.corpus("test"))
            assert len({task.target(key) for key in keys}) == len(keys) == 10
            assert all(int(key.split("=")[0]) == sum(int(digit) for digit in key.split("=")[1].split("+")) for key in keys)


@pytest.mark.parametrize("name", SUM_TASKS)
def test_thoughts_about_pictures_found_by_their_sum_contain_it(name: str) -> None:
    for split, rng in (("train", np.random.default_rng(0)), ("test", None)):
        side = TASKS[name].candidate("12=7+5", split, rng)  # type: ignore[arg-type]
        assert side.cot == "The digits are 7 and 5. 7 plus 5 is 12."
        assert [frame.size for frame in frames(side.item)] == [(32, 32)] * 4 if name == "ClipBySum" else len(side.item.images) == 1


@pytest.mark.parametrize("name", SUM_TASKS)
def test_pictures_of_one_sum_are_never_each_others_negatives(name: str) -> None:
    source = load_pairs("train", tasks=[name], num_pairs=60)[name]
    pairs = [source[index] for index in range(60)]
    sums = [pair.query.text for pair in pairs]
    assert [pair.positive_key for pair in pairs] == sums
    for first, second in ((pairs[i], pairs[j]) for i in range(60) for j in range(i)):
        assert (target_hash(first) == target_hash(second)) == (first.query.text == second.query.text)
    readings = {(pair.query.text, pair.positive_cot) for pair in pairs}
    assert len(readings) > len(set(sums))  # several pairs of digits of one sum are among them


def test_other_tasks_tell_targets_apart_by_their_whole_key() -> None:
    for task in TASKS.values():
        if task.name not in SUM_TASKS:
            key = task.corpus("test")[0]
            assert task.target(key) == key


@pytest.mark.parametrize(("direction", "expected"), [("left", (-3, 0)), ("right", (3, 0)), ("up", (0, -3)), ("down", (0, 3))])
def test_a_clip_found_by_its_motion_moves_that_way(direction: str, expected: tuple[int, int]) -> None:
    name = scene_concepts()[5].name
    side = asked("ClipByMotion", name, direction)
    assert (side.item.text, side.cot) == (f"{name} moving {direction}", "No picture.")
    (key,) = TASKS["ClipByMotion"].grades((name, direction))
    candidate = TASKS["ClipByMotion"].candidate(key, "test", None)
    assert candidate.cot == f"The {name} moves {direction}."
    clip = [np.asarray(frame.convert("L")) < 240 for frame in frames(candidate.item)]
    places = [np.argwhere(frame).mean(axis=0)[::-1] for frame in clip]  # the centre of what is not paper, along x and y
    assert len(clip) == 4
    assert tuple(np.round((places[3] - places[0]) / 4)) == expected  # three steps of four pixels, but for what the frame's edge cuts off


def test_a_motion_is_asked_for_among_four_directions_of_two_things() -> None:
    local = TASKS["ClipByMotion"].local
    assert local is not None
    name = scene_concepts()[0].name
    keys = local((name, "up"), np.random.default_rng(1))
    things = {key.split(" moving ")[0] for key in keys}
    assert len(keys) == len(set(keys)) == 8
    assert len(things) == 2
    assert name in things


@pytest.mark.parametrize("position", [0, 1])
def test_moments_ask_for_the_thing_named_or_the_one_after_it(position: int) -> None:
    names = next(subject[:3] for subject in TASKS["MomentNext"].subjects("test"))
    assert triple_split(names) == "test"
    first, second = names[position], names[position + 1]
    find, after = asked("MomentFind", *names, str(position)), asked("MomentNext", *names, str(position))
    assert (find.item.text, find.item.instruction, find.cot) == (first, "Find the", f"The {first}.")
    assert (after.item.text, after.item.instruction) == (first, "What is after the")
    assert after.cot == f"Clip of {names[0]}, {names[1]}, {names[2]}. After the {first} is the {second}."
    assert TASKS["MomentFind"].grades((*names, str(position))) == {first: 1.0}
    assert TASKS["MomentNext"].grades((*names, str(position))) == {second: 1.0}


def test_a_clip_of_three_moments_holds_the_clips_of_its_things() -> None:
    subject = TASKS["MomentNext"].subjects("test")[0]
    clip = frames(asked("MomentNext", *subject).item)
    parts = [frames(TASKS["MomentNext"].candidate(name, "test", None).item) for name in subject[:3]]
    assert len(clip) == 6
    assert [frame.tobytes() for frame in clip] == [frame.tobytes() for part in parts for frame in part]


@pytest.mark.parametrize("name", ["SceneFind", "MomentFind", *NEXT_TASKS])
def test_scenes_and_moments_choose_among_what_is_shown_and_five_others(name: str) -> None:
    subject, local = TASKS[name].subjects("test")[0], TASKS[name].local
    assert local is not None
    keys = local(subject, np.random.default_rng(2))
    assert tuple(keys[:3]) == subject[:3]
    assert len(set(keys)) == 8


def test_tasks_of_one_kind_of_scene_ask_about_the_same_scenes() -> None:
    assert TASKS["SceneFind"].subjects("test") == TASKS["SceneNext"].subjects("test")
    assert TASKS["MomentFind"].subjects("test") == TASKS["MomentNext"].subjects("test")
