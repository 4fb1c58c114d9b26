"""Which rank encodes what, and how all ranks get all of it.

Items are cut into windows of similar length by themselves alone, and windows are dealt to the ranks. So what is computed together, and with it every
rounding, is the same for any number of ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from twn_lightning.distributed import gather, gather_objects, rank, world_size
from twn_lightning.evaluation.encoded import EncodedItems

T = TypeVar("T")


def own_windows(num_windows: int, *, over_ranks: bool) -> range:
    """Numbers of the windows that this rank encodes.

    Args:
        num_windows: Of all ranks together.
        over_ranks: False: this rank encodes all.
    """
    return range(rank(), num_windows, world_size()) if over_ranks else range(num_windows)


def dealt(values: Sequence[T], *, num_values: int, over_ranks: bool) -> list[T]:
    """All ranks' values in order, where rank r brings numbers r, r + world size, r + 2 · world size, …

    Args:
        values: This rank's; strings, numbers and bytes, no tensors.
        num_values: Of all ranks together.
        over_ranks: False: this rank's are all.
    """
    if not over_ranks:
        return list(values)
    shares = gather_objects(list(values))
    return [shares[number % len(shares)][number // len(shares)] for number in range(num_values)]


def gathered(rows: EncodedItems, sizes: Sequence[int], *, device: torch.device) -> EncodedItems:
    """The rows of all windows in the windows' order, on every rank.

    Args:
        rows: Of this rank's windows (`own_windows`), in order.
        sizes: Of all windows.
        device: One that the process group can send from.
    """
    count = world_size()
    if count == 1:
        return rows
    by_rank = [number for first in range(count) for number in range(first, len(sizes), count)]
    starts, position = [0] * len(sizes), 0
    for number in by_rank:
        starts[number] = position
        position += sizes[number]
    order = torch.tensor([row for number, size in enumerate(sizes) for row in range(starts[number], starts[number] + size)], dtype=torch.long)

    def every(tensor: Tensor) -> Tensor:
        return gather(tensor.to(device)).cpu()[order]

    thoughts = [thought for share in gather_objects(list(rows.thoughts)) for thought in share]
    return EncodedItems(
        discriminative=every(rows.discriminative),
        generative=None if rows.generative is None else every(rows.generative),
        gate_probability=every(rows.gate_probability),
        num_reasoning_tokens=every(rows.num_reasoning_tokens),
        thoughts=tuple(thoughts[row] for row in order.tolist()),
        seconds=sum(gather_objects(rows.seconds)),
        thought=every(rows.thought.long()).bool(),
        state=None if rows.state is None else every(rows.state),
    )
