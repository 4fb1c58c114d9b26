"""A run's folder knows what is finished and with which settings."""

import shutil
from pathlib import Path

import pytest

from experiments.runs import CONFIGS, MAKERS, STEPS, RunFolder, backbone_digest, code_digest, done_numbers, num_steps, resolve_backbone
from twn_lightning.configs.load import load_config
from twn_lightning.errors import CheckpointError, ConfigError

ROOT = Path(__file__).parents[2]


def folder_of(tmp_path: Path, *overrides: str) -> RunFolder:
    config = load_config("mini", folder=CONFIGS, profile="cpu", overrides=[f"output_dir={tmp_path}", *overrides])
    folder = RunFolder(config)
    folder.create()
    return folder


def finish(folder: RunFolder, number: int) -> None:
    step = STEPS[number]
    folder.begin(step)
    folder.bundle(step).mkdir(exist_ok=True)
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


def test_a_step_goes_on_with_another_number_of_devices_if_the_batch_stays(tmp_path: Path) -> None:
    finish(folder_of(tmp_path, "stages.contrastive.batch_size=32"), 0)
    folder_of(tmp_path, "stages.contrastive.batch_size=8", "trainer.devices=2", "trainer.num_nodes=2").check("stage1")
    with pytest.raises(ConfigError, match="stages.contrastive.batch_size was 32 and is 64"):
        folder_of(tmp_path, "stages.contrastive.batch_size=32", "trainer.devices=2").check("stage1")
    with pytest.raises(ConfigError, match="was 32 and is 8 a GPU"):
        folder_of(tmp_path, "stages.contrastive.batch_size=8", "trainer.devices=-1").check("stage1")


def test_a_recipe_is_all_that_makes_a_step_and_those_before_it(tmp_path: Path) -> None:
    base = folder_of(tmp_path)
    for overrides, number_equal in (
        (["name=other", "evaluation.batch_size=3", "trainer.num_threads=1"], 5),
        (["stages.grpo.steps=5"], 3),
        (["stages.gate.tolerance=2"], 2),
        (["evaluation.validation_queries=9"], 0),
        (["seed=2"], 0),
        (["model.num_queries=7"], 0),
    ):
        other = folder_of(tmp_path / "others", *overrides)
        assert [base.recipe(step) == other.recipe(step) for step in STEPS] == [number < number_equal for number in range(5)], overrides
    assert base.recipe(STEPS[0], {"data_revision": "1"}) != base.recipe(STEPS[0], {"data_revision": "2"})


def test_a_finished_step_is_taken_over_by_its_recipe_alone(tmp_path: Path) -> None:
    first, second, third = (folder_of(tmp_path, f"name={name}") for name in ("first", "second", "third"))
    finish(first, 0)
    (first.step(STEPS[0]) / "last.ckpt").write_text("state")
    assert second.share(STEPS[0], first.recipe(STEPS[0]), "c") is None  # it noted no recipe
    first.finish(STEPS[0], {"seconds": 4.0, "recipe": first.recipe(STEPS[0]), "code": "c"})
    assert second.share(STEPS[0], "another recipe", "c") is None
    assert second.share(STEPS[0], second.recipe(STEPS[0]), "c") == "first"
    assert second.is_done(STEPS[0])
    assert second.checkpoint(STEPS[0]) is None
    done = done_numbers(second.step(STEPS[0]))
    assert (done["shared_from"], done["seconds"]) == ("first", 4.0)
    assert "shared_from" not in done_numbers(first.step(STEPS[0]))
    second.check("all")
    shutil.rmtree(first.path)
    assert third.share(STEPS[0], third.recipe(STEPS[0]), "c") == "first"  # who trained it, not who handed it on


def test_a_step_made_by_other_code_is_not_taken_over_and_stays_ones_own(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = (folder_of(tmp_path, f"name={name}") for name in ("first", "second"))
    step, recipe = STEPS[0], first.recipe(STEPS[0])
    finish(first, 0)
    for noted in ({}, {"code": "before"}):
        first.finish(step, {"seconds": 4.0, "recipe": recipe, **noted})
        caplog.clear()
        with caplog.at_level("INFO"):
            assert second.share(step, recipe, "now") is None
        assert "contrastive: not taken over from first, made by the same settings but by other code" in caplog.text
    assert first.is_done(step)
    first.check("stage2")


def test_the_code_of_a_step_is_that_of_the_steps_before_it_too(tmp_path: Path) -> None:
    first, second = (folder_of(tmp_path, f"name={name}") for name in ("first", "second"))
    for folder, code in ((first, "a"), (second, "b")):
        finish(folder, 0)
        assert folder.code(STEPS[1], "c") == f"{folder.config.name} c"  # the step before noted none
        folder.finish(STEPS[0], {"seconds": 1.0, "code": folder.code(STEPS[0], code)})
    assert [folder.code(STEPS[1], "c") for folder in (first, second)] == ["a c", "b c"]


def test_the_digest_of_code_follows_what_makes_a_step_and_nothing_else(tmp_path: Path) -> None:
    def copied() -> str:
        return code_digest(tmp_path / "copy")

    for maker in MAKERS:
        source, target = ROOT / maker, tmp_path / "copy" / maker
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    assert copied() == code_digest()
    (tmp_path / "copy" / "experiments" / "results_page.py").write_text("")
    (tmp_path / "copy" / "datamodules" / "notes.md").write_text("")
    assert copied() == code_digest()
    seen = {copied()}
    for changed in ("twn_lightning/losses/gate.py", "experiments/gating.py", "datamodules/mini/tasks.py"):
        with (tmp_path / "copy" / changed).open("a") as file:
            file.write("# another line\n")
        seen.add(copied())
    assert len(seen) == 4


def test_a_stage_without_steps_is_left_out(tmp_path: Path) -> None:
    config = folder_of(tmp_path, "stages.grpo.steps=0").config
    assert [num_steps(config, step) > 0 for step in STEPS] == [True, True, True, False, False]
    with pytest.raises(ConfigError, match=r"stages.grpo.steps is -1, but it counts optimiser steps \(0 leaves the stage out\)"):
        folder_of(tmp_path, "stages.grpo.steps=-1")


def test_the_backbone_is_known_by_its_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    digests = set()
    for content in (b"a", b"b", b"b" * 2):
        (tmp_path / "model.safetensors").write_bytes(content)
        digests.add(backbone_digest(str(tmp_path)))
    assert len(digests) == 3


def test_a_backbone_is_a_folder_or_a_shipped_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert resolve_backbone(str(tmp_path)) == tmp_path.resolve()
    with pytest.raises(ConfigError, match="one of the names"):
        resolve_backbone("no_such_backbone")
