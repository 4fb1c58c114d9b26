from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from experiments.command_line import FAILED, run_command
from experiments.convert import convert, main, step_of
from experiments.runs import STEPS, RunFolder
from twn_lightning.checkpoints import load_bundle
from twn_lightning.configs.run import RunConfig
from twn_lightning.errors import CheckpointError
from twn_lightning.trainables import Trainables


def arguments(config: RunConfig, checkpoint: Path, folder: Path) -> list[str]:
    return [str(checkpoint), str(folder), "--run", config.name, f"output_dir={config.output_dir}", f"backbone.path={config.backbone.path}"]


def test_the_last_checkpoint_of_a_stage_becomes_its_bundle(finished_run: RunConfig, tmp_path: Path) -> None:
    folder = RunFolder(finished_run)
    for number in (0, 1, 4):
        step, target = STEPS[number], tmp_path / str(number)
        convert(finished_run, folder.step(step) / "last.ckpt", target)
        for adapter in ("reasoning", "embedding"):
            name = Path(adapter) / "adapter_model.safetensors"
            own, expected = load_file(str(target / name)), load_file(str(folder.bundle(step) / name))
            assert own.keys() == expected.keys()
            assert all(torch.equal(own[key], value) for key, value in expected.items())
        for name in (Path("queries.pt"), Path("gate_mlp.pt")):
            own, expected = (torch.load(place / name, weights_only=True) for place in (target, folder.bundle(step)))
            assert all(torch.equal(own[key], value) for key, value in expected.items())
        assert load_bundle(target).num_queries == finished_run.model.num_queries


def test_the_command_says_what_is_wrong_in_one_line(finished_run: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = RunFolder(finished_run).step(STEPS[0]) / "last.ckpt"
    assert run_command(main, arguments(finished_run, tmp_path / "no.ckpt", tmp_path / "new")) == FAILED
    assert "There is no checkpoint at" in capsys.readouterr().err
    assert run_command(main, arguments(finished_run, checkpoint, tmp_path)) == FAILED
    assert "is there already" in capsys.readouterr().err
    assert run_command(main, arguments(finished_run, checkpoint, tmp_path / "new")) == 0
    assert (tmp_path / "new" / "twn_config.json").is_file()


def test_a_step_is_known_by_its_folder_then_by_its_stage() -> None:
    gate = Trainables(stage="gate", global_step=1, sharding="", tensors={})
    assert step_of(gate, Path("runs/a/5_gate_refit/last.ckpt")).name == "gate_refit"
    assert step_of(gate, Path("elsewhere/last.ckpt")).name == "gate"
    with pytest.raises(CheckpointError, match="of a stage 'gates'"):
        step_of(Trainables(stage="gates", global_step=1, sharding="", tensors={}), Path("last.ckpt"))
