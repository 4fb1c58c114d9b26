"""Text columns behind a prompt, and which column is a row's last."""

from __future__ import annotations

import torch
from torch import Tensor

from twn_lightning.models.backbones.base import Prompt


def text_columns(next_position: Tensor, embeddings: Tensor, mask: Tensor) -> Prompt:
    """Right-padded text columns that start at each row's next position.

    Args:
        next_position: ``(B,)``.
        embeddings: ``(B, T, H)``.
        mask: 1 on tokens, ``(B, T)``.
    """
    steps = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return Prompt(embeddings, (next_position[:, None] + steps).expand(3, -1, -1), next_position + mask.sum(dim=1))


def appended(prompt: Prompt, embeddings: Tensor, mask: Tensor) -> Prompt:
    """The prompt with right-padded text columns after it (arguments as in `text_columns`)."""
    new = text_columns(prompt.next_position, embeddings, mask)
    visual = prompt.visual_mask
    return Prompt(
        embeddings=torch.cat([prompt.embeddings, embeddings], dim=1),
        position_ids=torch.cat([prompt.position_ids, new.position_ids], dim=2),
        next_position=new.next_position,
        visual_mask=None if visual is None else torch.cat([visual, torch.zeros_like(mask, dtype=torch.bool)], dim=1),
        deepstack=prompt.deepstack,
    )


def last_column(mask: Tensor) -> Tensor:
    """The column of each row's last token, wherever the padding is, ``(B,)``.

    Args:
        mask: 1 on tokens, 0 on padding, ``(B, S)``; each row has a token.
    """
    return mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)


def mean_over_words(hidden: Tensor, mask: Tensor, visual_mask: Tensor | None) -> Tensor:
    """Mean of each row's hidden states over its text tokens, float32 ``(B, H)``; a row has some, since every prompt is a turn of a chat.

    Args:
        hidden: ``(B, S, H)``.
        mask: 1 on tokens, 0 on padding, ``(B, S)``.
        visual_mask: Where vision tokens are, bool ``(B, S)``, or None.
    """
    words = mask.float() if visual_mask is None else mask * ~visual_mask
    with torch.autocast(hidden.device.type, enabled=False):
        return torch.einsum("bsh,bs->bh", hidden.float(), words.float()) / words.sum(dim=1, keepdim=True)


def at_column(values: Tensor, column: Tensor) -> Tensor:
    """One column of each row.

    Args:
        values: ``(B, S, ...)``.
        column: ``(B,)``.

    Returns:
        ``(B, ...)``.
    """
    return values[torch.arange(len(values), device=values.device), column]
