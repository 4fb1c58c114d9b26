"""A KV cache and where it ends: what the reasoning adapter leaves for decoding and for the queries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from twn_lightning.batches import Inputs, Thoughts


@dataclass(frozen=True)
class Prefix:
    """Prompts, possibly followed by chains of thought, as a KV cache of the reasoning adapter.

    Rows may be padded left, right, or between prompt and thought: the mask and the positions say what counts.

    Attributes:
        cache: Keys and values of every layer, ``S`` columns.
        attention_mask: 1 on tokens, 0 on padding, ``(B, S)``.
        next_position: Rotary position of the token that comes next, the same on the three axes, ``(B,)``.
        last_hidden: Hidden state of each row's last token after the final RMSNorm, ``(B, H)``.
        inputs: The prompts.
        thoughts: The chains of thought in the cache, or None.
        prompt_hidden: As `last_hidden`, but of the prompt's last token, ``(B, H)``.
    """

    cache: DynamicCache
    attention_mask: Tensor
    next_position: Tensor
    last_hidden: Tensor
    inputs: Inputs
    thoughts: Thoughts | None
    prompt_hidden: Tensor

    def __len__(self) -> int:
        return int(self.attention_mask.shape[0])

    def select(self, rows: Tensor) -> Prefix:
        """The given rows, in the given order; a row may be named several times.

        Args:
            rows: Row numbers, ``(R,)``.
        """
        return Prefix(
            cache=mapped_cache(self.cache, lambda tensor: tensor.index_select(0, rows)),
            attention_mask=self.attention_mask[rows],
            next_position=self.next_position[rows],
            last_hidden=self.last_hidden[rows],
            inputs=self.inputs.select(rows),
            thoughts=None if self.thoughts is None else self.thoughts.select(rows),
            prompt_hidden=self.prompt_hidden[rows],
        )

    def repeat(self, times: int) -> Prefix:
        """Each row ``times`` times in a run, as `Inputs.repeat`."""
        return self.select(torch.arange(len(self), device=self.attention_mask.device).repeat_interleave(times))

    def prompt(self) -> Prefix:
        """The part before the thoughts; shares the cache's memory."""
        if self.thoughts is None:
            return self
        columns = self.inputs.input_ids.shape[1]
        return replace(
            self,
            cache=mapped_cache(self.cache, lambda tensor: tensor[:, :, :columns]),
            attention_mask=self.attention_mask[:, :columns],
            next_position=self.next_position - self.thoughts.mask.sum(dim=1),
            last_hidden=self.prompt_hidden,
            thoughts=None,
        )


def cache_tensors(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of each layer, each ``(B, heads, S, head size)``."""
    pairs = []
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None
        assert layer.values is not None
        pairs.append((layer.keys, layer.values))
    return pairs


def mapped_cache(cache: DynamicCache, change: Callable[[Tensor], Tensor]) -> DynamicCache:
    """A cache whose keys and values are those of the given one, changed; the given one stays."""
    result = DynamicCache()
    for keys, values in cache_tensors(cache):
        layer = DynamicLayer()  # type: ignore[no-untyped-call]
        layer.lazy_initialization(keys, values)
        layer.keys, layer.values = change(keys), change(values)
        result.layers.append(layer)
    return result


def shared_cache(cache: DynamicCache) -> DynamicCache:
    """A cache with the same tensors. What is appended to it goes into new tensors, so that the given one does not grow."""
    return mapped_cache(cache, lambda tensor: tensor)


def detached_cache(cache: DynamicCache) -> DynamicCache:
    """`shared_cache` without gradient."""
    return mapped_cache(cache, lambda tensor: tensor.detach())


def last_token(hidden: Tensor, mask: Tensor) -> Tensor:
    """The state at each row's last token.

    Args:
        hidden: ``(B, S, H)``.
        mask: 1 on tokens, 0 on padding, at least one token a row, ``(B, S)``.

    Returns:
        ``(B, H)``.
    """
    columns = mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)
    return hidden[torch.arange(len(mask), device=mask.device), columns]
