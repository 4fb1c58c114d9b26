"""The whole way on a random backbone: four stages, gate refit, test tasks; interrupted and resumed; tracked in one MLflow run."""

import json
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from experiments import pipeline
from experiments.pipeline import run_pipeline
from experiments.runs import CONFIGS, STEPS, RunFolder
from experiments.tracking import store_uri
from twn_lightning.checkpoints import load_bundle
from twn_lightning.configs.load import load_config
from twn_lightning.configs.run import RunConfig

TASKS = "[DigitSum, FlagName]"


@pytest.fixture(scope="module")
def make_config(tiny_backbone_path: Path, tmp_path_factory: pytest.TempPathFactory) -> "type[_Configs]":
    _Configs.backbone, _Configs.output = tiny_backbone_path, tmp_path_factory.mktemp("runs")
    return _Configs


class _Configs:
    backbone: Path
    output: Path

    @classmethod
    def named(cls, name: str, *overrides: str) -> RunConfig:
        settings = [
            f"name={name}",
            f"output_dir={cls.output}",
            f"backbone.path={cls.backbone}",
            f"data.tasks={TASKS}",
            "backbone.max_thought_tokens=256",
            "trainer.progress_bar=false",
            *overrides,
        ]
        return load_config("mini", folder=CONFIGS, profile="smoke", overrides=settings)


def tensors(folder: RunFolder, number: int) -> dict[str, torch.Tensor]:
    bundle = folder.bundle(STEPS[number])
    adapters = {
        f"{name}.{key}": value
        for name in ("reasoning", "embedding")
        for key, value in load_file(str(bundle / name / "adapter_model.safetensors")).items()
    }
    parts = {name: torch.load(bundle / name, weights_only=True) for name in ("queries.pt", "gate_mlp.pt")}
    return adapters | {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}


@pytest.fixture(scope="module")
def finished(make_config: type[_Configs]) -> RunConfig:
    config = make_config.named("whole")
    report = run_pipeline(config, "all")
    assert report is not None
    assert {row.name for row in report.rows} == {"DigitSum", "FlagName"}
    return config


def test_the_run_folder_is_complete(finished: RunConfig) -> None:
    folder = RunFolder(finished)
    assert folder.last_done() == STEPS[-1]
    assert (folder.path / "report.md").read_text().startswith("| task |")
    assert (folder.path / "figures" / "scores.png").stat().st_size > 0
    model = load_bundle(folder.bundle(STEPS[-1]))
    assert len(model.gate.curve) == 51
    settings = json.loads((folder.bundle(STEPS[-1]) / "twn_config.json").read_text())
    assert {"commit", "data_revision", "seed", "step"} <= set(settings["provenance"])


def test_each_stage_changes_its_own_parts_alone(finished: RunConfig) -> None:
    bundles = [tensors(RunFolder(finished), number) for number in range(len(STEPS))]

    def changed(before: int, after: int) -> set[str]:
        keys = [key for key in bundles[0] if not torch.equal(bundles[before][key], bundles[after][key])]
        return {key.partition(".")[0] for key in keys}

    assert changed(0, 1) == {"reasoning", "embedding", "queries"}
    assert changed(1, 2) == {"gate_mlp"}
    assert changed(2, 3) <= {"reasoning"}
    assert changed(3, 4) == {"gate_mlp"}


def test_mlflow_holds_a_parent_and_a_child_for_each_step(finished: RunConfig) -> None:
    client = MlflowClient(tracking_uri=store_uri(finished))
    runs = json.loads((RunFolder(finished).path / "mlflow.json").read_text())["runs"]
    assert set(runs) == {"", *(step.name for step in STEPS), "evaluation"}
    parent = client.get_run(runs[""])
    assert parent.info.status == "FINISHED"
    assert "test/DigitSum/auto" in parent.data.metrics
    child = client.get_run(runs["grpo"])
    assert child.data.tags["mlflow.parentRunId"] == runs[""]
    assert {"grpo/reward", "grpo/kl", "grpo/reward_retrieval", "grpo/loss"} <= set(child.data.metrics)
    assert {"bundle", "samples"} <= {file.path for file in client.list_artifacts(runs["grpo"])}


def test_a_second_call_trains_nothing_and_shows_the_table(
    finished: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline, "run_step", None)
    report = run_pipeline(finished, "all")
    assert report is not None
    assert "DigitSum" in capsys.readouterr().out


@pytest.mark.parametrize("number", [0, 1, 3], ids=["contrastive", "cot_sft", "grpo"])
def test_stopped_by_ctrl_c_and_started_again_it_ends_the_same(
    number: int, finished: RunConfig, make_config: type[_Configs], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config.named(f"stopped{number}")
    folder, whole = RunFolder(config), RunFolder(finished)
    folder.create()
    for earlier in STEPS[:number]:
        folder.step(earlier).symlink_to(whole.step(earlier))
    stage = {0: "contrastive.ContrastiveStage", 1: "cot_sft.CotSftStage", 3: "grpo.GrpoStage"}[number]
    module_name, class_name = stage.split(".")
    stage_class = getattr(__import__(f"twn_lightning.stages.{module_name}", fromlist=[class_name]), class_name)
    step_of, calls = stage_class.step, []

    def interrupted(self: object, batch: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return step_of(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(stage_class, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_pipeline(config, STEPS[number].command)
    assert folder.checkpoint(STEPS[number]) is not None
    assert not folder.is_done(STEPS[number])
    if number == 3:
        monkeypatch.setattr(pipeline, "STEPS", STEPS[:4])
    run_pipeline(config, STEPS[number].command)
    expected, found = tensors(whole, number), tensors(folder, number)
    assert all(torch.equal(expected[key], found[key]) for key in expected)
