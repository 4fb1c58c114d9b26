"""The learnable queries."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class QueryTable(nn.Module):
    """K learnable token embeddings that every input is read by.

    A module of its own because training that shards parameters gathers them where their module runs.

    Args:
        initial: ``(K, H)``; no rows where the last token is pooled instead.
    """

    def __init__(self, initial: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(initial)

    def forward(self, num_rows: int, dtype: torch.dtype) -> Tensor:
        """The queries for each of so many rows, ``(B, K, H)``."""
        return self.weight.to(dtype).expand(num_rows, -1, -1)
