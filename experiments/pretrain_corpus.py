"""What the tiny backbone is pretrained on: captions, readings, facts and short reasoning text of MMEB-mini's training split.

No example joins a picture with a fact: which capital a flag stands for, or what two seen digits add up to, is left to the stages.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image

from datamodules.mini import render, sentences
from datamodules.mini.assets import Style, all_names, concepts, countries
from datamodules.mini.splits import Split, country_split, drawing_split, scene_concepts, triple_split
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
    "flag": ("", "Which country?", "Which capital?"),
    "digits": ("", "Which digits?", "Which sum?"),
    "digits_clip": ("", "Which digits?", "Which sum?"),
    "row": ("", "What is right of the", "Find the"),
    "motion": ("", "What happens?"),
    "page": ("",),
}
"""Instructions a picture of each kind is seen under; the answer is always what is seen."""


def object_example(split: Split, rng: np.random.Generator) -> Example:
    """A drawing and its name, at either size."""
    concept = _pick(concepts() if split == "train" else drawing_split()[split], rng)
    picture = render.object_picture(concept, _style(split), _augment(split, rng))
    return _shown("object", picture, sentences.thing(concept.name), concept.name, rng)


def crop_example(split: Split, rng: np.random.Generator) -> Example:
    """A scene concept at the size it has in scenes."""
    concept = _pick(scene_concepts(), rng)
    picture = render.object_picture(concept, "twemoji", _augment(split, rng), size=render.CROP_SIZE)
    return _shown("crop", picture, sentences.thing(concept.name), concept.name, rng)


def flag_example(split: Split, rng: np.random.Generator) -> Example:
    """A flag and its country."""
    country = _pick(countries() if split == "train" else country_split()[split], rng)
    return _shown("flag", render.flag_picture(country, _style(split), _augment(split, rng)), sentences.flag_of(country.name), country.name, rng)


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
    while True:
        things = [scene_concepts()[index] for index in rng.choice(len(scene_concepts()), size=3, replace=False)]
        names = [concept.name for concept in things]
        if triple_split(names) == split:
            break
    picture = render.scene_picture(things, _augment(split, rng))
    instruction = _pick(INSTRUCTIONS["row"], rng)
    text = names[int(rng.integers(0, 2))] if instruction else ""
    return Example(Item(images=(picture,), instruction=instruction, text=text), sentences.row(names), tuple(names))


def motion_example(split: Split, rng: np.random.Generator) -> Example:
    """A clip of one moving object and how it moves; only motions of the split."""
    name, direction = _pick(TASKS["ClipMotion"].subjects(split), rng)
    concept = next(concept for concept in scene_concepts() if concept.name == name)
    clip = render.motion_clip(concept, direction, rng)
    return Example(Item(video=clip, instruction=_pick(INSTRUCTIONS["motion"], rng)), sentences.moves(name, direction), (name,))


def page_example(split: Split, rng: np.random.Generator) -> Example:
    """A page and which country it is about."""
    country = _pick(countries() if split == "train" else country_split()[split], rng)
    page = render.page_picture(country, _style(split), _pick(render.LAYOUTS, rng), _augment(split, rng))
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
        (name, sentences.echo(name)),
        (f"Fact about {country.capital}", sentences.is_capital_of(country.capital, country.name)),
    )
    text, answer = choices[int(rng.integers(0, len(choices)))]
    return Example(Item(text=text), answer)


KINDS: dict[str, tuple[float, Callable[[Split, np.random.Generator], Example]]] = {
    "object": (5.0, object_example),
    "crop": (1.0, crop_example),
    "flag": (3.0, flag_example),
    "digits": (2.5, digits_example),
    "digits_clip": (1.5, digits_clip_example),
    "row": (2.5, row_example),
    "motion": (1.0, motion_example),
    "page": (1.5, page_example),
    "text": (2.5, text_example),
}
"""Share of the batches and maker of each kind of example."""


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


def _augment(split: Split, rng: np.random.Generator) -> np.random.Generator | None:
    return rng if split == "train" else None


def _shown(kind: str, picture: Image.Image, answer: str, name: str, rng: np.random.Generator) -> Example:
    return Example(Item(images=(picture,), instruction=_pick(INSTRUCTIONS[kind], rng)), answer, (name,))


def _style(split: Split) -> Style:
    return "twemoji" if split == "train" else "openmoji"
