from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from twn_lightning.batches import PairBatch
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.models.dual_lora import DualLoRAModel, Part
from twn_lightning.stages.base import OptimSpec
from twn_lightning.stages.contrastive import ContrastiveStage
from twn_lightning.stages.cot_sft import CotSftStage, CotSftWeights

OPTIM = OptimSpec(learning_rate=1e-2, total_steps=30)


def touched(model: DualLoRAModel) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None and bool(parameter.grad.any())}


def test_cross_entropy_trains_the_reasoning_adapter_alone(tiny_model: DualLoRAModel, make_batch: Callable[..., PairBatch]) -> None:
    weights = CotSftWeights(cot=1.0, discriminative=0.0, generative=0.0, mixed=0.0)
    CotSftStage(tiny_model, OPTIM, weights=weights).step(make_batch(tiny_model)).loss.backward()  # type: ignore[no-untyped-call]
    # The last layer's query and output sides see the thought's tokens, so every reasoning tensor takes part.
    assert touched(tiny_model) == set(tiny_model.named_part_parameters("reasoning"))


@pytest.mark.parametrize("part", ["discriminative", "generative", "mixed"])
def test_info_nce_trains_embedding_adapter_and_queries_alone(part: str, tiny_model: DualLoRAModel, make_batch: Callable[..., PairBatch]) -> None:
    weights = CotSftWeights(**{"cot": 0.0, "discriminative": 0.0, "generative": 0.0, "mixed": 0.0, part: 1.0})
    CotSftStage(tiny_model, OPTIM, temperature=0.1, weights=weights).step(make_batch(tiny_model)).loss.backward()  # type: ignore[no-untyped-call]
    assert touched(tiny_model) == set(tiny_model.named_part_parameters("embedding", "queries"))


def test_without_the_detach_info_nce_reaches_the_reasoning_adapter_too(
    make_model: Callable[..., DualLoRAModel], make_batch: Callable[..., PairBatch]
) -> None:
    model = make_model(detach=False)
    weights = CotSftWeights(cot=0.0, discriminative=0.0, generative=1.0, mixed=0.0)
    CotSftStage(model, OPTIM, temperature=0.1, weights=weights).step(make_batch(model)).loss.backward()  # type: ignore[no-untyped-call]
    assert touched(model) & set(model.named_part_parameters("reasoning"))


def test_loss_is_the_weighted_sum_of_the_logged_parts(tiny_model: DualLoRAModel, make_batch: Callable[..., PairBatch]) -> None:
    weights = CotSftWeights(cot=0.5, discriminative=2.0, generative=3.0, mixed=0.25)
    output = CotSftStage(tiny_model, OPTIM, temperature=0.1, weights=weights).step(make_batch(tiny_model))
    parts = {name: output.metrics[f"loss_{name}"].item() for name in ("cot", "disc", "gen", "mixed")}
    assert output.loss.item() == pytest.approx(0.5 * parts["cot"] + 2 * parts["disc"] + 3 * parts["gen"] + 0.25 * parts["mixed"], rel=1e-5)
    assert {"token_accuracy", "hit_at_1_disc", "hit_at_1_gen"} <= output.metrics.keys()


@pytest.mark.parametrize("weight", ["cot", "discriminative", "generative", "mixed"])
def test_a_part_of_weight_zero_is_not_computed_and_changes_nothing(
    weight: str, make_model: Callable[..., DualLoRAModel], make_batch: Callable[..., PairBatch]
) -> None:
    name = {"discriminative": "disc", "generative": "gen"}.get(weight, weight)
    model = make_model()
    batch = make_batch(model)
    weights = CotSftWeights(**{"cot": 0.0, "discriminative": 0.0, "generative": 0.0, "mixed": 0.0, weight: 2.0})
    alone = CotSftStage(model, OPTIM, temperature=0.1, weights=weights).step(batch)
    every = CotSftStage(model, OPTIM, temperature=0.1).step(batch)
    assert [key for key in alone.metrics if key.startswith("loss_")] == [f"loss_{name}"]
    assert alone.loss.item() == pytest.approx(2.0 * every.metrics[f"loss_{name}"].item(), rel=1e-5)
    hits = {"cot": set(), "disc": {"hit_at_1_disc"}, "gen": {"hit_at_1_gen"}, "mixed": {"hit_at_1_disc", "hit_at_1_gen"}}
    assert {key for key in alone.metrics if "hit" in key} == hits[name]


def test_only_parts_that_a_loss_reaches_are_trainable(make_model: Callable[..., DualLoRAModel]) -> None:
    def trainable(weights: CotSftWeights, **settings: object) -> set[str]:
        stage = CotSftStage(make_model(**settings), OPTIM, weights=weights)
        return {name for name, parameter in stage.model.named_parameters() if parameter.requires_grad}

    def parts(*names: Part, **settings: object) -> set[str]:
        return set(make_model(**settings).named_part_parameters(*names))

    silent = CotSftWeights(cot=0.0, generative=0.0, mixed=0.0)
    assert trainable(silent) == parts("embedding", "queries")
    assert trainable(silent, detach=False) == parts("reasoning", "embedding", "queries")
    assert trainable(CotSftWeights(discriminative=0.0, generative=0.0, mixed=0.0)) == parts("reasoning")
    assert trainable(silent, detach=False, embedding=None) == parts("reasoning", "queries", detach=False, embedding=None)


