"""What the queries read, and where it ends: prompts, or prompts and the chains of thought after them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from twn_lightning.batches import Thoughts
from twn_lightning.models.backbones.base import Prompt

_ROOM = 16


@dataclass(frozen=True)
class Prefix:
    """Prompts, possibly followed by chains of thought.

    Rows may be padded left, right, or between prompt and thought: the mask and the positions say what counts.

    Attributes:
        attention_mask: 1 on tokens, 0 on padding, ``(B, S)``.
        next_position: Rotary position of the token that comes next, the same on the three axes, ``(B,)``.
        cache: Keys and values that the reasoning adapter left, ``S`` columns; None with the interface "reencode", whose queries don't read it.
        prompt: Prompts as they enter the decoder; None with the interface "kv", which never enters it with them again.
        thoughts: The chains of thought, the last columns of the mask, or None.
        last: Token embedding of each prompt's last token, ``(B, H)``, where a cache is read by the last token instead of queries, or None.
        prompt_state: Mean of the final hidden states of each prompt's words where the reasoning adapter has read it, for the gate, float32
            ``(B, H)``, or None.
    """

    attention_mask: Tensor
    next_position: Tensor
    cache: DynamicCache | None = None
    prompt: Prompt | None = None
    thoughts: Thoughts | None = None
    last: Tensor | None = None
    prompt_state: Tensor | None = None

    def __len__(self) -> int:
        return int(self.attention_mask.shape[0])

    def select(self, rows: Tensor) -> Prefix:
        """The given rows, in the given order; a row may be named several times.

        Args:
            rows: Row numbers, ``(R,)``.
        """
        return Prefix(
            attention_mask=self.attention_mask[rows],
            next_position=self.next_position[rows],
            cache=None if self.cache is None else mapped_cache(self.cache, lambda tensor: tensor.index_select(0, rows)),
            prompt=None if self.prompt is None else self.prompt.select(rows),
            thoughts=None if self.thoughts is None else self.thoughts.select(rows),
            last=None if self.last is None else self.last[rows],
            prompt_state=None if self.prompt_state is None else self.prompt_state[rows],
        )

    def repeat(self, times: int) -> Prefix:
        """Each row ``times`` times in a run: row i becomes rows ``i * times … i * times + times - 1``."""
        return self.select(torch.arange(len(self), device=self.attention_mask.device).repeat_interleave(times))

    def with_thoughts(self, thoughts: Thoughts, cache: DynamicCache | None) -> Prefix:
        """The prompts with thoughts after them.

        Args:
            thoughts: A row each.
            cache: Of prompts and thoughts, or None where there is none of the prompts.
        """
        return replace(
            self,
            attention_mask=torch.cat([self.attention_mask, thoughts.mask], dim=1),
            next_position=self.next_position + thoughts.mask.sum(dim=1),
            cache=cache,
            thoughts=thoughts,
        )

    def without_thoughts(self) -> Prefix:
        """The prompts alone; shares the cache's memory."""
        if self.thoughts is None:
            return self
        columns = self.attention_mask.shape[1] - self.thoughts.mask.shape[1]
        return replace(
            self,
            attention_mask=self.attention_mask[:, :columns],
            next_position=self.next_position - self.thoughts.mask.sum(dim=1),
            cache=None if self.cache is None else mapped_cache(self.cache, lambda tensor: tensor[:, :, :columns]),
            thoughts=None,
        )


def joined_prefixes(prefixes: Sequence[Prefix]) -> Prefix:
    """The rows of several prefixes in their order, padded left to one width.

    Args:
        prefixes: At least one, with caches.
    """
    if len(prefixes) == 1:
        return prefixes[0]
    width = max(prefix.attention_mask.shape[1] for prefix in prefixes)
    missing = [width - prefix.attention_mask.shape[1] for prefix in prefixes]
    lasts = [prefix.last for prefix in prefixes if prefix.last is not None]
    states = [prefix.prompt_state for prefix in prefixes if prefix.prompt_state is not None]
    cache = DynamicCache()
    for pairs in zip(*(cache_tensors(prefix.cache) for prefix in prefixes if prefix.cache is not None), strict=True):
        keys, values = (
            torch.cat([functional.pad(pair[side], (0, 0, columns, 0)) for pair, columns in zip(pairs, missing, strict=True)]) for side in (0, 1)
        )
        cache.layers.append(_layer(keys, values))
    return Prefix(
        attention_mask=torch.cat([functional.pad(prefix.attention_mask, (columns, 0)) for prefix, columns in zip(prefixes, missing, strict=True)]),
        next_position=torch.cat([prefix.next_position for prefix in prefixes]),
        cache=cache,
        last=torch.cat(lasts) if lasts else None,
        prompt_state=torch.cat(states) if states else None,
    )


