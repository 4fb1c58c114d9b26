"""The tasks of MMEB-mini: one row each, made of a few functions that draw the query and the candidates.

A subject is what one query asks about, as strings: ("Kenya", "openmoji"). Composing tasks ask for an answer that
was never trained for the held-out subjects, although everything it takes was: seeing the flag, and knowing the capital.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from datamodules.mini import render, sentences
from datamodules.mini.assets import STYLES, Concept, Country, Style, concepts, countries
from datamodules.mini.splits import SPLITS, Split, country_split, digit_pair_split, drawing_split, scene_concepts, triple_split
from twn_lightning.batches import Item

Subject: TypeAlias = tuple[str, ...]
Random: TypeAlias = np.random.Generator


@dataclass(frozen=True)
class Side:
    """A query or a candidate with its reference chain of thought."""

    item: Item
    cot: str


@dataclass(frozen=True)
class MiniTask:
    """How one task asks and answers.

    Attributes:
        name: As in the results table.
        modality: MMEB-V2's modality group.
        subgroup: MMEB-V2's meta-task.
        kind: ``composing`` if thinking should help, ``plain`` if it should not be needed; decided before any run, never read by the model.
        metric: Headline metric.
        subjects: What is asked in a split.
        query: Draws the query of a subject.
        grades: The relevant candidates of a subject; the first is the training positive.
        candidate: Draws a candidate by key.
        corpus: Candidate keys of a split.
        local: The candidates of one query, where each query brings its own.
        repeats: How many test queries a subject gets, drawn anew each time.
    """

    name: str
    modality: Literal["image", "video", "visdoc"]
    subgroup: str
    kind: Literal["composing", "plain"]
    metric: Literal["hit@1", "ndcg@5"]
    subjects: Callable[[Split], Sequence[Subject]]
    query: Callable[[Subject, Split, Random], Side]
    grades: Callable[[Subject], Mapping[str, float]]
    candidate: Callable[[str, Split, Random | None], Side]
    corpus: Callable[[Split], Sequence[str]]
    local: Callable[[Subject, Random], Sequence[str]] | None = None
    repeats: int = 1


@functools.cache
def _concept(name: str) -> Concept:
    return next(concept for concept in concepts() if concept.name == name)


@functools.cache
def _country(name: str) -> Country:
    return next(country for country in countries() if country.name == name)


def _style(name: str) -> Style:
    assert name in STYLES
    return "twemoji" if name == "twemoji" else "openmoji"


def _augment(split: Split, rng: Random | None) -> Random | None:
    return rng if split == "train" else None


def _text_candidate(key: str, split: Split, rng: Random | None) -> Side:
    return Side(Item(text=key), sentences.echo(key))


def _answer(position: int) -> Callable[[Subject], Mapping[str, float]]:
    return lambda subject: {subject[position]: 1.0}


# --- objects -----------------------------------------------------------------------------------------------------------------


def _object_subjects(split: Split) -> Sequence[Subject]:
    if split == "train":
        return [(concept.name, "twemoji") for concept in concepts()]
    return [(concept.name, "openmoji") for concept in drawing_split()[split]]


def _object_side(name: str, style: str, split: Split, rng: Random | None, instruction: str = "") -> Side:
    picture = render.object_picture(_concept(name), _style(style), _augment(split, rng))
    return Side(Item(images=(picture,), instruction=instruction), sentences.thing(name))


def _object_candidate(key: str, split: Split, rng: Random | None) -> Side:
    name, style = key.split(":")
    return _object_side(name, style, split, rng)


def _object_local(subject: Subject, rng: Random) -> Sequence[str]:
    others = [concept.name for concept in concepts() if concept.name != subject[0]]
    return [subject[0], *(str(name) for name in rng.choice(others, size=9, replace=False))]


# --- flags and pages ---------------------------------------------------------------------------------------------------------


def _flag_subjects(split: Split) -> Sequence[Subject]:
    if split == "train":
        return [(country.name, "twemoji", country.capital) for country in countries()]
    return [(country.name, "openmoji", country.capital) for country in country_split()[split]]


def _capital_subjects(split: Split) -> Sequence[Subject]:
    styles = ("twemoji",) if split == "train" else STYLES
    return [(country.name, style, country.capital) for country in country_split()[split] for style in styles]


def _flag_query(instruction: str, *, with_capital: bool) -> Callable[[Subject, Split, Random], Side]:
    def query(subject: Subject, split: Split, rng: Random) -> Side:
        country = _country(subject[0])
        picture = render.flag_picture(country, _style(subject[1]), _augment(split, rng))
        cot = sentences.flag_of(country.name)
        if with_capital:
            cot = f"{cot} {sentences.capital_of(country.name, country.capital)}"
        return Side(Item(images=(picture,), instruction=instruction), cot)

    return query


def _page_candidate(key: str, split: Split, rng: Random | None) -> Side:
    name, layout = key.split("/")
    country = _country(name)
    page = render.page_picture(country, "twemoji" if split == "train" else "openmoji", layout, _augment(split, rng))
    return Side(Item(images=(page,)), sentences.page_about(name))


def _page_corpus(split: Split) -> Sequence[str]:
    chosen = country_split()["train"] if split == "train" else countries()
    return [f"{country.name}/{layout}" for country in chosen for layout in render.LAYOUTS]


def _page_grades(subject: Subject) -> Mapping[str, float]:
    main, other = (subject[1], next(layout for layout in render.LAYOUTS if layout != subject[1]))
    return {f"{subject[0]}/{main}": 2.0, f"{subject[0]}/{other}": 1.0}


def _page_subjects(*, everywhere: bool) -> Callable[[Split], Sequence[Subject]]:
    def subjects(split: Split) -> Sequence[Subject]:
        chosen = countries() if everywhere and split == "train" else country_split()[split]
        return [(country.name, layout, country.capital) for country in chosen for layout in render.LAYOUTS]

    return subjects


def _page_query(clue: Literal["name", "capital"]) -> Callable[[Subject, Split, Random], Side]:
    def query(subject: Subject, split: Split, rng: Random) -> Side:
        name, layout, capital = subject
        kind = {"sheet": "Fact sheet", "profile": "Profile"}[layout]
        if clue == "name":
            return Side(Item(text=name, instruction=f"{kind} of"), f"{name}.")
        return Side(Item(text=capital, instruction=f"{kind} of the country with capital"), sentences.is_capital_of(capital, name))

    return query


# --- digits ------------------------------------------------------------------------------------------------------------------


def _digit_subjects(*, held_out: bool) -> Callable[[Split], Sequence[Subject]]:
    def subjects(split: Split) -> Sequence[Subject]:
        pairs = digit_pair_split()[split] if held_out else [pair for each in SPLITS for pair in digit_pair_split()[each]]
        return [(str(left), str(right)) for left, right in sorted(pairs)]

    return subjects


def _digit_query(instruction: str, *, with_sum: bool, clip: bool) -> Callable[[Subject, Split, Random], Side]:
    def query(subject: Subject, split: Split, rng: Random) -> Side:
        values = [int(value) for value in subject]
        cot = sentences.digits(values)
        if with_sum:
            cot = f"{cot} {sentences.total(values)}"
        if clip:
            return Side(Item(video=render.digits_clip(values, split, rng), instruction=instruction), cot)
        return Side(Item(images=(render.digits_picture(values, split, rng),), instruction=instruction), cot)

    return query


def _sum_grades(subject: Subject) -> Mapping[str, float]:
    return {str(sum(int(value) for value in subject)): 1.0}


def _pair_grades(subject: Subject) -> Mapping[str, float]:
    return {" and ".join(subject): 1.0}


# --- scenes and clips --------------------------------------------------------------------------------------------------------


@functools.cache
def _triples(split: Split) -> Sequence[Subject]:
    rng = np.random.default_rng((2605, 6, SPLITS.index(split)))
    names = [concept.name for concept in scene_concepts()]
    wanted = {"train": 2000, "validation": 60, "test": 120}[split]
    found: list[Subject] = []
    while len(found) < wanted:
        triple = tuple(str(name) for name in rng.choice(names, size=3, replace=False))
        if triple_split(triple) == split:
            subject = (*triple, str(rng.integers(0, 2)))
            if subject not in found:
                found.append(subject)
    return found


def _scene_query(*, next_one: bool) -> Callable[[Subject, Split, Random], Side]:
    def query(subject: Subject, split: Split, rng: Random) -> Side:
        names, position = subject[:3], int(subject[3])
        picture = render.scene_picture([_concept(name) for name in names], _augment(split, rng))
        if next_one:
            cot = f"{sentences.row(names)} {sentences.right_of(names[position], names[position + 1])}"
            return Side(Item(images=(picture,), text=names[position], instruction="What is right of the"), cot)
        return Side(Item(images=(picture,), text=names[position], instruction="Find the"), f"The {names[position]}.")

    return query


def _scene_grades(*, next_one: bool) -> Callable[[Subject], Mapping[str, float]]:
    def grades(subject: Subject) -> Mapping[str, float]:
        return {subject[int(subject[3]) + (1 if next_one else 0)]: 1.0}

    return grades


def _scene_local(subject: Subject, rng: Random) -> Sequence[str]:
    others = [concept.name for concept in scene_concepts() if concept.name not in subject[:3]]
    return [*subject[:3], *(str(name) for name in rng.choice(others, size=5, replace=False))]


def _crop_candidate(key: str, split: Split, rng: Random | None) -> Side:
    picture = render.object_picture(_concept(key), "twemoji", _augment(split, rng), size=render.CROP_SIZE)
    return Side(Item(images=(picture,)), sentences.thing(key))


def _scene_corpus(split: Split) -> Sequence[str]:
    return [concept.name for concept in scene_concepts()]


def _motion_subjects(split: Split) -> Sequence[Subject]:
    every = [(concept.name, direction) for concept in scene_concepts() for direction in render.DIRECTIONS]
    order = np.random.default_rng((2605, 7)).permutation(len(every))
    shares = {"test": order[:48], "validation": order[48:72], "train": order[72:]}
    return [every[index] for index in sorted(shares[split])]


def _motion_query(subject: Subject, split: Split, rng: Random) -> Side:
    clip = render.motion_clip(_concept(subject[0]), subject[1], rng)
    return Side(Item(video=clip, instruction="What happens?"), sentences.moves(subject[0], subject[1]))


def _motion_local(subject: Subject, rng: Random) -> Sequence[str]:
    other = rng.choice([concept.name for concept in scene_concepts() if concept.name != subject[0]])
    return [f"{name} moving {direction}" for name in (subject[0], other) for direction in render.DIRECTIONS]


TASKS: dict[str, MiniTask] = {
    task.name: task
    for task in (
        MiniTask(
            "EmojiName",
            "image",
            "IMG_CLS",
            "plain",
            "hit@1",
            _object_subjects,
            lambda s, split, rng: _object_side(s[0], s[1], split, rng, "Name it."),
            _answer(0),
            _text_candidate,
            lambda split: [concept.name for concept in concepts()],
            local=_object_local,
        ),
        MiniTask(
            "FlagName",
            "image",
            "IMG_CLS",
            "plain",
            "hit@1",
            _flag_subjects,
            _flag_query("Which country?", with_capital=False),
            _answer(0),
            _text_candidate,
            lambda split: [country.name for country in countries()],
        ),
        MiniTask(
            "FlagCapital",
            "image",
            "IMG_QA",
            "composing",
            "hit@1",
            _capital_subjects,
            _flag_query("Which capital?", with_capital=True),
            _answer(2),
            _text_candidate,
            lambda split: [country.capital for country in countries()],
        ),
        MiniTask(
            "DigitRead",
            "image",
            "IMG_QA",
            "plain",
            "hit@1",
            _digit_subjects(held_out=False),
            _digit_query("Which digits?", with_sum=False, clip=False),
            _pair_grades,
            _text_candidate,
            lambda split: [f"{left} and {right}" for left in range(10) for right in range(10)],
        ),
        MiniTask(
            "DigitSum",
            "image",
            "IMG_QA",
            "composing",
            "hit@1",
            _digit_subjects(held_out=True),
            _digit_query("Which sum?", with_sum=True, clip=False),
            _sum_grades,
            _text_candidate,
            lambda split: [str(value) for value in range(19)],
            repeats=4,
        ),
        MiniTask(
            "EmojiT2I",
            "image",
            "IMG_RET",
            "plain",
            "hit@1",
            _object_subjects,
            lambda s, split, rng: Side(Item(text=s[0], instruction="Find a picture of"), f"{sentences.a(s[0]).capitalize()}."),
            lambda s: {f"{s[0]}:{s[1]}": 1.0},
            _object_candidate,
            lambda split: [f"{s[0]}:{s[1]}" for s in _object_subjects(split)],
            local=lambda s, rng: [f"{name}:{s[1]}" for name in _object_local(s, rng)],
        ),
        MiniTask(
            "SceneFind",
            "image",
            "IMG_VG",
            "plain",
            "hit@1",
            _triples,
            _scene_query(next_one=False),
            _scene_grades(next_one=False),
            _crop_candidate,
            _scene_corpus,
            local=_scene_local,
        ),
        MiniTask(
            "SceneNext",
            "image",
            "IMG_VG",
            "composing",
            "hit@1",
            _triples,
            _scene_query(next_one=True),
            _scene_grades(next_one=True),
            _crop_candidate,
            _scene_corpus,
            local=_scene_local,
        ),
        MiniTask(
            "ClipMotion",
            "video",
            "V_CLS",
            "plain",
            "hit@1",
            _motion_subjects,
            _motion_query,
            lambda s: {f"{s[0]} moving {s[1]}": 1.0},
            _text_candidate,
            lambda split: [f"{concept.name} moving {direction}" for concept in scene_concepts() for direction in render.DIRECTIONS],
            local=_motion_local,
            repeats=2,
        ),
        MiniTask(
            "ClipSum",
            "video",
            "V_QA",
            "composing",
            "hit@1",
            _digit_subjects(held_out=True),
            _digit_query("Which sum?", with_sum=True, clip=True),
            _sum_grades,
            _text_candidate,
            lambda split: [str(value) for value in range(19)],
            repeats=4,
        ),
        MiniTask(
            "PageByName",
            "visdoc",
            "VISDOC",
            "plain",
            "ndcg@5",
            _page_subjects(everywhere=True),
            _page_query("name"),
            _page_grades,
            _page_candidate,
            _page_corpus,
        ),
        MiniTask(
            "PageByCapital",
            "visdoc",
            "VISDOC",
            "composing",
            "ndcg@5",
            _page_subjects(everywhere=False),
            _page_query("capital"),
            _page_grades,
            _page_candidate,
            _page_corpus,
        ),
    )
}
"""Every task by name."""
