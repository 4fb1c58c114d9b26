"""What the tiny backbone is pretrained on: captions, readings, facts and short reasoning text about MMEB-mini's world.

Things and flags are shown in both drawing styles, as a large model has seen everything; digits, scenes and motions are those of the training split.

No example joins a picture with a fact: which capital a flag stands for, or what two seen digits add up to, is left to the stages.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image

from datamodules.mini import render, sentences
from datamodules.mini.assets import STYLES, Concept, Style, all_names, concepts, countries
from datamodules.mini.splits import Split, scene_concepts, triple_split
from datamodules.mini.tasks import TASKS
from twn_lightning.batches import Item


class Example(NamedTuple):
    """A prompt, its answer, and the names of what its picture shows, from left to right or from first to last."""

    item: Item
    answer: str
    shown: tuple[str, ...] = ()


_T = TypeVar("_T")

INSTRUCTIONS = {
    "object": ("", "Name it."),
    "crop": ("", "Name it."),
    "flag": ("", "Which country?"),
    "digits": ("", "Which digits?"),
    "digits_clip": ("", "Which digits?"),
    "row": ("",),
    "order": ("",),
    "motion": ("", "What happens?"),
    "page": ("",),
}
"""Instructions a picture of each kind is seen under; the answer is always what is seen."""


def object_example(split: Split, rng: np.random.Generator, style: Style | None = None) -> Example:
    """A drawing and its name."""
    concept = _pick(concepts(), rng)
    picture = render.object_picture(concept, _either(style, rng), _augment(split, rng))
    return _shown("object", picture, sentences.thing(concept.name), concept.name, rng)


def crop_example(split: Split, rng: np.random.Generator) -> Example:
    """A scene concept at the size it has in scenes."""
    concept = _pick(scene_concepts(), rng)
    picture = render.object_picture(concept, "twemoji", _augment(split, rng), size=render.CROP_SIZE)
    return _shown("crop", picture, sentences.thing(concept.name), concept.name, rng)


def flag_example(split: Split, rng: np.random.Generator, style: Style | None = None) -> Example:
    """A flag and its country."""
    country = _pick(countries(), rng)
    picture = render.flag_picture(country, _either(style, rng), _augment(split, rng))
    return _shown("flag", picture, sentences.flag_of(country.name), country.name, rng)


def digits_example(split: Split, rng: np.random.Generator) -> Example:
    """Two handwritten digits and what they are."""
    values = [int(value) for value in rng.integers(0, 10, size=2)]
    item = Item(images=(render.digits_picture(values, split, rng),), instruction=_pick(INSTRUCTIONS["digits"], rng))
    return Example(item, sentences.digits(values), tuple(str(value) for value in values))


def digits_clip_example(split: Split, rng: np.random.Generator) -> Example:
    """Two handwritten digits shown one after another."""
    values = [int(value) for value in rng.integers(0, 10, size=2)]
    instruction = _pick(INSTRUCTIONS["digits_clip"], rng)
    item = Item(video=render.digits_clip(values, split, rng), instruction=instruction)
    return Example(item, sentences.digits(values), tuple(str(value) for value in values))


def row_example(split: Split, rng: np.random.Generator) -> Example:
    """A scene of three objects and their names in order; only triples of the split."""
    things = _triple(split, rng)
    names = [concept.name for concept in things]
    picture = render.scene_picture(things, _augment(split, rng))
    return Example(Item(images=(picture,), instruction=_pick(INSTRUCTIONS["row"], rng)), sentences.row(names), tuple(names))


def order_example(split: Split, rng: np.random.Generator) -> Example:
    """A clip of three objects one after another and their names in order; only triples of the split."""
    things = _triple(split, rng)
    names = [concept.name for concept in things]
    clip = render.moments_clip(things, _augment(split, rng))
    return Example(Item(video=clip, instruction=_pick(INSTRUCTIONS["order"], rng)), sentences.order(names), tuple(names))


def moment_example(split: Split, rng: np.random.Generator) -> Example:
    """A clip of one object at rest."""
    concept = _pick(scene_concepts(), rng)
    return Example(Item(video=render.moments_clip([concept], _augment(split, rng))), sentences.thing(concept.name), (concept.name,))


def motion_example(split: Split, rng: np.random.Generator) -> Example:
    """A clip of one moving object and how it moves; of the scenes' objects only motions of the split, and in training any other object too."""
    name, direction = _pick(TASKS["ClipMotion"].subjects(split), rng)
    concept = next(concept for concept in scene_concepts() if concept.name == name)
    if split == "train" and rng.random() < 0.5:
        concept = _pick([concept for concept in concepts() if concept not in scene_concepts()], rng)
        name, direction = concept.name, _pick(tuple(render.DIRECTIONS), rng)
    clip = render.motion_clip(concept, direction, rng)
    return Example(Item(video=clip, instruction=_pick(INSTRUCTIONS["motion"], rng)), sentences.moves(name, direction), (name,))


