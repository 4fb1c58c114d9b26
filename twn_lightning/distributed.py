"""Ranks: the only place that knows `torch.distributed`. In one process every function is a no-op."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

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
    everything: Tensor = _Gathered.apply(padded)  # type: ignore[no-untyped-call]
    return torch.cat([piece[:count] for piece, count in zip(everything.chunk(len(counts)), counts, strict=True)])


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


def max_over_ranks(value: int) -> int:
    """The largest of all ranks' values; all ranks must call it."""
    if world_size() == 1:
        return value
    largest = torch.tensor(value, device=_device())
    dist.all_reduce(largest, op=dist.ReduceOp.MAX)
    return int(largest)


def is_sharded(module: nn.Module) -> bool:
    """Whether each rank holds a share of every parameter (ZeRO-3) while this module trains.

    A weight is then whole only while the module that owns it runs, and for that all ranks must run the same modules in the same order.
    """
    return hasattr(next(module.parameters(), None), "ds_id")


def num_elements(parameter: Tensor) -> int:
    """Elements of a parameter, all ranks' shares together."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def full_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Copies of the trainable parameters on the CPU, by name, whole whatever shares the ranks hold; all ranks must call it.

    Where a parameter is trained in 16 bits beside an exact copy (DeepSpeed), it is the exact one.
    """
    whole = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            value: Tensor = parameter
            if hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"):
                from deepspeed.utils import safe_get_full_fp32_param

                value = safe_get_full_fp32_param(parameter)
            whole[name] = value.detach().float().cpu().clone()
    return whole


def drop_shards(module: nn.Module) -> None:
    """Frees this rank's shares of the parameters (ZeRO-3) of a module that is not used again, whoever still holds it."""
    for parameter in module.parameters():
        if hasattr(parameter, "ds_tensor"):
            parameter.ds_tensor.data = parameter.ds_tensor.data.new_empty(0)


def from_rank_zero(value: T) -> T:
    """Rank 0's value on every rank; for what all must agree on, such as whether a file is there."""
    return gather_objects(value)[0]


def barrier() -> None:
    """Waits for all ranks."""
    if world_size() > 1:
        dist.barrier()


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


class _Gathered(torch.autograd.Function):
    """As many rows of each rank, in rank order; backward gives each rank the sum of all ranks' gradients for its rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        pieces = [torch.empty_like(rows) for _ in range(world_size())]
        dist.all_gather(pieces, rows.contiguous())
        return torch.cat(pieces)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total.chunk(world_size())[rank()]


def _is_initialised() -> bool:
    return dist.is_available() and dist.is_initialized()


def _device() -> torch.device:
    """A device that the process group can send from."""
    return torch.device("cuda", torch.cuda.current_device()) if "nccl" in dist.get_backend() else torch.device("cpu")


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


@contextmanager
def join_process_group(*, use_gpu: bool) -> Iterator[torch.device]:
    """Joins the processes that torchrun started beside this one, for as long as the block runs; alone in one that was started by itself.

    Reads ``RANK``, ``WORLD_SIZE`` and ``LOCAL_RANK`` from the environment.

    Args:
        use_gpu: Each process takes the GPU of its local rank, and they talk by NCCL; otherwise by gloo, on the CPU.

    Yields:
        This process's device.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    device = torch.device("cuda", local) if use_gpu else torch.device("cpu")
    joins = int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ and not _is_initialised()
    if use_gpu:
        torch.cuda.set_device(device)
    if joins:  # a rank that has finished its share of a large task may wait long for the others
        dist.init_process_group("nccl" if use_gpu else "gloo", timeout=datetime.timedelta(days=1))
    try:
        yield device
    finally:
        if joins:
            dist.destroy_process_group()
