import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from twn_lightning.batches import Inputs, PairBatch
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.stages.base import OptimSpec
from twn_lightning.stages.contrastive import ContrastiveStage

OPTIM = OptimSpec(learning_rate=1e-2, total_steps=30)


def embed(model: DualLoRAModel, inputs: Inputs) -> Tensor:
    return model.embed(model.prefill(inputs)).vector.detach()


def slow_info_nce(rows: Tensor, columns: Tensor, row_hash: list[int], column_hash: list[int], temperature: float) -> tuple[float, float]:
    """Mean loss and hit@1 of rows whose positive is the column of the same number, in plain loops."""
    losses, hits = [], []
    for i, row in enumerate(rows):
        scores = {j: float(row @ column) for j, column in enumerate(columns) if j == i or column_hash[j] != row_hash[i]}
        losses.append(math.log(sum(math.exp(score / temperature) for score in scores.values())) - scores[i] / temperature)
        hits.append(all(score < scores[i] for j, score in scores.items() if j != i))
    return sum(losses) / len(losses), sum(hits) / len(hits)


def test_loss_is_that_of_plain_loops_over_targets_that_are_not_equal(tiny_model: DualLoRAModel, make_batch: Callable[..., PairBatch]) -> None:
    batch = make_batch(tiny_model, 5)
    assert batch.negative is not None
    assert batch.negative_hash is not None
    hashes = batch.positive_hash.tolist()
    assert hashes[0] == hashes[2]
    stage = ContrastiveStage(tiny_model, OPTIM, temperature=0.1)
    output = stage.step(batch)
    query, positive, negative = (embed(tiny_model, inputs) for inputs in (batch.query, batch.positive, batch.negative))
    targets, target_hash = torch.cat([positive, negative]), hashes + batch.negative_hash.tolist()
    forward, hit = slow_info_nce(query, targets, hashes, target_hash, 0.1)
    backward, _ = slow_info_nce(positive, query, hashes, hashes, 0.1)
    assert output.loss.item() == pytest.approx((forward + backward) / 2, rel=1e-5)
    assert output.metrics["hit_at_1"].item() == pytest.approx(hit)


def test_gradient_reaches_embedding_adapter_and_queries_alone(tiny_model: DualLoRAModel, make_batch: Callable[..., PairBatch]) -> None:
    stage = ContrastiveStage(tiny_model, OPTIM)
    stage.step(make_batch(tiny_model)).loss.backward()  # type: ignore[no-untyped-call]
    touched = {name for name, parameter in tiny_model.named_parameters() if parameter.grad is not None and bool(parameter.grad.any())}
    assert touched == set(tiny_model.named_part_parameters("embedding", "queries"))


def test_a_batch_without_negatives_is_one_of_in_batch_negatives(tiny_model: DualLoRAModel, make_batch: Callable[..., PairBatch]) -> None:
    batch = make_batch(tiny_model)
    stage = ContrastiveStage(tiny_model, OPTIM)
    without = stage.step(replace(batch, negative=None, negative_hash=None)).loss
    assert without < stage.step(batch).loss


@pytest.mark.slow
def test_training_makes_it_find_its_targets(tiny_model: DualLoRAModel, make_batch: Callable[..., PairBatch]) -> None:
    stage = ContrastiveStage(tiny_model, OPTIM, temperature=0.1)
    batch = make_batch(tiny_model, 5)
    optimizer = stage.configure_optimizers()["optimizer"]
    first = stage.step(batch)
    for _ in range(30):
        optimizer.zero_grad()
        stage.step(batch).loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    last = stage.step(batch)
    assert last.loss < first.loss / 2
    assert last.metrics["hit_at_1"] == 1.0