def trimmed(prefix: Prefix) -> Prefix:
    """The prefix without the columns that no row uses.

    Args:
        prefix: With a cache.
    """
    used = prefix.attention_mask.any(dim=0).nonzero().squeeze(1)
    if prefix.cache is None or len(used) == prefix.attention_mask.shape[1]:
        return prefix
    return replace(prefix, attention_mask=prefix.attention_mask[:, used], cache=mapped_cache(prefix.cache, lambda tensor: tensor[:, :, used]))


class RoomyLayer(DynamicLayer):
    """A cache layer that grows in place, some columns at a time, and can leave rows out of what it gives and takes.

    Appending to the dynamic layer of transformers copies all that is there for each token that is written.

    Args:
        keys: ``(B, heads, S, head size)``; copied.
        values: Likewise.
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.lazy_initialization(keys, values)
        self.num_columns = keys.shape[2]
        self.keys, self.values = _padded(keys), _padded(values)
        self.rows: Tensor | None = None
        """Which rows take part, or None for all of them; the other rows' new columns stay 0."""

    def get_seq_length(self) -> int:
        """Columns that are filled."""
        return self.num_columns

    def update(self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        """Appends columns to the rows that take part, and gives those rows."""
        assert self.keys is not None
        assert self.values is not None
        start, self.num_columns = self.num_columns, self.num_columns + key_states.shape[2]
        if self.num_columns > self.keys.shape[2]:
            self.keys, self.values = _padded(self.keys), _padded(self.values)
        rows, new, filled = slice(None) if self.rows is None else self.rows, slice(start, self.num_columns), slice(0, self.num_columns)
        self.keys[rows, :, new], self.values[rows, :, new] = key_states, value_states
        return self.keys[rows, :, filled], self.values[rows, :, filled]


def roomy_cache(cache: DynamicCache) -> DynamicCache:
    """A copy for writing token by token."""
    result = DynamicCache()
    result.layers.extend(RoomyLayer(keys, values) for keys, values in cache_tensors(cache))
    return result


def leave_out_all_but(cache: DynamicCache, rows: Tensor) -> None:
    """Lets only these rows take part from now on.

    Args:
        cache: The roomy cache.
        rows: Row numbers, ``(R,)``.
    """
    for layer in cache.layers:
        assert isinstance(layer, RoomyLayer)
        layer.rows = rows


def cut_columns(cache: DynamicCache, num_columns: int) -> None:
    """Forgets what was appended after so many columns.

    Args:
        cache: The roomy cache.
        num_columns: That stay.
    """
    for layer in cache.layers:
        assert isinstance(layer, RoomyLayer)
        layer.num_columns = num_columns


def cache_tensors(cache: DynamicCache) -> list[tuple[Tensor, Tensor]]:
    """Keys and values of each layer, each ``(B, heads, S, head size)``."""
    pairs = []
    for layer in cache.layers:
        assert isinstance(layer, DynamicLayer)
        assert layer.keys is not None
        assert layer.values is not None
        columns = layer.get_seq_length()
        pairs.append((layer.keys[:, :, :columns], layer.values[:, :, :columns]))
    return pairs


def mapped_cache(cache: DynamicCache, change: Callable[[Tensor], Tensor]) -> DynamicCache:
    """A cache whose keys and values are those of the given one, changed; the given one stays."""
    result = DynamicCache()
    for keys, values in cache_tensors(cache):
        result.layers.append(_layer(change(keys), change(values)))
    return result


def shared_cache(cache: DynamicCache) -> DynamicCache:
    """A cache with the same tensors. What is appended to it goes into new tensors, so that the given one does not grow."""
    return mapped_cache(cache, lambda tensor: tensor)


def detached_cache(cache: DynamicCache) -> DynamicCache:
    """`shared_cache` without gradient."""
    return mapped_cache(cache, lambda tensor: tensor.detach())


def _layer(keys: Tensor, values: Tensor) -> DynamicLayer:
    layer = DynamicLayer()  # type: ignore[no-untyped-call]
    layer.lazy_initialization(keys, values)
    layer.keys, layer.values = keys, values
    return layer


def _padded(tensor: Tensor) -> Tensor:
    return functional.pad(tensor, (0, 0, 0, _ROOM))
