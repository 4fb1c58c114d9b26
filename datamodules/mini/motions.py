"""One thing that moves: ClipMotion asks what a clip shows, ClipByMotion for the clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from datamodules.mini import render, sentences
from datamodules.mini.sides import Random, Side, Subject, concept_named
from datamodules.mini.splits import Split, scene_concepts
from twn_lightning.batches import Item


def motion_subjects(split: Split) -> Sequence[Subject]:
    """Thing and direction, those of the split."""
    every = [(concept.name, direction) for concept in scene_concepts() for direction in render.DIRECTIONS]
    order = np.random.default_rng((2605, 7)).permutation(len(every))
    shares = {"test": order[:48], "validation": order[48:72], "train": order[72:]}
    return [every[index] for index in sorted(shares[split])]


def motion_query(subject: Subject, split: Split, rng: Random) -> Side:
    """A clip: what happens?"""
    clip = render.motion_clip(concept_named(subject[0]), subject[1], rng)
    return Side(Item(video=clip, instruction="What happens?"), sentences.moves(subject[0], subject[1]))


def by_motion_query(subject: Subject, split: Split, rng: Random) -> Side:
    """A thing and a direction in words: which clip?"""
    return Side(Item(text=f"{subject[0]} moving {subject[1]}", instruction="Find the clip"), sentences.nothing_seen())


def motion_grades(subject: Subject) -> Mapping[str, float]:
    """Thing and direction."""
    return {f"{subject[0]} moving {subject[1]}": 1.0}


def motion_texts(split: Split) -> Sequence[str]:
    """Every thing of the scenes in every direction."""
    return [f"{concept.name} moving {direction}" for concept in scene_concepts() for direction in render.DIRECTIONS]


def motion_local(subject: Subject, rng: Random) -> Sequence[str]:
    """The thing asked about and another, each in every direction."""
    other = rng.choice([concept.name for concept in scene_concepts() if concept.name != subject[0]])
    return [f"{name} moving {direction}" for name in (subject[0], other) for direction in render.DIRECTIONS]


def motion_candidate(key: str, split: Split, rng: Random | None) -> Side:
    """A clip; outside training where it starts is drawn from the key."""
    name, direction = key.split(" moving ")
    drawn = rng or np.random.default_rng((2605, 9, *key.encode()))
    return Side(Item(video=render.motion_clip(concept_named(name), direction, drawn)), sentences.moves(name, direction))
