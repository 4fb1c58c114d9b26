"""Flags and pages: FlagName and FlagCapital show a flag, PageByName and PageByCapital look for a page about a country."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from datamodules.mini import render, sentences
from datamodules.mini.assets import STYLES, Style, countries
from datamodules.mini.sides import Random, Side, Subject, augmentation, country_named, style_named
from datamodules.mini.splits import Split, country_split
from twn_lightning.batches import Item


def flag_subjects(split: Split) -> Sequence[Subject]:
    """Country, style and capital: every flag in both styles to train on, the validation countries' OpenMoji flags, and all others' to test on."""
    if split == "train":
        return [(country.name, style, country.capital) for country in countries() for style in STYLES]
    validation = country_split()["validation"]
    asked = validation if split == "validation" else [country for country in countries() if country not in validation]
    return [(country.name, "openmoji", country.capital) for country in asked]


def capital_subjects(split: Split) -> Sequence[Subject]:
    """Country, style and capital of the split's countries alone; training shows Twemoji flags, the others both styles."""
    styles = ("twemoji",) if split == "train" else STYLES
    return [(country.name, style, country.capital) for country in country_split()[split] for style in styles]


def country_names(split: Split) -> Sequence[str]:
    """Every country's name."""
    return [country.name for country in countries()]


def capital_names(split: Split) -> Sequence[str]:
    """Every country's capital."""
    return [country.capital for country in countries()]


def flag_query(instruction: str, *, with_capital: bool) -> Callable[[Subject, Split, Random], Side]:
    """A flag; the thought names its country, and the capital if asked for."""

    def query(subject: Subject, split: Split, rng: Random) -> Side:
        country = country_named(subject[0])
        picture = render.flag_picture(country, style_named(subject[1]), augmentation(split, rng))
        cot = sentences.flag_of(country.name)
        if with_capital:
            cot = f"{cot} {sentences.capital_of(country.name, country.capital)}"
        return Side(Item(images=(picture,), instruction=instruction), cot)

    return query


def fact_subjects(split: Split) -> Sequence[Subject]:
    """Every country and its capital."""
    return [(country.name, country.capital) for country in countries()]


def fact_query(subject: Subject, split: Split, rng: Random) -> Side:
    """A country's name: which capital? Asked as of a flag, but in words."""
    return Side(Item(text=subject[0], instruction="Which capital?"), sentences.capital_of(*subject))


def page_subjects(*, everywhere: bool) -> Callable[[Split], Sequence[Subject]]:
    """Country, layout and capital of the split's countries; ``everywhere``: of all countries in training."""

    def subjects(split: Split) -> Sequence[Subject]:
        chosen = countries() if everywhere and split == "train" else country_split()[split]
        return [(country.name, layout, country.capital) for country in chosen for layout in render.LAYOUTS]

    return subjects


def page_query(clue: Literal["name", "capital"]) -> Callable[[Subject, Split, Random], Side]:
    """A layout and a country, by its name or by its capital."""

    def query(subject: Subject, split: Split, rng: Random) -> Side:
        name, layout, capital = subject
        kind = {"sheet": "Fact sheet", "profile": "Profile"}[layout]
        if clue == "name":
            return Side(Item(text=name, instruction=f"{kind} of"), sentences.nothing_seen())
        return Side(Item(text=capital, instruction=f"{kind} of the country with capital"), sentences.is_capital_of(capital, name))

    return query


def page_candidate(training_styles: Sequence[Style]) -> Callable[[str, Split, Random | None], Side]:
    """A page, by "Kenya/sheet"; outside training with an OpenMoji flag."""

    def candidate(key: str, split: Split, rng: Random | None) -> Side:
        name, layout = key.split("/")
        country = country_named(name)
        style = training_styles[int(rng.integers(0, len(training_styles)))] if split == "train" and rng is not None else "openmoji"
        page = render.page_picture(country, style, layout, augmentation(split, rng))
        return Side(Item(images=(page,)), sentences.page_about(name))

    return candidate


def page_corpus(split: Split) -> Sequence[str]:
    """Both pages of every country; of the training countries in training."""
    chosen = country_split()["train"] if split == "train" else countries()
    return [f"{country.name}/{layout}" for country in chosen for layout in render.LAYOUTS]


def page_grades(subject: Subject) -> Mapping[str, float]:
    """The page in the layout asked for, and half as good the country's other page."""
    main, other = (subject[1], next(layout for layout in render.LAYOUTS if layout != subject[1]))
    return {f"{subject[0]}/{main}": 2.0, f"{subject[0]}/{other}": 1.0}
