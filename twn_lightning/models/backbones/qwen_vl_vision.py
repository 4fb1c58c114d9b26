"""Two layers of the Qwen-VL vision towers, faster and equal in result; they take the places of the originals' classes in a loaded model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen3_vl.modeling_qwen3_vl import apply_rotary_pos_emb_vision


class PatchProjection(nn.Conv3d):
    """The patch embedding's convolution as the matrix product that it is: its windows don't overlap, and torch's way is several times slower."""

    def forward(self, patches: Tensor) -> Tensor:
        """As the original, without the three axes of length 1: ``(patches, width)``."""
        return functional.linear(patches.flatten(1), self.weight.flatten(1), self.bias)


class GroupedVisionAttention(nn.Module):
    """transformers' vision attention, which runs picture by picture (or window by window), with those of one size run together.

    Each family's own class inherits from this one first and then from the original; with an implementation other than sdpa it is the original.
    """

    config: Any
    qkv: nn.Linear
    proj: nn.Linear
    num_heads: int
    scaling: float

    def forward(
        self,
        hidden_states: Tensor,
        cu_seqlens: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        max_seqlen: int | None = None,
        **kwargs: object,
    ) -> Tensor:
        """As the original: ``(patches of all pictures, width)`` in and out."""
        assert position_embeddings is not None
        if self.config._attn_implementation != "sdpa":
            original: Tensor = super().forward(hidden_states, cu_seqlens, position_embeddings, max_seqlen, **kwargs)
            return original
        num_patches = hidden_states.shape[0]
        states = self.qkv(hidden_states).reshape(num_patches, 3, self.num_heads, -1).permute(1, 0, 2, 3)
        query, key = apply_rotary_pos_emb_vision(states[0], states[1], *position_embeddings)
        attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
        starts, lengths = cu_seqlens[:-1], cu_seqlens.diff()
        distinct = torch.unique(lengths).tolist()
        if len(distinct) == 1:
            output = self._together(attend, query, key, states[2], distinct[0])
        else:
            output = torch.empty_like(query)
            for length in distinct:
                rows = (starts[lengths == length, None] + torch.arange(length, device=starts.device)).flatten()
                output[rows] = self._together(attend, query[rows], key[rows], states[2][rows], length)
        projected: Tensor = self.proj(output.reshape(num_patches, -1))
        return projected

    def _together(self, attend: Callable[..., tuple[Tensor, None]], query: Tensor, key: Tensor, value: Tensor, length: int) -> Tensor:
        """Attention within each run of ``length`` rows, all runs at once; ``(rows, heads, head size)`` in and out."""
        shape = query.shape
        batched = [tensor.reshape(-1, length, *shape[1:]).transpose(1, 2) for tensor in (query, key, value)]
        output, _ = attend(self, *batched, attention_mask=None, dropout=0.0, scaling=self.scaling, is_causal=False)
        return output.reshape(shape)
