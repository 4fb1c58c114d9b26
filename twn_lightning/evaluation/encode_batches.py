"""Batches of prompts that keep to a number of tokens, whatever the items are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from twn_lightning.batches import Inputs, Item
from twn_lightning.models.backbones.base import Processor


def prompt_batches(processor: Processor, items: Iterable[Item], *, max_tokens: int | None) -> Iterator[Inputs]:
    """Prompts of the items, in their order, in as few batches as the limit allows.

    With a limit items are opened one at a time, so that no more than a batch and one item are decoded at once.

    Args:
        processor: Makes prompts.
        items: At least one.
        max_tokens: Tokens of a batch, padding included, at most; a single longer prompt goes alone. None: one batch.

    Raises:
        DataError: A medium cannot be read, or a prompt is too long.
    """
    if max_tokens is None:
        yield processor.inputs(list(items))
        return
    waiting: list[Inputs] = []
    width = 0
    for item in items:
        prompt = processor.inputs([item])
        wider = max(width, prompt.input_ids.shape[1])
        if waiting and (len(waiting) + 1) * wider > max_tokens:
            yield joined_prompts(processor, waiting)
            waiting, wider = [], prompt.input_ids.shape[1]
        waiting.append(prompt)
        width = wider
    yield joined_prompts(processor, waiting)


def joined_prompts(processor: Processor, prompts: Sequence[Inputs]) -> Inputs:
    """One batch of several, padded as the processor pads: what it would have made of all items together.

    Args:
        processor: Which made the prompts.
        prompts: At least one.
    """
    if len(prompts) == 1:
        return prompts[0]
    width = max(prompt.input_ids.shape[1] for prompt in prompts)
    left = processor.options.padding_side == "left"

    def padded(rows: Tensor, value: int) -> Tensor:
        missing = width - rows.shape[1]
        return functional.pad(rows, (missing, 0) if left else (0, missing), value=value)

    return Inputs(
        input_ids=torch.cat([padded(prompt.input_ids, processor.pad_id) for prompt in prompts]),
        attention_mask=torch.cat([padded(prompt.attention_mask, 0) for prompt in prompts]),
        mm_token_type_ids=torch.cat([padded(prompt.mm_token_type_ids, 0) for prompt in prompts]),
        images_per_row=torch.cat([prompt.images_per_row for prompt in prompts]),
        videos_per_row=torch.cat([prompt.videos_per_row for prompt in prompts]),
        pixel_values=_together([prompt.pixel_values for prompt in prompts]),
        image_grid_thw=_together([prompt.image_grid_thw for prompt in prompts]),
        pixel_values_videos=_together([prompt.pixel_values_videos for prompt in prompts]),
        video_grid_thw=_together([prompt.video_grid_thw for prompt in prompts]),
    )


def _together(pieces: Sequence[Tensor | None]) -> Tensor | None:
    there = [piece for piece in pieces if piece is not None]
    return torch.cat(there) if there else None
