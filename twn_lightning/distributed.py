"""Ranks: the only place that knows `torch.distributed`. In one process every function is a no-op."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn
from torch import Tensor

T = TypeVar("T")


def world_size() -> int:
    """Number of processes that train together; 1 without a process group."""
    return dist.get_world_size() if _is_initialised() else 1


def rank() -> int:
    """This process's number, from 0; 0 without a process group."""
    return dist.get_rank() if _is_initialised() else 0


def gather_with_grad(rows: Tensor) -> Tensor:
    """The rows of all ranks, in rank order, through which gradients flow back to the rank that owns them.

    In the backward pass each rank receives the **sum** of all ranks' gradients for its rows. If every rank's loss is a mean over its own
    rows and the parameters' gradients are then averaged over ranks (DDP, ZeRO), the result is exactly the gradient of one process
    that holds all rows. So nothing is to be multiplied or divided by the number of ranks.

    Args:
        rows: ``(N, ...)``; N may differ between ranks. All ranks must call this, and all must run backward (or none).

    Returns:
        ``(sum of N, ...)``.
    """
    if world_size() == 1:
        return rows
    padded, counts = _padded(rows)
    if torch.is_grad_enabled() and not padded.requires_grad:
        padded = padded.detach().requires_grad_()  # a rank without rows of its own must still take part in the others' backward
    pieces: tuple[Tensor, ...] = torch.distributed.nn.functional.all_gather(padded)  # type: ignore[no-untyped-call]
    return torch.cat([piece[:count] for piece, count in zip(pieces, counts, strict=True)])


def gather(rows: Tensor) -> Tensor:
    """The rows of all ranks, in rank order, without gradient.

    Args:
        rows: ``(N, ...)``; N may differ between ranks.

    Returns:
        ``(sum of N, ...)``, detached.
    """
    if world_size() == 1:
        return rows.detach()
    padded, counts = _padded(rows.detach())
    pieces = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(pieces, padded.contiguous())
    return torch.cat([piece[:count] for piece, count in zip(pieces, counts, strict=True)])


def gather_objects(value: T) -> list[T]:
    """One value of each rank, in rank order; for strings and numbers, not for tensors."""
    values = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(values, value)
    return values


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of all ranks' values, without gradient; the same shape."""
    total = value.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def first_row(num_rows: int, device: torch.device | str = "cpu") -> int:
    """Where this rank's rows begin in what `gather` gives.

    Args:
        num_rows: Rows of this rank.
        device: A device the process group can send from.
    """
    if world_size() == 1:
        return 0
    return sum(_counts(num_rows, torch.device(device))[: rank()])


@contextmanager
def rank_zero_first() -> Iterator[bool]:
    """Runs the block on rank 0 before any other rank runs it (to download or write a cache once); gives whether this is rank 0."""
    if world_size() > 1 and rank() != 0:
        dist.barrier()
    try:
        yield rank() == 0
    finally:
        if world_size() > 1 and rank() == 0:
            dist.barrier()


def _is_initialised() -> bool:
    return dist.is_available() and dist.is_initialized()


def _counts(num_rows: int, device: torch.device) -> list[int]:
    own = torch.tensor([num_rows], device=device)
    counts = [torch.empty_like(own) for _ in range(world_size())]
    dist.all_gather(counts, own)
    return [int(count) for count in counts]


def _padded(rows: Tensor) -> tuple[Tensor, list[int]]:
    counts = _counts(rows.shape[0], rows.device)
    missing = max(counts) - rows.shape[0]
    if missing:
        rows = torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])])
    return rows, counts
