"""Two gloo processes of 4 pairs are one process of 8: loss and gradient of InfoNCE, with hard negatives and equal targets."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import ProcessRaisedException
from torch.nn import functional

from tests.support.ranks import run_ranks
from twn_lightning import distributed
from twn_lightning.losses.info_nce import false_negative_mask, symmetric_info_nce

NUM_PAIRS, WIDTH = 8, 6
HASHES = torch.tensor([1, 2, 3, 4, 5, 2, 7, 1])
"""Pairs 1 and 5, and 0 and 7, have the same target, on different ranks."""


def rows(seed: int, number: int = NUM_PAIRS) -> Tensor:
    return torch.randn(number, WIDTH, generator=torch.Generator().manual_seed(seed))


def tower() -> nn.Linear:
    layer = nn.Linear(WIDTH, WIDTH, bias=False)
    layer.weight.data = rows(9, WIDTH)
    return layer


def step(own: slice, negative: slice) -> tuple[Tensor, Tensor]:
    """Loss of this rank's pairs and the gradient of the shared tower."""
    layer = tower()

    def embed(inputs: Tensor) -> Tensor:
        return functional.normalize(layer(inputs), dim=1)

    query, positive, hard = embed(rows(0)[own]), embed(rows(1)[own]), embed(rows(2, 3)[negative])
    hashes = HASHES[own]
    start = distributed.first_row(len(query))
    column = torch.arange(start, start + len(query))
    all_hashes = distributed.gather(hashes)
    all_negatives = distributed.gather_with_grad(hard)
    targets = torch.cat([distributed.gather_with_grad(positive), all_negatives])
    target_hash = torch.cat([all_hashes, torch.arange(100, 100 + len(all_negatives))])
    loss = symmetric_info_nce(
        query,
        positive,
        distributed.gather_with_grad(query),
        targets,
        column,
        temperature=0.1,
        query_mask=false_negative_mask(hashes, target_hash, column),
        positive_mask=false_negative_mask(hashes, all_hashes, column),
    )
    loss.backward()  # type: ignore[no-untyped-call]
    assert layer.weight.grad is not None
    return loss.detach(), layer.weight.grad


def run_rank(folder: Path, first_negatives: int) -> None:
    with distributed.join_process_group(use_gpu=False):
        rank = distributed.rank()
        own = slice(4 * rank, 4 * rank + 4)
        negative = slice(0, first_negatives) if rank == 0 else slice(first_negatives, 3)
        loss, gradient = step(own, negative)
        mean_gradient = distributed.sum_over_ranks(gradient) / 2  # what DDP and ZeRO do
        mean_loss = distributed.sum_over_ranks(loss) / 2
        objects = distributed.gather_objects({"rank": rank, "pairs": own.start})
        with distributed.rank_zero_first() as is_first:
            log = folder / "order.txt"
            seen = log.read_text(encoding="utf-8") if log.exists() else ""
            log.write_text(f"{seen}{rank}", encoding="utf-8")
        empty = distributed.gather(torch.zeros(0, 3))
        if is_first:
            torch.save({"loss": mean_loss, "gradient": mean_gradient, "empty": empty}, folder / "result.pt")
            (folder / "objects.txt").write_text(repr(objects), encoding="utf-8")
        dist.barrier()


@pytest.mark.parametrize("first_negatives", [2, 3])
def test_two_ranks_of_four_equal_one_process_of_eight(tmp_path: Path, first_negatives: int) -> None:
    loss, gradient = step(slice(0, NUM_PAIRS), slice(0, 3))
    run_ranks(run_rank, tmp_path, first_negatives)
    result = torch.load(tmp_path / "result.pt", weights_only=True)
    assert result["loss"].item() == pytest.approx(loss.item(), abs=1e-6)
    assert torch.allclose(result["gradient"], gradient, atol=1e-6)
    assert result["empty"].shape == (0, 3)
    assert (tmp_path / "order.txt").read_text(encoding="utf-8") == "01"
    assert (tmp_path / "objects.txt").read_text(encoding="utf-8") == "[{'rank': 0, 'pairs': 0}, {'rank': 1, 'pairs': 4}]"


def sleep_or_fail() -> None:
    if os.environ["RANK"] == "0":
        time.sleep(60)
    raise OSError("no more")


def test_a_rank_that_fails_ends_the_others_and_says_why() -> None:
    with pytest.raises(ProcessRaisedException, match="Process 1 terminated.*\n(.*\n)*OSError: no more"):
        run_ranks(sleep_or_fail, timeout=30)
    with pytest.raises(AssertionError, match="not finished after 0.1 seconds"):
        run_ranks(time.sleep, 60, timeout=0.1)
