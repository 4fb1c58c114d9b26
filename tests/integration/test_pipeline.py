"""The whole way on a random backbone: four stages, gate refit, test tasks; interrupted and resumed; tracked in one MLflow run."""

import json
import shutil
import signal
from collections.abc import Callable

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from experiments import gating, pipeline
from experiments.pipeline import run_pipeline
from experiments.runs import CONFIGS, STEPS, RunFolder, Step, done_numbers
from experiments.tracking import store_uri
from twn_lightning.checkpoints import load_bundle
from twn_lightning.configs.load import load_config
from twn_lightning.configs.run import RunConfig
from twn_lightning.evaluation.report import Report
from twn_lightning.stages.gate import GateStage


@pytest.fixture
def make_config(smoke_settings: list[str]) -> Callable[..., RunConfig]:
    def named(name: str, *overrides: str) -> RunConfig:
        return load_config("mini", folder=CONFIGS, profile="smoke", overrides=[*smoke_settings, f"name={name}", *overrides])

    return named


def tensors(folder: RunFolder, number: int) -> dict[str, torch.Tensor]:
    bundle = folder.bundle(STEPS[number])
    adapters = {
        f"{name}.{key}": value
        for name in ("reasoning", "embedding")
        for key, value in load_file(str(bundle / name / "adapter_model.safetensors")).items()
    }
    parts = {name: torch.load(bundle / name, weights_only=True) for name in ("queries.pt", "gate_mlp.pt")}
    return adapters | {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}


def test_the_run_folder_is_complete(finished_run: RunConfig) -> None:
    folder = RunFolder(finished_run)
    assert folder.last_done() == STEPS[-1]
    assert (folder.path / "report.md").read_text().startswith("| task |")
    assert (folder.path / "figures" / "scores.png").stat().st_size > 0
    model = load_bundle(folder.bundle(STEPS[-1]))
    assert [model.gate.curve[place]["threshold"] for place in (0, -1)] == [0.0, 1.0]
    settings = json.loads((folder.bundle(STEPS[-1]) / "twn_config.json").read_text())
    assert {"commit", "data_revision", "seed", "step"} <= set(settings["provenance"])


def test_each_stage_changes_its_own_parts_alone(finished_run: RunConfig) -> None:
    bundles = [tensors(RunFolder(finished_run), number) for number in range(len(STEPS))]

    def changed(before: int, after: int) -> set[str]:
        keys = [key for key in bundles[0] if not torch.equal(bundles[before][key], bundles[after][key])]
        return {key.partition(".")[0] for key in keys}

    assert changed(0, 1) == {"reasoning", "embedding", "queries"}
    assert changed(1, 2) == {"gate_mlp"}
    assert changed(2, 3) <= {"reasoning"}
    assert changed(3, 4) == {"gate_mlp"}


def test_mlflow_holds_a_parent_and_a_child_for_each_step(finished_run: RunConfig) -> None:
    client = MlflowClient(tracking_uri=store_uri(finished_run))
    runs = json.loads((RunFolder(finished_run).path / "mlflow.json").read_text())["runs"]
    assert set(runs) >= {"", *(step.name for step in STEPS), "evaluation"}
    parent = client.get_run(runs[""])
    assert parent.info.status == "FINISHED"
    assert "test/DigitSum/auto" in parent.data.metrics
    child = client.get_run(runs["grpo"])
    assert child.data.tags["mlflow.parentRunId"] == runs[""]
    assert {"grpo/reward", "grpo/kl", "grpo/reward_retrieval", "grpo/loss"} <= set(child.data.metrics)
    assert {"bundle", "samples"} <= {file.path for file in client.list_artifacts(runs["grpo"])}
    for name in ("gate", "gate_refit"):
        steps = [metric.step for metric in client.get_metric_history(runs[name], "gate_curve/quality")]
        assert (steps[0], steps[-1]) == (100, 0)  # per cent of the tokens that always thinking costs
        assert "gate/chosen_reasoning_tokens" in client.get_run(runs[name]).data.metrics


def test_a_second_call_trains_nothing_and_shows_the_table(
    finished_run: RunConfig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline, "run_step", None)
    report = run_pipeline(finished_run, "all")
    assert report is not None
    assert "DigitSum" in capsys.readouterr().out