def page_example(split: Split, rng: np.random.Generator) -> Example:
    """A page and which country it is about."""
    country = _pick(countries(), rng)
    page = render.page_picture(country, _pick(STYLES, rng) if split == "train" else "openmoji", _pick(render.LAYOUTS, rng), _augment(split, rng))
    return _shown("page", page, sentences.page_about(country.name), country.name, rng)


def text_example(split: Split, rng: np.random.Generator) -> Example:
    """A fact or a short chain of reasoning in words alone, or a query answered by its own words."""
    country = _pick(countries(), rng)
    values = [int(value) for value in rng.integers(0, 10, size=2)]
    names = [scene_concepts()[index].name for index in rng.choice(len(scene_concepts()), size=3, replace=False)]
    position = int(rng.integers(0, 2))
    name = _pick(all_names(), rng)
    choices: Sequence[tuple[str, str]] = (
        ("Fact", sentences.capital_of(country.name, country.capital)),
        ("Fact", sentences.is_capital_of(country.capital, country.name)),
        ("Fact", f"{sentences.flag_of(country.name)} {sentences.capital_of(country.name, country.capital)}"),
        ("Fact", f"{sentences.digits(values)} {sentences.total(values)}"),
        ("Fact", f"{sentences.row(names)} {sentences.right_of(names[position], names[position + 1])}"),
        ("Fact", f"{sentences.order(names)} {sentences.after(names[position], names[position + 1])}"),
        (name, f"{name}."),
    )
    text, answer = choices[int(rng.integers(0, len(choices)))]
    return Example(Item(text=text), answer)


def fact_example(split: Split, rng: np.random.Generator) -> Example:
    """A fact asked for in words, with one right answer: a capital, the country of a capital, a sum."""
    country = _pick(countries(), rng)
    left, right = (int(value) for value in rng.integers(0, 10, size=2))
    choices: Sequence[tuple[str, str]] = (
        (f"Fact about {country.name}", sentences.capital_of(country.name, country.capital)),
        (f"Fact about {country.capital}", sentences.is_capital_of(country.capital, country.name)),
        (f"Fact about {left} and {right}", sentences.total((left, right))),
    )
    text, answer = choices[int(rng.choice(3, p=(0.4, 0.4, 0.2)))]
    return Example(Item(text=text), answer)


