"""Handwritten digits: two are read (DigitRead), added (DigitSum, ClipSum), or found by their sum (PictureBySum, ClipBySum)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from datamodules.mini import render, sentences
from datamodules.mini.sides import Random, Side, Subject
from datamodules.mini.splits import SPLITS, Split, digit_pair_split
from twn_lightning.batches import Item


def digit_subjects(*, held_out: bool) -> Callable[[Split], Sequence[Subject]]:
    """Ordered pairs of digits: those of the split, or all hundred."""

    def subjects(split: Split) -> Sequence[Subject]:
        pairs = digit_pair_split()[split] if held_out else [pair for each in SPLITS for pair in digit_pair_split()[each]]
        return [(str(left), str(right)) for left, right in sorted(pairs)]

    return subjects


def digit_query(instruction: str, *, with_sum: bool, clip: bool) -> Callable[[Subject, Split, Random], Side]:
    """Two digits side by side or one after another; the thought reads them, and adds them if asked to."""

    def query(subject: Subject, split: Split, rng: Random) -> Side:
        values = [int(value) for value in subject]
        cot = sentences.digits(values)
        if with_sum:
            cot = f"{cot} {sentences.total(values)}"
        if clip:
            return Side(Item(video=render.digits_clip(values, split, rng), instruction=instruction), cot)
        return Side(Item(images=(render.digits_picture(values, split, rng),), instruction=instruction), cot)

    return query


def pair_grades(subject: Subject) -> Mapping[str, float]:
    """Both digits in words: "3 and 5"."""
    return {" and ".join(subject): 1.0}


def pair_texts(split: Split) -> Sequence[str]:
    """All hundred readings."""
    return [f"{left} and {right}" for left in range(10) for right in range(10)]


def addition_query(subject: Subject, split: Split, rng: Random) -> Side:
    """Two digits in words: which sum? Asked as of a picture of them."""
    return Side(Item(text=" and ".join(subject), instruction="Which sum?"), sentences.total([int(value) for value in subject]))


def total_grades(subject: Subject) -> Mapping[str, float]:
    """The sum in figures."""
    return {str(sum(int(value) for value in subject)): 1.0}


def total_texts(split: Split) -> Sequence[str]:
    """All nineteen sums."""
    return [str(value) for value in range(19)]


def by_sum_query(instruction: str) -> Callable[[Subject, Split, Random], Side]:
    """A sum in figures; there is nothing to work out on this side."""

    def query(subject: Subject, split: Split, rng: Random) -> Side:
        total = str(sum(int(value) for value in subject))
        return Side(Item(text=total, instruction=instruction), sentences.nothing_seen())

    return query


def by_sum_grades(subject: Subject) -> Mapping[str, float]:
    """The pair asked for; its local candidates hold no other pair of that sum."""
    return {_pair_key(*subject): 1.0}


def by_sum_target(key: str) -> str:
    """The sum of a candidate's key: any pair with it would be right."""
    return key.partition("=")[0]


def by_sum_candidate(*, clip: bool) -> Callable[[str, Split, Random | None], Side]:
    """Two handwritten digits, by "8=3+5"; the thought adds them. Outside training their handwriting is drawn from the key."""
    draw = digit_query("Which sum?", with_sum=True, clip=clip)

    def candidate(key: str, split: Split, rng: Random | None) -> Side:
        left, right = key.split("=")[1].split("+")
        return draw((left, right), split, rng or np.random.default_rng((2605, 8, int(clip), int(left), int(right))))

    return candidate


def by_sum_corpus(split: Split) -> Sequence[str]:
    """All hundred pairs."""
    return [_pair_key(str(left), str(right)) for left in range(10) for right in range(10)]


def by_sum_local(subject: Subject, rng: Random) -> Sequence[str]:
    """The pair asked for and nine pairs of nine other sums."""
    right_one = sum(int(value) for value in subject)
    sums = rng.choice([total for total in range(19) if total != right_one], size=9, replace=False)
    lefts = [int(rng.integers(max(0, total - 9), min(9, total) + 1)) for total in sums]
    return [_pair_key(*subject), *(_pair_key(str(left), str(total - left)) for left, total in zip(lefts, sums, strict=True))]


def _pair_key(left: str, right: str) -> str:
    return f"{int(left) + int(right)}={left}+{right}"
