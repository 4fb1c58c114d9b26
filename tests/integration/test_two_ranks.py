"""Two gloo processes of 4 pairs are one process of 8: loss and gradient of InfoNCE, with hard negatives and equal targets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

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


def run_rank(rank: int, folder: str, first_negatives: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    try:
        own = slice(4 * rank, 4 * rank + 4)
        negative = slice(0, first_negatives) if rank == 0 else slice(first_negatives, 3)
        loss, gradient = step(own, negative)
        mean_gradient = distributed.sum_over_ranks(gradient) / 2  # what DDP and ZeRO do
        mean_loss = distributed.sum_over_ranks(loss) / 2
        objects = distributed.gather_objects({"rank": rank, "pairs": own.start})
        with distributed.rank_zero_first() as is_first:
            log = Path(folder) / "order.txt"
            seen = log.read_text(encoding="utf-8") if log.exists() else ""
            log.write_text(f"{seen}{rank}", encoding="utf-8")
        empty = distributed.gather(torch.zeros(0, 3))
        if is_first:
            torch.save({"loss": mean_loss, "gradient": mean_gradient, "empty": empty}, Path(folder) / "result.pt")
            (Path(folder) / "objects.txt").write_text(repr(objects), encoding="utf-8")
        dist.barrier()
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("first_negatives", [2, 3])
def test_two_ranks_of_four_equal_one_process_of_eight(tmp_path: Path, first_negatives: int) -> None:
    loss, gradient = step(slice(0, NUM_PAIRS), slice(0, 3))
    # Each rank runs this very file: under pytest's importlib mode a spawned process could not import it by name.
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    commands = [[sys.executable, __file__, str(rank), str(tmp_path), str(first_negatives)] for rank in range(2)]
    ranks = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for command in commands]
    try:
        for process in ranks:
            _, errors = process.communicate(timeout=60)
            assert process.returncode == 0, errors
    finally:
        for process in ranks:
            process.kill()
    result = torch.load(tmp_path / "result.pt", weights_only=True)
    assert result["loss"].item() == pytest.approx(loss.item(), abs=1e-6)
    assert torch.allclose(result["gradient"], gradient, atol=1e-6)
    assert result["empty"].shape == (0, 3)
    assert (tmp_path / "order.txt").read_text(encoding="utf-8") == "01"
    assert (tmp_path / "objects.txt").read_text(encoding="utf-8") == "[{'rank': 0, 'pairs': 0}, {'rank': 1, 'pairs': 4}]"


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
