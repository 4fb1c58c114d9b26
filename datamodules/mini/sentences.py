"""The sentences that chains of thought and captions are made of; every one is true by construction."""

from __future__ import annotations

from collections.abc import Sequence


def a(name: str) -> str:
    """A name behind its indefinite article."""
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def thing(name: str) -> str:
    """What an object picture shows."""
    return f"This is {a(name)}."


def flag_of(country: str) -> str:
    """Whose flag a picture shows."""
    return f"This is the flag of {country}."


def page_about(country: str) -> str:
    """What a page is about."""
    return f"This is a page about {country}."


def capital_of(country: str, capital: str) -> str:
    """A fact, country first."""
    return f"The capital of {country} is {capital}."


def is_capital_of(capital: str, country: str) -> str:
    """The same fact, capital first."""
    return f"{capital} is the capital of {country}."


def digits(values: Sequence[int]) -> str:
    """Which digits are seen, in order."""
    return f"The digits are {' and '.join(str(value) for value in values)}."


def total(values: Sequence[int]) -> str:
    """A sum of digits."""
    return f"{' plus '.join(str(value) for value in values)} is {sum(values)}."


def row(names: Sequence[str]) -> str:
    """What stands in a scene, from left to right."""
    return f"From left to right: {', '.join(names)}."


def right_of(first: str, second: str) -> str:
    """What stands right of a thing."""
    return f"Right of the {first} is the {second}."


def order(names: Sequence[str]) -> str:
    """What a clip shows, from first to last."""
    return f"Clip of {', '.join(names)}."


def after(first: str, second: str) -> str:
    """What a clip shows after a thing."""
    return f"After the {first} is the {second}."


def moves(name: str, direction: str) -> str:
    """How an object of a clip moves."""
    return f"The {name} moves {direction}."


def nothing_seen() -> str:
    """All there is to say of a few words: they show nothing, and nothing has to be worked out."""
    return "No picture."
