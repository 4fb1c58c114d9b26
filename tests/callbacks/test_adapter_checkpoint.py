import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from callbacks.adapter_checkpoint import AdapterCheckpoint, can_resume, replace_checkpoint, resume_from
from callbacks.sinks import log_metrics
from twn_lightning.batches import GateBatch
from twn_lightning.errors import CheckpointError, ConfigError
from twn_lightning.stages.gate import GateStage
from twn_lightning.trainables import Trainables, read_trainables

TrainerMaker = Callable[..., Trainer]
Loader = DataLoader[GateBatch]


class Scores(Callback):
    """Logs given scores at given steps."""

    def __init__(self, scores: dict[int, float]) -> None:
        self.scores = scores

    def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
        if trainer.global_step in self.scores:
            log_metrics(trainer, {"score": self.scores[trainer.global_step]})


class RaiseAt(Callback):
    def __init__(self, step: int, exception: BaseException) -> None:
        self.step = step
        self.exception = exception

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        if trainer.global_step == self.step:
            raise self.exception


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def load(path: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(path, weights_only=True)
    return checkpoint


def test_last_holds_trained_parameters_optimiser_schedule_and_loops(
    make_trainer: TrainerMaker, gate_stage: GateStage, gate_loader: Loader, tmp_path: Path
) -> None:
    make_trainer(AdapterCheckpoint(tmp_path / "new" / "folder", every_n_steps=2)).fit(gate_stage, gate_loader)
    assert names(tmp_path / "new" / "folder") == ["last.ckpt"]
    checkpoint = load(tmp_path / "new" / "folder" / "last.ckpt")
    assert checkpoint["global_step"] == 6
    assert set(checkpoint["state_dict"]) == {f"model.{name}" for name in gate_stage.model.named_part_parameters("gate")}
    assert {"optimizer_states", "lr_schedulers", "loops", "callbacks"} <= checkpoint.keys()


def test_best_are_kept_by_the_metric_and_worse_ones_removed(
    make_trainer: TrainerMaker, gate_stage: GateStage, gate_loader: Loader, tmp_path: Path
) -> None:
    checkpoint = AdapterCheckpoint(tmp_path, every_n_steps=1, monitor="score", top_k=2)
    make_trainer(Scores({1: 0.3, 2: 0.1, 3: 0.5, 5: 0.4}), checkpoint).fit(gate_stage, gate_loader)
    assert names(tmp_path) == ["last.ckpt", "step=000003.ckpt", "step=000005.ckpt"]
    assert list(checkpoint.best) == ["step=000003.ckpt", "step=000005.ckpt"]
    assert checkpoint.best == pytest.approx({"step=000003.ckpt": 0.5, "step=000005.ckpt": 0.4})
    assert load(tmp_path / "step=000003.ckpt")["global_step"] == 3


def test_smaller_is_better_on_request(make_trainer: TrainerMaker, gate_stage: GateStage, gate_loader: Loader, tmp_path: Path) -> None:
    make_trainer(Scores({1: 0.3, 2: 0.1, 3: 0.5}), AdapterCheckpoint(tmp_path, every_n_steps=1, monitor="score", mode="min")).fit(
        gate_stage, gate_loader
    )
    assert names(tmp_path) == ["last.ckpt", "step=000002.ckpt"]


def test_best_are_known_after_a_resume(make_trainer: TrainerMaker, gate_stage: GateStage, gate_loader: Loader, tmp_path: Path) -> None:
    make_trainer(Scores({1: 0.9}), AdapterCheckpoint(tmp_path, every_n_steps=1, monitor="score"), max_steps=2).fit(gate_stage, gate_loader)
    again = AdapterCheckpoint(tmp_path, every_n_steps=1, monitor="score")
    make_trainer(Scores({4: 0.8}), again, max_steps=4).fit(gate_stage, gate_loader, ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert again.best == pytest.approx({"step=000001.ckpt": 0.9})
    assert names(tmp_path) == ["last.ckpt", "step=000001.ckpt"]


def test_a_score_of_the_end_counts_although_the_last_step_was_saved_already(
    make_trainer: TrainerMaker, gate_stage: GateStage, gate_loader: Loader, tmp_path: Path
) -> None:
    class AtEnd(Callback):
        def on_train_end(self, trainer: Trainer, *args: object) -> None:
            log_metrics(trainer, {"score": 0.7})

    make_trainer(AtEnd(), AdapterCheckpoint(tmp_path, every_n_steps=2, monitor="score"), max_steps=4).fit(gate_stage, gate_loader)
    assert names(tmp_path) == ["last.ckpt", "step=000004.ckpt"]
    states = load(tmp_path / "last.ckpt")["callbacks"]
    assert states["AdapterCheckpoint"]["best"] == pytest.approx({"step=000004.ckpt": 0.7})


def test_a_sharded_checkpoint_is_a_folder_and_replaces_the_one_before(tmp_path: Path) -> None:
    for number in (1, 2):
        part = tmp_path / ".last.ckpt.part"
        part.mkdir()
        (part / f"shard {number}").write_bytes(b"x")
        replace_checkpoint(part, tmp_path / "last.ckpt")
    assert names(tmp_path) == ["last.ckpt"]
    assert names(tmp_path / "last.ckpt") == ["shard 2"]


def test_metric_that_nothing_logs_is_named(
    make_trainer: TrainerMaker, gate_stage: GateStage, gate_loader: Loader, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make_trainer(AdapterCheckpoint(tmp_path, monitor="scroe"), max_steps=1).fit(gate_stage, gate_loader)
    assert "Nothing logged 'scroe'" in caplog.text
    assert "gate/loss" in caplog.text


def test_time_also_says_when_to_save(make_trainer: TrainerMaker, gate_stage: GateStage, gate_loader: Loader, tmp_path: Path) -> None:
    class Look(Callback):
        seen: list[int]

        def on_train_batch_start(self, trainer: Trainer, *args: object) -> None:
            if trainer.global_step:
                self.seen.append(load(tmp_path / "last.ckpt")["global_step"])

    look = Look()
    look.seen = []
    make_trainer(look, AdapterCheckpoint(tmp_path, every_n_steps=0, every_n_seconds=1e-9), max_steps=3).fit(gate_stage, gate_loader)
    assert look.seen == [1, 2]


@pytest.mark.usefixtures("_keeps_ctrl_c")
@pytest.mark.parametrize("exception", [KeyboardInterrupt(), RuntimeError("no")])
def test_interruption_and_failure_save_the_last_step(
    exception: BaseException, make_trainer: TrainerMaker, gate_stage: GateStage, gate_loader: Loader, tmp_path: Path
) -> None:
    with pytest.raises((SystemExit, RuntimeError)):
        make_trainer(RaiseAt(3, exception), AdapterCheckpoint(tmp_path, every_n_steps=2)).fit(gate_stage, gate_loader)
    assert load(tmp_path / "last.ckpt")["global_step"] == 3
    assert names(tmp_path) == ["last.ckpt"]


def test_broken_parameters_do_not_replace_the_last_checkpoint(
    make_trainer: TrainerMaker, gate_stage: GateStage, gate_loader: Loader, tmp_path: Path
) -> None:
    class Break(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
            if trainer.global_step == 3:
                with torch.no_grad():
                    next(parameter for parameter in pl_module.parameters() if parameter.requires_grad).fill_(torch.nan)

    with pytest.raises(Exception, match="not finite"):
        make_trainer(Break(), AdapterCheckpoint(tmp_path, every_n_steps=2)).fit(gate_stage, gate_loader)
    assert load(tmp_path / "last.ckpt")["global_step"] == 2


def test_unwritable_folder_is_named_before_training(make_trainer: TrainerMaker, gate_stage: GateStage, gate_loader: Loader, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"file/run: .*Choose another output folder"):
        make_trainer(RaiseAt(0, AssertionError("trained")), AdapterCheckpoint(tmp_path / "file" / "run")).fit(gate_stage, gate_loader)


def test_a_save_that_fails_leaves_the_last_checkpoint(
    make_trainer: TrainerMaker, gate_stage: GateStage, gate_loader: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Trainer.save_checkpoint

    def full(trainer: Trainer, path: Path, **settings: Any) -> None:
        if trainer.global_step > 2:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        whole(trainer, path, **settings)

    monkeypatch.setattr(Trainer, "save_checkpoint", full)
    with pytest.raises(CheckpointError, match=r"No space left on device.*last.ckpt is untouched"):
        make_trainer(AdapterCheckpoint(tmp_path, every_n_steps=2)).fit(gate_stage, gate_loader)
    assert names(tmp_path) == ["last.ckpt"]
    assert load(tmp_path / "last.ckpt")["global_step"] == 2


@pytest.mark.usefixtures("_keeps_ctrl_c")
def test_an_interruption_while_saving_is_made_good(
    make_trainer: TrainerMaker, gate_stage: GateStage, gate_loader: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Trainer.save_checkpoint
    interrupted: list[int] = []

    def interrupt_once(trainer: Trainer, path: Path, **settings: Any) -> None:
        if trainer.global_step == 4 and not interrupted:
            interrupted.append(4)
            Path(path).write_bytes(b"half")
            raise KeyboardInterrupt
        whole(trainer, path, **settings)

    (tmp_path / ".last.ckpt.0123abcd.part").write_bytes(b"of a process that was killed")
    monkeypatch.setattr(Trainer, "save_checkpoint", interrupt_once)
    with pytest.raises(SystemExit):
        make_trainer(AdapterCheckpoint(tmp_path, every_n_steps=2)).fit(gate_stage, gate_loader)
    assert names(tmp_path) == ["last.ckpt"]
    assert load(tmp_path / "last.ckpt")["global_step"] == 4


def test_numbers_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="every_n_steps"):
        AdapterCheckpoint(tmp_path, every_n_steps=-1)
    with pytest.raises(ConfigError, match="mode is 'maximum'"):
        AdapterCheckpoint(tmp_path, mode="maximum")  # type: ignore[arg-type]


def test_a_checkpoint_of_one_file_is_resumed_whole_and_a_sharded_one_is_not(
    make_trainer: TrainerMaker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer()
    (tmp_path / "last.ckpt").mkdir()
    with pytest.raises(CheckpointError, match=r"no trained parameters at .*last.trainables.safetensors"):
        can_resume(trainer, tmp_path / "last.ckpt")
    Trainables(stage="gate", global_step=3, sharding="ZeRO-3 on 4 ranks", tensors={"a": torch.zeros(1)}).save(
        tmp_path / "last.trainables.safetensors"
    )
    assert can_resume(trainer, tmp_path / "file.ckpt")
    assert not [record for record in caplog.records if record.name.startswith("callbacks")]
    assert not can_resume(trainer, tmp_path / "last.ckpt")
    assert "is of ZeRO-3 on 4 ranks, and training goes on with one file" in caplog.text
    assert "moments start anew" in caplog.text


def test_trained_parameters_alone_take_up_step_schedule_data_and_best(
    make_trainer: TrainerMaker, gate_stage: GateStage, gate_loader: Loader, tmp_path: Path
) -> None:
    make_trainer(Scores({1: 0.9}), AdapterCheckpoint(tmp_path, every_n_steps=1, monitor="score"), max_steps=2).fit(gate_stage, gate_loader)
    trained = read_trainables(tmp_path / "last.ckpt")
    expected = {name: tensor.clone() for name, tensor in trained.tensors.items()}
    with torch.no_grad():
        for parameter in gate_stage.model.gate.parameters():
            parameter.zero_()
    again = AdapterCheckpoint(tmp_path, every_n_steps=1, monitor="score")
    trainer = make_trainer(again, RaiseAt(2, RuntimeError("looked")))
    resume_from(trainer, gate_stage, trained)
    with pytest.raises(RuntimeError, match="looked"):
        trainer.fit(gate_stage, gate_loader)
    assert (trainer.global_step, gate_stage.micro_step) == (2, 2)
    assert all(torch.equal(gate_stage.model.get_parameter(name), tensor) for name, tensor in expected.items())
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.02 * gate_stage.optim.factor(2))
    assert again.best == pytest.approx({"step=000001.ckpt": 0.9})
    with pytest.raises(CheckpointError, match="of the stage 'grpo' and cannot resume 'gate'"):
        resume_from(trainer, gate_stage, dataclasses.replace(trained, stage="grpo"))
