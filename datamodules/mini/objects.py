"""Things: EmojiName asks for a drawing's name, EmojiT2I for a name's drawing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from datamodules.mini import render, sentences
from datamodules.mini.assets import STYLES, concepts
from datamodules.mini.sides import Random, Side, Subject, augmentation, concept_named, style_named
from datamodules.mini.splits import Split, drawing_split
from twn_lightning.batches import Item


def object_subjects(split: Split) -> Sequence[Subject]:
    """Name and style: every thing in both styles to train on, a split's things in OpenMoji to test on."""
    if split == "train":
        return [(concept.name, style) for concept in concepts() for style in STYLES]
    return [(concept.name, "openmoji") for concept in drawing_split()[split]]


def object_names(split: Split) -> Sequence[str]:
    """Every thing's name."""
    return [concept.name for concept in concepts()]


def object_keys(split: Split) -> Sequence[str]:
    """The split's drawings, as "owl:openmoji"."""
    return [f"{name}:{style}" for name, style in object_subjects(split)]


def object_grades(subject: Subject) -> Mapping[str, float]:
    """The drawing of the name."""
    return {f"{subject[0]}:{subject[1]}": 1.0}


def object_name_query(subject: Subject, split: Split, rng: Random) -> Side:
    """A drawing: what is it?"""
    return _object_side(subject[0], subject[1], split, rng, "Name it.")


def object_picture_query(subject: Subject, split: Split, rng: Random) -> Side:
    """A name: which drawing?"""
    return Side(Item(text=subject[0], instruction="Find a picture of"), sentences.nothing_seen())


def object_candidate(key: str, split: Split, rng: Random | None) -> Side:
    """A drawing."""
    name, style = key.split(":")
    return _object_side(name, style, split, rng)


def local_object_names(subject: Subject, rng: Random) -> Sequence[str]:
    """The thing asked for and nine others."""
    others = [concept.name for concept in concepts() if concept.name != subject[0]]
    return [subject[0], *(str(name) for name in rng.choice(others, size=9, replace=False))]


def local_object_keys(subject: Subject, rng: Random) -> Sequence[str]:
    """The drawing asked for and nine others in its style."""
    return [f"{name}:{subject[1]}" for name in local_object_names(subject, rng)]


def _object_side(name: str, style: str, split: Split, rng: Random | None, instruction: str = "") -> Side:
    picture = render.object_picture(concept_named(name), style_named(style), augmentation(split, rng))
    return Side(Item(images=(picture,), instruction=instruction), sentences.thing(name))
