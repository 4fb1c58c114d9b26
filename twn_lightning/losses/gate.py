"""The routing gate's labels and loss."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from twn_lightning.errors import ConfigError


def self_labels(gain: Tensor, *, margin: float, dead_zone: float) -> tuple[Tensor, Tensor]:
    """Whether thinking helped, by the model's own scores.

    Args:
        gain: u_gen - u_disc in nats, ``(N,)``.
        margin: Thinking must gain more than this to be worth it, in nats; below 0 it may even cost a little.
        dead_zone: Examples whose ``|gain|`` is smaller are left out, in nats, at least 0.

    Returns:
        Labels, 1.0 where gain > margin and else 0.0, ``(N,)``; which examples to keep, bool ``(N,)``.

    Raises:
        ConfigError: ``dead_zone`` is negative.
    """
    if dead_zone < 0.0:
        raise ConfigError(f"dead_zone is {dead_zone}, but it is a distance from 0 in nats: choose a value of at least 0.")
    return (gain > margin).float(), gain.abs() >= dead_zone


def gate_bce(logits: Tensor, gain: Tensor, *, margin: float, dead_zone: float, balanced: bool) -> Tensor:
    """Binary cross-entropy of the gate against `self_labels`.

    Args:
        logits: Of "thinking helps", ``(N,)``.
        gain: u_gen - u_disc in nats, ``(N,)``.
        margin: See `self_labels`.
        dead_zone: See `self_labels`.
        balanced: Gives both classes the same weight, however many examples each has; a class that is absent has none.

    Returns:
        A scalar in nats; 0 (with a graph) if no example is kept.
    """
    labels, keep = self_labels(gain, margin=margin, dead_zone=dead_zone)
    loss = functional.binary_cross_entropy_with_logits(logits.float(), labels, reduction="none")
    helped, useless = keep & (labels == 1.0), keep & (labels == 0.0)
    groups = (helped, useless) if balanced else (keep,)
    means = [loss[group].mean() for group in groups if bool(group.any())]
    if not means:
        return loss.sum() * 0.0
    return sum(means[1:], means[0]) / len(means)
