"""A run's folder knows what is finished and with which settings."""

from pathlib import Path

import pytest

from experiments.runs import CONFIGS, STEPS, RunFolder, resolve_backbone
from twn_lightning.configs.load import load_config
from twn_lightning.errors import CheckpointError, ConfigError


def folder_of(tmp_path: Path, *overrides: str) -> RunFolder:
    config = load_config("mini", folder=CONFIGS, profile="cpu", overrides=[f"output_dir={tmp_path}", *overrides])
    folder = RunFolder(config)
    folder.create()
    return folder


def finish(folder: RunFolder, number: int) -> None:
    step = STEPS[number]
    folder.begin(step)
    folder.bundle(step).mkdir()
    (folder.bundle(step) / "twn_config.json").write_text("{}")
    folder.finish(step, {"seconds": 1.0})


def test_steps_follow_each_other(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    assert folder.last_done() is None
    folder.check("stage1")
    finish(folder, 0)
    assert folder.last_done() == STEPS[0]
    folder.check("stage2")
    with pytest.raises(CheckpointError, match="train stage2"):
        folder.check("stage3")


def test_an_interrupted_step_is_not_done(tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    folder.begin(STEPS[0])
    (folder.step(STEPS[0]) / "last.ckpt").write_text("state")
    assert not folder.is_done(STEPS[0])
    assert folder.checkpoint(STEPS[0]) is not None


def test_other_settings_are_refused_for_what_they_touch(tmp_path: Path) -> None:
    finish(folder_of(tmp_path), 0)
    with pytest.raises(ConfigError, match=r"begun with other settings: stages.contrastive.steps was \d+ and is 5.*--run NAME"):
        folder_of(tmp_path, "stages.contrastive.steps=5").check("stage1")
    folder_of(tmp_path, "stages.grpo.steps=5", "evaluation.batch_size=3", "trainer.progress_bar=false").check("stage2")


def test_a_backbone_is_a_folder_or_a_shipped_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert resolve_backbone(str(tmp_path)) == tmp_path.resolve()
    with pytest.raises(ConfigError, match="one of the names"):
        resolve_backbone("no_such_backbone")