def test_weights_that_train_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="would train nothing"):
        CotSftWeights(cot=0.0, discriminative=0.0, generative=0.0, mixed=0.0)


def test_discriminative_part_is_stage_one_on_the_same_batch(tiny_model: DualLoRAModel, make_batch: Callable[..., PairBatch]) -> None:
    batch = make_batch(tiny_model)
    joint = CotSftStage(tiny_model, OPTIM, temperature=0.1).step(batch).metrics
    alone = ContrastiveStage(tiny_model, OPTIM, temperature=0.1).step(batch)
    assert joint["loss_disc"].item() == pytest.approx(alone.loss.item(), rel=1e-4)
    assert joint["hit_at_1_disc"] == alone.metrics["hit_at_1"]


def test_a_batch_that_lacks_the_thoughts_of_a_side_is_refused(tiny_model: DualLoRAModel, make_batch: Callable[..., PairBatch]) -> None:
    batch = make_batch(tiny_model)
    for lacking in (replace(batch, query_thoughts=None), replace(batch, positive_thoughts=None)):
        with pytest.raises(DataError, match="source 'mixed' lacks some"):
            CotSftStage(tiny_model, OPTIM).step(lacking)


@pytest.mark.slow
def test_training_teaches_thoughts_and_both_embeddings(tiny_model: DualLoRAModel, make_batch: Callable[..., PairBatch]) -> None:
    stage = CotSftStage(tiny_model, OPTIM, temperature=0.1)
    batch = make_batch(tiny_model)
    optimizer = stage.configure_optimizers()["optimizer"]
    first = stage.step(batch).metrics
    for _ in range(25):
        optimizer.zero_grad()
        stage.step(batch).loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    last = stage.step(batch).metrics
    assert all(last[name] < first[name] / 2 for name in ("loss_cot", "loss_disc", "loss_gen", "loss_mixed"))
    assert last["token_accuracy"] > first["token_accuracy"] + 0.3
    assert last["hit_at_1_disc"] == last["hit_at_1_gen"] == 1.0


def test_gradient_checkpointing_changes_nothing(make_model: Callable[..., DualLoRAModel], make_batch: Callable[..., PairBatch]) -> None:
    gradients = []
    for recompute in (False, True):
        model = make_model()
        stage = CotSftStage(model, OPTIM, temperature=0.1)
        if recompute:
            model.enable_gradient_checkpointing()
        stage.step(make_batch(model)).loss.backward()  # type: ignore[no-untyped-call]
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters() if parameter.requires_grad})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_the_cross_entropy_is_computed_on_one_step_of_so_many(make_model: Callable[..., DualLoRAModel], make_batch: Callable[..., PairBatch]) -> None:
    model = make_model()
    batch = make_batch(model)
    stage = CotSftStage(model, OPTIM, temperature=0.1, cot_every=3)
    every = CotSftStage(model, OPTIM, temperature=0.1).step(batch)
    supervised = []
    for stage.micro_step in range(5):
        output = stage.step(batch)
        supervised.append("loss_cot" in output.metrics)
        for name in ("disc", "gen", "mixed"):
            assert output.metrics[f"loss_{name}"].item() == pytest.approx(every.metrics[f"loss_{name}"].item(), rel=1e-5)
    assert supervised == [True, False, False, True, False]
    output.loss.backward()  # type: ignore[no-untyped-call]
    assert touched(model) == set(model.named_part_parameters("embedding", "queries"))
    assert "loss_cot" in stage.eval().step(batch).metrics


def test_a_rare_cross_entropy_needs_other_losses(tiny_model: DualLoRAModel) -> None:
    weights = CotSftWeights(discriminative=0.0, generative=0.0, mixed=0.0)
    with pytest.raises(ConfigError, match="cot_every is 2, but the cross-entropy is the only loss"):
        CotSftStage(tiny_model, OPTIM, weights=weights, cot_every=2)


def test_the_reasoning_adapter_may_have_a_learning_rate_of_its_own(tiny_model: DualLoRAModel) -> None:
    stage = CotSftStage(tiny_model, OPTIM, learning_rates={"reasoning": 1e-3})
    optimizer = stage.configure_optimizers()["optimizer"]
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    parts: dict[Part, float] = {"reasoning": 1e-3, "embedding": 1e-2, "queries": 1e-2}
    for part, rate in parts.items():
        assert {rates[id(parameter)] for parameter in tiny_model.named_part_parameters(part).values()} == {rate}
