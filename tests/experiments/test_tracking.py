"""What is logged can be read back from a sqlite store, and a resumed pipeline goes on in the same MLflow runs."""

import dataclasses
import platform
import threading
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from mlflow import MlflowClient

from experiments.runs import CONFIGS
from experiments.tracking import Tracking, commit, device_name, metric_key, store_lock, store_uri
from twn_lightning.configs.load import load_config
from twn_lightning.configs.run import RunConfig
from twn_lightning.errors import ConfigError


@pytest.fixture(scope="module")
def config(smoke_settings: list[str]) -> RunConfig:
    return load_config("mini", folder=CONFIGS, overrides=[*smoke_settings, "name=tracked"])


@pytest.fixture(scope="module")
def client(config: RunConfig) -> MlflowClient:
    return MlflowClient(tracking_uri=store_uri(config))


def test_round_trip(config: RunConfig, client: MlflowClient, tmp_path: Path) -> None:
    tracking = Tracking(config, tmp_path, {"data_digest": "abc"})
    with tracking.running():
        logger = tracking.child("contrastive")
        logger.log_metrics({"eval/DigitSum/hit@1": 50.0, "epoch": 1.0}, step=3)
        logger.log_text("samples/one.md", "a thought")
        figure = Figure()
        figure.subplots().plot([0, 1])
        logger.log_figure("figures/line.png", figure)
        (tmp_path / "bundle").mkdir()
        (tmp_path / "bundle" / "part.txt").write_text("part")
        logger.log_artifact(tmp_path / "bundle")
        logger.finalize("success")
    parent, child = client.get_run(tracking.parent.version), client.get_run(logger.version)
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert (parent.info.status, child.info.status) == ("FINISHED", "FINISHED")
    assert parent.data.params["stages.grpo.group_size"] == "8"
    assert {"commit", "seed", "data_digest", "version.torch"} <= set(parent.data.tags)
    (point,) = client.get_metric_history(child.info.run_id, "eval/DigitSum/hit_at_1")
    assert (point.step, point.value) == (3, 50.0)
    assert "epoch" not in child.data.metrics
    assert {file.path for file in client.list_artifacts(child.info.run_id)} == {"samples", "figures", "bundle"}


def test_a_resumed_pipeline_goes_on_in_the_same_runs(config: RunConfig, client: MlflowClient, tmp_path: Path) -> None:
    first = Tracking(config, tmp_path)
    child = first.child("grpo")
    child.log_metrics({"grpo/loss": 1.0}, step=1)
    with pytest.raises(KeyboardInterrupt), first.running():
        raise KeyboardInterrupt
    assert client.get_run(first.parent.version).info.status == "KILLED"
    second = Tracking(config, tmp_path)
    again = second.child("grpo")
    again.log_metrics({"grpo/loss": 0.5}, step=2)
    assert (second.parent.version, again.version) == (first.parent.version, child.version)
    assert [point.step for point in client.get_metric_history(child.version, "grpo/loss")] == [1, 2]


def test_an_evaluation_with_other_settings_is_another_run_with_its_own(config: RunConfig, client: MlflowClient, tmp_path: Path) -> None:
    fewer = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, max_queries=2))
    runs = [Tracking(given, tmp_path).child("evaluation", same_settings=True).version for given in (config, config, fewer, fewer)]
    assert (runs[0], runs[2]) == (runs[1], runs[3])
    found = [client.get_run(run).data.params["evaluation.max_queries"] for run in (runs[0], runs[2])]
    assert found == ["4", "2"]


def test_a_later_command_leaves_the_parents_tags_and_tags_its_own_child(
    config: RunConfig, client: MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Tracking(config, tmp_path, {"data_revision": "mini"})
    step = first.child("grpo")
    monkeypatch.setattr("experiments.tracking.commit", lambda: "later")
    second = Tracking(config, tmp_path, {"data_revision": "other"})
    evaluation = second.child("evaluation")
    parent, before, after = (client.get_run(logger.version).data.tags for logger in (second.parent, step, evaluation))
    assert second.parent.version == first.parent.version
    assert (parent["commit"], before["commit"], after["commit"]) == (commit(), commit(), "later")
    assert parent["data_revision"] == "mini"


def test_a_deleted_run_is_replaced(config: RunConfig, client: MlflowClient, tmp_path: Path) -> None:
    first = Tracking(config, tmp_path)
    client.delete_run(first.parent.version)
    assert Tracking(config, tmp_path).parent.version != first.parent.version


def test_tracking_can_be_switched_off(config: RunConfig, tmp_path: Path) -> None:
    off = dataclasses.replace(config, tracking=dataclasses.replace(config.tracking, enabled=False))
    tracking = Tracking(off, tmp_path)
    with tracking.running():
        logger = tracking.child("gate")
        logger.log_metrics({"a": 1.0})
        logger.log_text("a.txt", "a")
    assert logger.version == ""
    assert not (tmp_path / "mlflow.json").exists()


def test_a_store_that_cannot_be_opened_is_named(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    bad = dataclasses.replace(config, tracking=dataclasses.replace(config.tracking, uri=f"sqlite:///{tmp_path}/file/mlflow.db"))
    with pytest.raises(ConfigError, match="tracking.uri .* cannot be opened"):
        Tracking(bad, tmp_path)


def test_a_store_in_a_file_is_opened_by_one_run_at_a_time(config: RunConfig, tmp_path: Path) -> None:
    opened: list[Tracking] = []
    other = threading.Thread(target=lambda: opened.append(Tracking(config, tmp_path)))
    with store_lock(store_uri(config)):
        other.start()
        other.join(timeout=1.0)
        assert not opened
    other.join(timeout=60.0)
    with opened[0].running():
        assert opened[0].parent.version


def test_metric_names_are_made_acceptable() -> None:
    assert metric_key("eval/hit@1 (test)") == "eval/hit_at_1 _test_"


def test_device_is_the_processor_with_its_threads_or_the_gpu(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def on(**changes: object) -> str:
        return device_name(dataclasses.replace(config, trainer=dataclasses.replace(config.trainer, **changes)))  # type: ignore[arg-type]

    processor, comma, threads = on(num_threads=3).rpartition(", ")
    assert (comma, threads) == (", ", "3 threads")
    assert processor
    assert platform.node() not in processor
    assert on(num_threads=1) == f"{processor}, 1 thread"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    assert on(accelerator="gpu") == "NVIDIA H100"
    assert on(accelerator="gpu", devices=4, num_nodes=2) == "8 × NVIDIA H100"
    assert on(accelerator="cpu", num_threads=1) == f"{processor}, 1 thread"
