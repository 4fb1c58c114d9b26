"""Range checks whose messages name the setting, its value and the way out."""

from __future__ import annotations

from collections.abc import Collection

from twn_lightning.errors import ConfigError


def at_least(name: str, value: float, minimum: float, why: str) -> None:
    """Refuse a value below the minimum.

    Args:
        name: The setting's name.
        value: What was set.
        minimum: The smallest value that is allowed.
        why: What the value means, so that the message explains itself.

    Raises:
        ConfigError: The value is smaller.
    """
    if not value >= minimum:
        raise ConfigError(f"{name} is {value}, but {why}: choose {minimum} or more.")


def above(name: str, value: float, bound: float, why: str) -> None:
    """Refuse a value that is not strictly above the bound (arguments as in `at_least`)."""
    if not value > bound:
        raise ConfigError(f"{name} is {value}, but {why}: choose a value above {bound}.")


def between(name: str, value: float, low: float, high: float, why: str) -> None:
    """Refuse a value outside ``[low, high]`` (arguments as in `at_least`)."""
    if not low <= value <= high:
        raise ConfigError(f"{name} is {value}, but {why}: choose a value from {low} to {high}.")


def one_of(name: str, values: Collection[str], allowed: Collection[str]) -> None:
    """Refuse a value that is not among the allowed ones, listing them."""
    wrong = [value for value in values if value not in allowed]
    if wrong:
        raise ConfigError(f"{name} holds {', '.join(map(repr, wrong))}: choose among {', '.join(allowed)}.")
