"""Two gloo processes of 4 pairs are one process of 8 for whole stages: loss and gradient."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from datamodules.collate import PairCollator
from tests.support.ranks import run_ranks
from twn_lightning import distributed
from twn_lightning.batches import Pair
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.stages.base import OptimSpec
from twn_lightning.stages.contrastive import ContrastiveStage
from twn_lightning.stages.cot_sft import CotSftStage

OPTIM = OptimSpec(learning_rate=1e-3, total_steps=4)
ModelMaker = Callable[..., DualLoRAModel]


def step(name: str, model: DualLoRAModel, pairs: list[Pair]) -> dict[str, Tensor]:
    """Loss and gradients of a stage on these pairs."""
    stage = ContrastiveStage(model, OPTIM, temperature=0.1) if name == "contrastive" else CotSftStage(model, OPTIM, temperature=0.1)
    output = stage.step(PairCollator(model.processor, with_cot=True, max_negatives=1)(pairs))
    output.loss.backward()  # type: ignore[no-untyped-call]
    parts = model.named_part_parameters("reasoning", "embedding", "queries")
    gradients = {name: parameter.grad for name, parameter in parts.items() if parameter.grad is not None}
    return {"loss": output.loss.detach(), "hit_at_1": next(value for name, value in output.metrics.items() if "hit_at_1" in name), **gradients}


def run_rank(name: str, make_model: ModelMaker, pairs: list[Pair], folder: Path) -> None:
    with distributed.join_process_group(use_gpu=False):
        first = 4 * distributed.rank()
        results = step(name, make_model(), pairs[first : first + 4])
        means = {key: distributed.sum_over_ranks(value) / 2 for key, value in results.items()}  # what DDP and ZeRO do
        if first == 0:
            torch.save(means, folder / "means.pt")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["contrastive", "cot_sft"])
def test_two_ranks_of_four_are_one_of_eight(name: str, make_model: ModelMaker, make_pairs: Callable[[int], list[Pair]], tmp_path: Path) -> None:
    pairs = make_pairs(8)
    pairs = [pairs[row] for row in (1, 3, 5, 0, 4, 2, 6, 7)]  # 3 hard negatives on one rank, 1 on the other; the equal targets apart
    whole = step(name, make_model(), pairs)
    run_ranks(run_rank, name, make_model, pairs, tmp_path)
    means = torch.load(tmp_path / "means.pt", weights_only=True)
    assert means.keys() == whole.keys()
    for key, value in whole.items():
        torch.testing.assert_close(means[key], value, rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f"{key}: {text}")  # type: ignore[misc]