def reason_example(split: Split, rng: np.random.Generator) -> Example:
    """A composing task's question about something said in words, and the chain of thought that answers it."""
    country = _pick(countries(), rng)
    values = [int(value) for value in rng.integers(0, 10, size=2)]
    names = [scene_concepts()[index].name for index in rng.choice(len(scene_concepts()), size=3, replace=False)]
    position = int(rng.integers(0, 2))
    asked, following = names[position], names[position + 1]
    listed = f"{', '.join(names)}."
    choices: Sequence[tuple[str, str, str]] = (
        ("Which capital?", f"flag of {country.name}", f"{sentences.flag_of(country.name)} {sentences.capital_of(country.name, country.capital)}"),
        ("Which capital?", country.name, sentences.capital_of(country.name, country.capital)),
        ("Fact sheet of the country with capital", country.capital, sentences.is_capital_of(country.capital, country.name)),
        ("Which sum?", " and ".join(str(value) for value in values), f"{sentences.digits(values)} {sentences.total(values)}"),
        (f"{listed} What is right of the", asked, f"{sentences.row(names)} {sentences.right_of(asked, following)}"),
        (f"{listed} What is after the", asked, f"{sentences.order(names)} {sentences.after(asked, following)}"),
        (f"{listed} Find the", asked, f"The {asked}."),
        ("Find the", asked, f"The {asked}."),
    )
    instruction, text, answer = choices[int(rng.integers(0, len(choices)))]
    return Example(Item(text=text, instruction=instruction), answer)


KINDS: dict[str, tuple[float, Callable[[Split, np.random.Generator], Example]]] = {
    "object": (3.0, object_example),
    "crop": (0.5, crop_example),
    "flag": (3.0, flag_example),
    "digits": (1.5, digits_example),
    "digits_clip": (1.0, digits_clip_example),
    "row": (1.5, row_example),
    "order": (1.0, order_example),
    "moment": (0.5, moment_example),
    "motion": (1.5, motion_example),
    "page": (1.5, page_example),
    "text": (0.5, text_example),
    "fact": (1.0, fact_example),
    "reason": (5.0, reason_example),
}
"""Share of the batches and maker of each kind of example."""


WORDS_ALONE = ("text", "fact", "reason")
"""Kinds without a picture."""

SKILLS: dict[str, Callable[[Split, np.random.Generator], Example]] = {
    **{kind: make for kind, (_, make) in KINDS.items() if kind not in ("object", "flag")},
    **{f"object_{style}": functools.partial(object_example, style=style) for style in STYLES},
    **{f"flag_{style}": functools.partial(flag_example, style=style) for style in STYLES},
}
"""What is measured, one single-hop skill each: the kinds, with drawings and flags in each style apart."""


def visible_names() -> Sequence[str]:
    """Every name that `Example.shown` may hold."""
    return [concept.name for concept in concepts()] + [country.name for country in countries()] + [str(digit) for digit in range(10)]


def tokenizer_corpus() -> Iterator[str]:
    """Every word the suite uses, often enough that whole names become tokens."""
    for name in all_names():
        yield from (f"This is {name}.", f"The {name} is", name) * 3
    rng = np.random.default_rng(0)
    for _ in range(4000):
        yield text_example("train", rng).answer
    for task in TASKS.values():
        for _ in range(100):
            subject = _pick(task.subjects("train"), rng)
            side = task.query(subject, "train", rng)
            yield from (f" {side.item.instruction}", f" {side.item.text}", side.cot)
        for key in task.corpus("train"):
            side = task.candidate(key, "train", rng)
            yield from (f" {side.item.text}", side.cot)


def _pick(options: Sequence[_T], rng: np.random.Generator) -> _T:
    return options[int(rng.integers(0, len(options)))]


def _triple(split: Split, rng: np.random.Generator) -> list[Concept]:
    while True:
        things = [scene_concepts()[index] for index in rng.choice(len(scene_concepts()), size=3, replace=False)]
        if triple_split([concept.name for concept in things]) == split:
            return things


def _either(style: Style | None, rng: np.random.Generator) -> Style:
    return style if style is not None else _pick(STYLES, rng)


def _augment(split: Split, rng: np.random.Generator) -> np.random.Generator | None:
    return rng if split == "train" else None


def _shown(kind: str, picture: Image.Image, answer: str, name: str, rng: np.random.Generator) -> Example:
    return Example(Item(images=(picture,), instruction=_pick(INSTRUCTIONS[kind], rng)), answer, (name,))
