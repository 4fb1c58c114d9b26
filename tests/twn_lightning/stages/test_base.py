"""What every stage gets from the base, shown on the smallest stage: the gate's."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins.precision import Precision
from lightning_utilities.core.apply_func import apply_to_collection
from torch.utils.data import DataLoader

from twn_lightning.batches import GateBatch, PairBatch
from twn_lightning.errors import CheckpointError, ConfigError, TwnError
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.stages.base import OptimSpec
from twn_lightning.stages.contrastive import ContrastiveStage
from twn_lightning.stages.gate import GateStage

OPTIM = OptimSpec(learning_rate=1e-2, total_steps=10)


class Memory(DummyLogger):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        metrics, step = (args or (kwargs["metrics"],))[0], kwargs.get("step", -1)
        self.metrics.append((step, dict(metrics)))


def gate_batches(model: DualLoRAModel, *, number: int = 3) -> DataLoader[GateBatch]:
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(6, model.gate.width, generator=generator)
    batch = GateBatch(state=state, gain=torch.tensor([1.0, -1.0] * 3))
    return DataLoader([batch] * number, batch_size=None)  # type: ignore[arg-type]


def trainer(**settings: Any) -> Trainer:
    defaults: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False, "max_steps": 3}
    defaults |= {"enable_checkpointing": False, "enable_model_summary": False, "log_every_n_steps": 1}
    return Trainer(**(defaults | settings))


def test_mixed_precision_trains_with_clipping(tiny_model: DualLoRAModel) -> None:
    """Lightning refuses to clip a fused optimiser there."""
    stage = GateStage(tiny_model, OPTIM)
    before = [parameter.detach().clone() for parameter in tiny_model.gate.parameters()]
    trainer(precision="bf16-mixed", gradient_clip_val=1.0).fit(stage, gate_batches(tiny_model))
    assert not all(map(torch.equal, before, tiny_model.gate.parameters()))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 0.75, 0.5, 0.25, 0.0]),
        ("cosine", [1 / 3, 2 / 3, 1, 0.5 + math.sqrt(0.5) / 2, 0.5, 0.5 - math.sqrt(0.5) / 2, 0.0]),
    ],
)
def test_learning_rate_rises_and_then_follows_its_schedule(schedule: Any, expected: list[float]) -> None:
    optim = OptimSpec(learning_rate=1.0, total_steps=6, warmup_steps=2, schedule=schedule)
    assert [optim.factor(step) for step in range(7)] == pytest.approx(expected)
    assert optim.factor(100) == pytest.approx(expected[-1])


def test_schedule_runs_by_optimiser_step_and_is_logged(tiny_model: DualLoRAModel) -> None:
    memory = Memory()
    optim = OptimSpec(learning_rate=0.1, total_steps=3, warmup_steps=1, schedule="linear")
    trainer(logger=memory).fit(GateStage(tiny_model, optim), gate_batches(tiny_model))
    logged = [metrics["gate/learning_rate"] for _, metrics in memory.metrics if "gate/learning_rate" in metrics]
    assert logged == pytest.approx([0.05, 0.1, 0.05])


def test_metrics_are_logged_under_the_stage_and_val_ones_apart(tiny_model: DualLoRAModel) -> None:
    memory = Memory()
    fit = trainer(logger=memory)
    fit.fit(GateStage(tiny_model, OPTIM), gate_batches(tiny_model), gate_batches(tiny_model, number=2))
    names = {name for _, metrics in memory.metrics for name in metrics} - {"epoch"}
    quantities = {"loss", "accuracy", "think_rate", "label_rate", "kept_rate", "gain"}
    assert names == {f"gate/{name}" for name in quantities | {"learning_rate"}} | {f"gate/val_{name}" for name in quantities}
    assert "gate/val_loss" in fit.callback_metrics


def test_vectors_are_not_decayed_and_matrices_are(tiny_model: DualLoRAModel) -> None:
    stage = GateStage(tiny_model, OptimSpec(learning_rate=1e-2, total_steps=10, weight_decay=0.5))
    groups = stage.configure_optimizers()["optimizer"].param_groups
    assert [group["weight_decay"] for group in groups] == [0.5, 0.0]
    assert {parameter.ndim for parameter in groups[0]["params"]} == {2}
    assert {parameter.ndim for parameter in groups[1]["params"]} == {1}
    assert sum(len(group["params"]) for group in groups) == len(tiny_model.named_part_parameters("gate"))


def test_an_optimiser_that_cannot_run_here_is_named_with_a_way_out(tiny_model: DualLoRAModel) -> None:
    stage = GateStage(tiny_model, OptimSpec(learning_rate=1e-2, total_steps=10, optimizer="adamw_8bit"))
    with pytest.raises(ConfigError, match=r"stages.gate.optim.optimizer is adamw_8bit, but training runs on cpu.*choose adamw"):
        stage.configure_optimizers()


def test_loss_that_is_not_finite_stops_with_what_to_do(tiny_model: DualLoRAModel) -> None:
    with torch.no_grad():
        next(iter(tiny_model.gate.parameters())).fill_(torch.nan)
    with pytest.raises(TwnError, match=r"Stage gate, step 0: the loss is not finite .*Lower the learning rate"):
        trainer().fit(GateStage(tiny_model, OPTIM), gate_batches(tiny_model))


def test_checkpoint_holds_the_trained_parameters_alone(tiny_model: DualLoRAModel) -> None:
    stage = ContrastiveStage(tiny_model, OPTIM)
    checkpoint: dict[str, Any] = {"state_dict": stage.state_dict()}
    stage.on_save_checkpoint(checkpoint)
    expected = {f"model.{name}" for name in tiny_model.named_part_parameters("embedding", "queries")}
    assert set(checkpoint["state_dict"]) == expected
    stage.on_load_checkpoint(checkpoint)


def test_checkpoint_of_another_stage_or_model_is_refused(make_model: Callable[..., DualLoRAModel]) -> None:
    model = make_model()
    gate: dict[str, Any] = {"state_dict": (stage := GateStage(model, OPTIM)).state_dict()}
    stage.on_save_checkpoint(gate)
    with pytest.raises(CheckpointError, match="of the stage 'gate' and cannot resume 'contrastive'"):
        ContrastiveStage(model, OPTIM).on_load_checkpoint(gate)
    removed = sorted(gate["state_dict"])[0]
    del gate["state_dict"][removed]
    with pytest.raises(CheckpointError, match=f"missing .*{removed}.*unknown nothing"):
        GateStage(model, OPTIM).on_load_checkpoint(gate)


def test_generator_is_the_same_within_a_step_and_another_in_the_next(tiny_model: DualLoRAModel) -> None:
    stage = GateStage(tiny_model, OPTIM, seed=3)
    first = torch.rand(4, generator=stage.generator())
    assert torch.equal(first, torch.rand(4, generator=stage.generator()))
    stage.micro_step = 1
    assert not torch.equal(first, torch.rand(4, generator=stage.generator()))
    stage.micro_step = 0
    assert not torch.equal(first, torch.rand(4, generator=GateStage(tiny_model, OPTIM, seed=4).generator()))
    stage.eval()
    assert not torch.equal(first, torch.rand(4, generator=stage.generator()))


class Modes(Callback):
    """Notes whether the model is in training mode when a batch is done."""

    def __init__(self) -> None:
        self.training: list[bool] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        self.training.append(pl_module.training and all(module.training for module in pl_module.modules()))


def test_a_model_that_comes_in_eval_mode_is_trained_in_training_mode(tiny_model: DualLoRAModel) -> None:
    modes = Modes()
    trainer(callbacks=[modes]).fit(GateStage(tiny_model.eval(), OPTIM), gate_batches(tiny_model))
    assert modes.training == [True] * 3


class Converting(Precision):
    """Converts each batch field by field, as Lightning's 16-bit and DeepSpeed precisions do."""

    def convert_input(self, data: Any) -> Any:
        return apply_to_collection(data, function=torch.clone, dtype=torch.Tensor)


def test_precisions_that_convert_batches_take_the_frozen_ones(tiny_model: DualLoRAModel) -> None:
    with pytest.raises(ValueError, match="frozen dataclass"):
        Converting().convert_input(next(iter(gate_batches(tiny_model))))
    fit = trainer(plugins=[Converting()], max_steps=1)
    fit.fit(GateStage(tiny_model, OPTIM), gate_batches(tiny_model))
    assert fit.global_step == 1


def test_quantities_of_a_pair_batch_are_logged_by_source_too(make_model: Callable[..., DualLoRAModel], make_batch: Callable[..., PairBatch]) -> None:
    model, memory = make_model(), Memory()
    batch = make_batch(model)
    loader: DataLoader[PairBatch] = DataLoader([batch], batch_size=None)  # type: ignore[arg-type]
    trainer(logger=memory, max_steps=1).fit(ContrastiveStage(model, OPTIM), loader, loader)
    logged = {key: value for _, metrics in memory.metrics for key, value in metrics.items()}
    for name in ("loss", "hit_at_1", "val_loss", "val_hit_at_1"):
        assert logged[f"contrastive/by_source/{batch.source}/{name}"] == logged[f"contrastive/{name}"]
