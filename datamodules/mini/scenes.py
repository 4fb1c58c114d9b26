"""Three things in a row or one after another: SceneFind, SceneNext, MomentFind and MomentNext ask for one of them.

A subject is the three names in order and the position, "0" or "1", of the thing that the query names.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from datamodules.mini import render, sentences
from datamodules.mini.sides import Random, Side, Subject, augmentation, concept_named
from datamodules.mini.splits import SPLITS, Split, scene_concepts, triple_split
from twn_lightning.batches import Item


@functools.cache
def scene_subjects(split: Split) -> Sequence[Subject]:
    """Triples of the split, each with a position."""
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


def scene_query(*, next_one: bool) -> Callable[[Subject, Split, Random], Side]:
    """A row of three things: where is the one named, or what is right of it?"""

    def query(subject: Subject, split: Split, rng: Random) -> Side:
        names, position = subject[:3], int(subject[3])
        picture = render.scene_picture([concept_named(name) for name in names], augmentation(split, rng))
        if next_one:
            cot = f"{sentences.row(names)} {sentences.right_of(names[position], names[position + 1])}"
            return Side(Item(images=(picture,), text=names[position], instruction="What is right of the"), cot)
        return Side(Item(images=(picture,), text=names[position], instruction="Find the"), f"The {names[position]}.")

    return query


def moment_query(*, next_one: bool) -> Callable[[Subject, Split, Random], Side]:
    """A clip of three things one after another: when is the one named, or what is after it?"""

    def query(subject: Subject, split: Split, rng: Random) -> Side:
        names, position = subject[:3], int(subject[3])
        clip = render.moments_clip([concept_named(name) for name in names], augmentation(split, rng))
        if next_one:
            cot = f"{sentences.order(names)} {sentences.after(names[position], names[position + 1])}"
            return Side(Item(video=clip, text=names[position], instruction="What is after the"), cot)
        return Side(Item(video=clip, text=names[position], instruction="Find the"), f"The {names[position]}.")

    return query


def scene_grades(*, next_one: bool) -> Callable[[Subject], Mapping[str, float]]:
    """The thing named, or the one right of it or after it."""

    def grades(subject: Subject) -> Mapping[str, float]:
        return {subject[int(subject[3]) + (1 if next_one else 0)]: 1.0}

    return grades


def scene_corpus(split: Split) -> Sequence[str]:
    """Every thing that scenes are made of."""
    return [concept.name for concept in scene_concepts()]


def scene_local(subject: Subject, rng: Random) -> Sequence[str]:
    """The three things shown and five that are not."""
    others = [concept.name for concept in scene_concepts() if concept.name not in subject[:3]]
    return [*subject[:3], *(str(name) for name in rng.choice(others, size=5, replace=False))]


def crop_candidate(key: str, split: Split, rng: Random | None) -> Side:
    """One thing, at the size it has in a scene."""
    picture = render.object_picture(concept_named(key), "twemoji", augmentation(split, rng), size=render.CROP_SIZE)
    return Side(Item(images=(picture,)), sentences.thing(key))


def moment_candidate(key: str, split: Split, rng: Random | None) -> Side:
    """A clip of one thing at rest."""
    return Side(Item(video=render.moments_clip([concept_named(key)], augmentation(split, rng))), sentences.thing(key))
