"""An interrupted run that is resumed ends with the very parameters of a run that was not interrupted."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import Tensor

from callbacks.adapter_checkpoint import AdapterCheckpoint
from datamodules.gate_datamodule import GateDataModule
from datamodules.pair_datamodule import PairDataModule
from datamodules.pair_source import InMemorySource
from twn_lightning.batches import Item, Pair
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.outputs import Decoding
from twn_lightning.rewards.mix import RewardMix
from twn_lightning.stages.base import OptimSpec, StageModule
from twn_lightning.stages.contrastive import ContrastiveStage
from twn_lightning.stages.cot_sft import CotSftStage
from twn_lightning.stages.gate import GateStage
from twn_lightning.stages.grpo import GrpoSpec, GrpoStage

pytestmark = pytest.mark.slow

STEPS = 4
OPTIM = OptimSpec(learning_rate=5e-3, total_steps=STEPS, weight_decay=0.01, warmup_steps=1, schedule="cosine")
ModelMaker = Callable[..., DualLoRAModel]


def pairs(number: int) -> list[Pair]:
    return [
        Pair(
            query=Item(text=f"{i} + {i + 1}"),
            positive=Item(text=f"{2 * i + 1}"),
            negatives=(Item(text=f"{2 * i}"),),
            query_cot=f"{i} + {i + 1} = {2 * i + 1}",
            positive_cot=f"a number {2 * i + 1}",
            key=str(i),
        )
        for i in range(number)
    ]


def stage_of(name: str, model: DualLoRAModel) -> StageModule:  # type: ignore[type-arg]
    if name == "contrastive":
        return ContrastiveStage(model, OPTIM, temperature=0.1, seed=1)
    if name == "cot_sft":
        return CotSftStage(model, OPTIM, temperature=0.1, seed=1)
    if name == "gate":
        return GateStage(model, OPTIM, seed=1)
    spec = GrpoSpec(group_size=3, inner_epochs=3 if name == "grpo with inner epochs" else 1, score_temperature=0.1, length_target=2)
    return GrpoStage(
        model, OPTIM, spec=spec, decoding=Decoding(max_new_tokens=5, temperature=1.0), rewards=RewardMix({"rank": 1.0, "gain": 0.5}), seed=1
    )


def data_of(name: str, model: DualLoRAModel) -> LightningDataModule:
    if name == "gate":
        generator = torch.Generator().manual_seed(0)
        state, gain = torch.randn(40, model.gate.width, generator=generator), torch.randn(40, generator=generator)
        return GateDataModule(state, gain, batch_size=8, num_steps=STEPS, seed=2)
    return PairDataModule(
        [InMemorySource("sums", pairs(11))],
        model.processor,
        batch_size=3,
        num_steps=STEPS,
        seed=2,
        with_cot=name == "cot_sft",
        max_negatives=1,
        repeat=3 if name == "grpo with inner epochs" else 1,
    )


def train(
    name: str, model: DualLoRAModel, *callbacks: Callback, resume: Path | None = None, max_steps: int = STEPS, accumulate: int = 1
) -> dict[str, Tensor]:
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        max_steps=max_steps,
        accumulate_grad_batches=accumulate,
        gradient_clip_val=1.0,
        callbacks=list(callbacks),
        limit_val_batches=0,
    )
    trainer.fit(stage_of(name, model), data_of(name, model), ckpt_path=resume, weights_only=True)
    assert trainer.global_step == max_steps
    return {key: value.detach().clone() for key, value in model.named_parameters() if value.requires_grad}


def assert_equal(resumed: dict[str, Tensor], whole: dict[str, Tensor]) -> None:
    assert resumed.keys() == whole.keys()
    for key, value in whole.items():
        assert torch.equal(resumed[key], value), key


@pytest.mark.parametrize("name", ["contrastive", "cot_sft", "gate", "grpo", "grpo with inner epochs"])
def test_resumed_equals_uninterrupted(name: str, make_model: ModelMaker, tmp_path: Path) -> None:
    before = {key: value.detach().clone() for key, value in make_model().named_parameters()}
    whole = train(name, make_model())
    assert any(not torch.equal(value, before[key]) for key, value in whole.items())  # it learned something
    train(name, make_model(), AdapterCheckpoint(tmp_path, every_n_steps=2), max_steps=2)
    resumed = train(name, make_model(), AdapterCheckpoint(tmp_path, every_n_steps=2), resume=tmp_path / "last.ckpt")
    assert_equal(resumed, whole)


def test_resumed_equals_uninterrupted_with_dropout(make_model: ModelMaker, tmp_path: Path) -> None:
    whole = train("cot_sft", make_model(dropout=0.3))
    train("cot_sft", make_model(dropout=0.3), AdapterCheckpoint(tmp_path), max_steps=2)
    torch.manual_seed(12345)  # where the global generator stands must not matter
    assert_equal(train("cot_sft", make_model(dropout=0.3), resume=tmp_path / "last.ckpt"), whole)


class StopAt(Callback):
    """Fails in the middle of a batch, or is interrupted."""

    def __init__(self, batch_idx: int, exception: BaseException) -> None:
        self.batch_idx = batch_idx
        self.exception = exception

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if isinstance(pl_module, StageModule) and pl_module.micro_step == self.batch_idx:
            raise self.exception


@pytest.mark.usefixtures("_keeps_ctrl_c")
@pytest.mark.parametrize("exception", [KeyboardInterrupt(), RuntimeError("the disk is on fire")])
def test_run_stopped_between_two_saves_goes_on_from_its_last_step(exception: BaseException, make_model: ModelMaker, tmp_path: Path) -> None:
    whole = train("contrastive", make_model(), accumulate=2)
    with pytest.raises((SystemExit, RuntimeError)):
        train("contrastive", make_model(), StopAt(5, exception), AdapterCheckpoint(tmp_path, every_n_steps=100), accumulate=2)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 2
    assert_equal(train("contrastive", make_model(), resume=tmp_path / "last.ckpt", accumulate=2), whole)
