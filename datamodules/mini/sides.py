"""What the tasks' queries and candidates are made of: a subject, two sides with their thoughts, and looking things up by name."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from datamodules.mini import sentences
from datamodules.mini.assets import STYLES, Concept, Country, Style, concepts, countries
from datamodules.mini.splits import Split
from twn_lightning.batches import Item

Subject: TypeAlias = tuple[str, ...]
"""What one query asks about: ("Kenya", "openmoji", "Nairobi")."""

Random: TypeAlias = np.random.Generator


@dataclass(frozen=True)
class Side:
    """A query or a candidate with its reference chain of thought."""

    item: Item
    cot: str


@functools.cache
def concept_named(name: str) -> Concept:
    """The concept of a name."""
    return next(concept for concept in concepts() if concept.name == name)


@functools.cache
def country_named(name: str) -> Country:
    """The country of a name."""
    return next(country for country in countries() if country.name == name)


def style_named(name: str) -> Style:
    """A subject's word for a drawing style, as a style."""
    assert name in STYLES
    return "twemoji" if name == "twemoji" else "openmoji"


def augmentation(split: Split, rng: Random | None) -> Random | None:
    """The generator that varies a drawing: in training alone."""
    return rng if split == "train" else None


def text_candidate(key: str, split: Split, rng: Random | None) -> Side:
    """A candidate that is its key, in words."""
    return Side(Item(text=key), sentences.nothing_seen())


def graded_at(position: int) -> Callable[[Subject], Mapping[str, float]]:
    """The one relevant candidate is a part of the subject."""
    return lambda subject: {subject[position]: 1.0}
