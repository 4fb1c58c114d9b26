"""Who is held out: countries, digit pairs, drawings, handwritten digits and object triples, each drawn once from a fixed seed."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np

from datamodules.mini.assets import Concept, Country, concepts, countries

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

_SEED = 2605
_SCENE_CONCEPTS = 48
_T = TypeVar("_T")


def _shares(things: Sequence[_T], *, salt: int, validation: float, test: float) -> dict[Split, tuple[_T, ...]]:
    order = np.random.default_rng((_SEED, salt)).permutation(len(things))
    num_test, num_validation = round(test * len(things)), round(validation * len(things))
    chosen = {
        "test": order[:num_test],
        "validation": order[num_test : num_test + num_validation],
        "train": order[num_test + num_validation :],
    }
    return {split: tuple(things[index] for index in sorted(chosen[split])) for split in SPLITS}


@functools.cache
def country_split() -> dict[Split, tuple[Country, ...]]:
    """Countries whose flag-to-capital and capital-to-page pairs belong to a split: 50 %, 20 %, 30 %."""
    return _shares(countries(), salt=1, validation=0.20, test=0.30)


@functools.cache
def digit_pair_split() -> dict[Split, tuple[tuple[int, int], ...]]:
    """Ordered digit pairs whose direct sum belongs to a split: 50, 20 and 30 of the 100."""
    pairs = [(left, right) for left in range(10) for right in range(10)]
    return _shares(pairs, salt=2, validation=0.20, test=0.30)


@functools.cache
def digit_range(split: Split) -> range:
    """Which of the 500 handwritten pictures of each digit belong to a split: 400, 30, 70."""
    return {"train": range(0, 400), "validation": range(400, 430), "test": range(430, 500)}[split]


@functools.cache
def drawing_split() -> dict[Split, tuple[Concept, ...]]:
    """Concepts whose OpenMoji drawing is asked about in a split: 20 % in validation, 50 % in test, and nowhere the others.

    Training shows every concept in both styles: were some trained in one alone, the style would tell which concepts to leave out.
    """
    return _shares(concepts(), salt=3, validation=0.2, test=0.5)


@functools.cache
def scene_concepts() -> tuple[Concept, ...]:
    """The concepts that scenes and clips are composed of, in Twemoji drawings; the compositions are held out, not the drawings."""
    names = concepts()
    order = np.random.default_rng((_SEED, 4)).permutation(len(names))[:_SCENE_CONCEPTS]
    return tuple(names[index] for index in sorted(order))


def triple_split(names: Sequence[str]) -> Split:
    """The split an unordered triple of scene concepts belongs to: about 80 %, 5 %, 15 %."""
    index = {concept.name: position for position, concept in enumerate(scene_concepts())}
    first, second, third = sorted(index[name] for name in names)
    draw = np.random.default_rng((_SEED, 5, first, second, third)).random()
    if draw < 0.15:
        return "test"
    return "validation" if draw < 0.20 else "train"