@pytest.mark.parametrize("number", [0, 1, 3], ids=["contrastive", "cot_sft", "grpo"])
def test_stopped_by_ctrl_c_and_started_again_it_ends_the_same(
    number: int, finished_run: RunConfig, make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(f"stopped{number}")
    folder, whole = RunFolder(config), RunFolder(finished_run)
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
            signal.raise_signal(signal.SIGINT)
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


def interrupt_call(number: int, function: Callable[..., object]) -> Callable[..., object]:
    """The function, with Ctrl-C in the middle of its n-th call."""
    calls = []

    def interrupted(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == number:
            signal.raise_signal(signal.SIGINT)
        return function(*args, **kwargs)

    return interrupted


def test_stopped_by_ctrl_c_again_and_again_from_labelling_to_the_table_it_ends_the_same(
    finished_run: RunConfig, make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("stopped_late")
    folder, whole = RunFolder(config), RunFolder(finished_run)
    folder.create()
    for earlier in STEPS[:4]:
        folder.step(earlier).symlink_to(whole.step(earlier))
    places: list[tuple[object, str, int]] = [
        (pipeline, "encode_tasks", 1),  # of the validation tasks
        (gating, "self_label", 1),
        (GateStage, "step", 2),
        (pipeline, "choose_threshold", 1),
        (pipeline, "encode_tasks", 2),  # of the test tasks
    ]
    for place, name, number in places:
        with monkeypatch.context() as patch:
            patch.setattr(place, name, interrupt_call(number, getattr(place, name)))
            with pytest.raises(KeyboardInterrupt):
                run_pipeline(config, "all")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert folder.is_done(STEPS[4])
    assert not (folder.path / "report.json").exists()
    report = run_pipeline(config, "all")
    assert report is not None
    expected, found = tensors(whole, 4), tensors(folder, 4)
    assert all(torch.equal(expected[key], found[key]) for key in expected)
    before = Report.from_json((whole.path / "report.json").read_text())
    assert {row.name: row.scores for row in report.rows} == {row.name: row.scores for row in before.rows}


def test_other_settings_of_the_evaluation_are_evaluated_anew(
    finished_run: RunConfig, make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config("evaluated_anew", "evaluation.max_queries=2")
    shutil.copytree(RunFolder(finished_run).path, RunFolder(config).path, ignore=shutil.ignore_patterns("mlflow.json"))
    monkeypatch.setattr(pipeline, "run_step", None)
    report = run_pipeline(config, "all")
    assert report is not None
    assert {row.num_queries for row in report.rows} == {2}


def test_stages_left_out_hand_on_and_equal_steps_are_taken_over(
    finished_run: RunConfig, make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without stage 4: stages 1 to 3 are the finished run's, the last two hand on stage 3's bundle with its gate, and nothing is trained."""
    config = make_config("left_out", "stages.grpo.steps=0")
    monkeypatch.setattr(pipeline, "run_step", None)
    report = run_pipeline(config, "all", share=True)
    assert report is not None
    folder, whole = RunFolder(config), RunFolder(finished_run)
    assert [done_numbers(folder.step(step)).get("shared_from") for step in STEPS] == ["done", "done", "done", None, None]
    expected = tensors(whole, 2)
    for number in (2, 3, 4):
        found = tensors(folder, number)
        assert all(torch.equal(expected[key], found[key]) for key in expected)
    gates = [json.loads((run.bundle(STEPS[number]) / "twn_config.json").read_text())["gate"] for run, number in ((whole, 2), (folder, 4))]
    assert gates[0] == gates[1]
    assert (folder.path / "record.json").is_file()


def test_steps_of_other_code_are_kept_as_ones_own_but_not_taken_over(
    finished_run: RunConfig, make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "code_digest", lambda: "of other code")
    trained: list[str] = []

    def stop(config: RunConfig, step: Step, *args: object, **kwargs: object) -> None:
        trained.append(step.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "run_step", stop)
    assert run_pipeline(finished_run, "all", share=True) is not None
    assert trained == []
    with pytest.raises(KeyboardInterrupt):
        run_pipeline(make_config("other_code"), "all", share=True)
    assert trained == ["contrastive"]


@pytest.mark.slow
def test_with_every_stage_left_out_the_fresh_model_is_evaluated(make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config("fresh", *(f"stages.{name}.steps=0" for name in ("contrastive", "cot_sft", "gate", "grpo")))
    monkeypatch.setattr(pipeline, "run_step", None)
    assert run_pipeline(config, "all") is not None
    folder = RunFolder(config)
    first, last = tensors(folder, 0), tensors(folder, 4)
    assert all(torch.equal(first[key], last[key]) for key in first)
    assert all(not tensor.any() for key, tensor in last.items() if "lora_B" in key)
    assert load_bundle(folder.bundle(STEPS[-1])).gate.threshold == 0.5
