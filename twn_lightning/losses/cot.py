"""Supervised loss of a chain of thought."""

from __future__ import annotations

from torch import Tensor


def cot_cross_entropy(log_probs: Tensor, mask: Tensor, *, num_tokens: Tensor | None = None) -> Tensor:
    """Mean negative log-probability of the given tokens, over all tokens of the batch together.

    A long thought therefore weighs more than a short one, as in ordinary language modelling.

    Args:
        log_probs: Log-probability of each given token, ``(B, T)``.
        mask: 1 (or True) where a token counts, ``(B, T)``.
        num_tokens: Tokens of all ranks divided by the number of ranks, so that the mean of the ranks' losses is the loss of all tokens; None means
            this batch is everything.

    Returns:
        A scalar in nats a token; 0 if no token counts.
    """
    weight = mask.float()
    divisor = weight.sum() if num_tokens is None else num_tokens.float()
    return -(log_probs.float() * weight).sum() / divisor.clamp(min=1.0)
