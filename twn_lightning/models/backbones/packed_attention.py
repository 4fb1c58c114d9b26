"""Attention of a few tokens to a long cache, without a copy of the keys and values for each query head that shares them.

With a mask, transformers' way of calling torch's kernel repeats keys and values for every query head, and what it repeats is kept for backward: four
times the cache in a model of 32 query and 8 key heads. Here the query heads that share a key head are rows of one head instead, which is the same
sum; transformers itself does so for a single token.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "sdpa_packed"


def packed_sdpa(  # noqa: PLR0917 - as transformers calls it
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """As transformers' sdpa attention.

    Args:
        module: The attention layer.
        query: ``(B, heads, L, head size)``.
        key: ``(B, key heads, S, head size)``.
        value: Likewise.
        attention_mask: Which keys each token sees, bool, or added to the scores, ``(B, 1, L, S)``; or None.
        dropout: Of the attention weights, a probability.
        scaling: Factor of the scores.
        **kwargs: What transformers passes on.

    Returns:
        ``(B, L, heads, head size)``, and None for weights that are never there.
    """
    num_rows, num_heads, num_tokens, head_size = query.shape
    num_key_heads, num_columns = key.shape[1:3]
    is_shared = num_key_heads < num_heads and attention_mask is not None and attention_mask.shape[1] == 1
    if not is_shared or not 1 < num_tokens < num_columns:
        output: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)  # type: ignore[arg-type]
        return output
    assert attention_mask is not None
    sharing = num_heads // num_key_heads
    packed = torch.nn.functional.scaled_dot_product_attention(
        query.reshape(num_rows, num_key_heads, sharing * num_tokens, head_size),
        key,
        value,
        attn_mask=attention_mask.repeat(1, 1, sharing, 1),
        dropout_p=dropout,
        scale=scaling,
    )
    return packed.reshape(num_rows, num_heads, num_tokens, head_size).transpose(1, 2).contiguous(), None


def use_packed_attention(layers: Iterable[nn.Module]) -> None:
    """Lets the attention layers of a decoder with sdpa attention run `packed_sdpa`; masks are made as before.

    Args:
        layers: Of a decoder of transformers, each with a `self_attn` that looks its function up by its config.
    """
    AttentionInterface.register(NAME, packed_sdpa)
    for layer in layers:
        attention = layer.self_attn
        assert isinstance(attention, nn.Module)
        own = copy.copy(attention.config)  # the model's config goes on saying sdpa
        own._attn_implementation = NAME  # type: ignore[union-attr]
        attention.config = own
