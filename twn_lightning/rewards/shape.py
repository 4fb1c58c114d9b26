"""Rewards that look at the thought's form alone."""

from __future__ import annotations

from torch import Tensor

from twn_lightning.errors import ConfigError


def format_reward(finished: Tensor, num_text_tokens: Tensor) -> Tensor:
    """1 for a thought that says something and ends by itself, else 0.

    Args:
        finished: Whether the closing marker was written, bool ``(P, G)``.
        num_text_tokens: Tokens between the markers, ``(P, G)``.

    Returns:
        0 or 1, ``(P, G)``, float32.
    """
    return (finished.bool() & (num_text_tokens > 0)).float()


def length_reward(num_tokens: Tensor, *, target: int, maximum: int) -> Tensor:
    """1 up to the target length, then a straight line down to 0 at the maximum.

    Args:
        num_tokens: Reasoning tokens of each rollout, ``(P, G)``.
        target: Longest thought that loses nothing, at least 0.
        maximum: Length from which nothing is earned, at least ``target``; if equal, every longer thought earns 0.

    Returns:
        0 to 1, ``(P, G)``, float32.

    Raises:
        ConfigError: ``target`` is negative or above ``maximum``.
    """
    if not 0 <= target <= maximum:
        raise ConfigError(f"The length reward's target is {target} and its maximum {maximum}: choose 0 <= target <= maximum.")
    excess = (num_tokens.float() - target).clamp(min=0.0)
    if target == maximum:
        return (excess == 0.0).float()
    return (1.0 - excess / (maximum - target)).clamp(min=0.0)
