"""Stage 3's examples are made once, and the threshold weighs kinds of tasks alike."""

from pathlib import Path

import pytest
import torch

from experiments import gating
from experiments.build import build_gate_data, build_tasks
from experiments.gating import choose_threshold, gate_examples, mean_sweep
from experiments.runs import CONFIGS
from twn_lightning.batches import GateBatch
from twn_lightning.configs.load import load_config
from twn_lightning.configs.run import RunConfig
from twn_lightning.evaluation.evaluate import SweepPoint
from twn_lightning.evaluation.task import RetrievalTask
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.stages.base import OptimSpec
from twn_lightning.stages.gate import GateStage


@pytest.fixture
def config(tiny_backbone_path: Path) -> RunConfig:
    overrides = [f"backbone.path={tiny_backbone_path}", "data.tasks=[DigitSum]", "trainer.progress_bar=false"]
    return load_config("mini", folder=CONFIGS, profile="smoke", overrides=overrides)


def test_examples_are_made_once(config: RunConfig, tiny_model: DualLoRAModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = gate_examples(config, tiny_model, tmp_path)
    assert len(made) == 2 * config.stages.gate.num_pairs
    monkeypatch.setattr(gating, "self_label", None)
    again = gate_examples(config, tiny_model, tmp_path)
    assert torch.equal(made.state, again.state)
    assert torch.equal(made.gain, again.gain)
    assert again.num_reasoning_tokens is not None
    assert int(again.num_reasoning_tokens.min()) >= 1
    assert len((tmp_path / "gate_examples.jsonl").read_text().splitlines()) == len(made)


def test_without_tasks_the_threshold_follows_the_gain(config: RunConfig, tiny_model: DualLoRAModel) -> None:
    state = torch.randn(64, tiny_model.hidden_size, generator=torch.Generator().manual_seed(0))
    probability = tiny_model.gate.probability(state).detach()
    gain = torch.where(probability > probability.median(), 1.0, -1.0)
    num_tokens = torch.arange(64)
    assert choose_threshold(config, tiny_model, [], GateBatch(state=state, gain=gain, num_reasoning_tokens=num_tokens)) == []
    assert torch.equal(probability >= tiny_model.gate.threshold, gain > 0)
    assert tiny_model.gate.curve[0] == {"threshold": 0.0, "quality": 0.0, "reasoning_tokens": 31.5, "think_rate": 1.0}


@pytest.mark.parametrize(("gain", "rate"), [(1.0, 1.0), (-1.0, 0.0)])
def test_where_thinking_always_or_never_helps_the_gate_is_constant(
    config: RunConfig, tiny_model: DualLoRAModel, caplog: pytest.LogCaptureFixture, gain: float, rate: float
) -> None:
    state = torch.randn(64, tiny_model.hidden_size, generator=torch.Generator().manual_seed(0))
    examples = GateBatch(state=state, gain=torch.full((64,), gain), num_reasoning_tokens=torch.ones(64))
    data = build_gate_data(config, examples)
    assert "batches cannot be balanced" in caplog.text
    stage = GateStage(tiny_model, OptimSpec(learning_rate=1e-2, total_steps=3))
    optimizer = stage.configure_optimizers()["optimizer"]
    for batch in data.train_dataloader():
        loss = stage.step(batch).loss
        torch.autograd.backward(loss)
        optimizer.step()
        assert torch.isfinite(loss)
    choose_threshold(config, tiny_model, [], examples)
    assert float((tiny_model.gate.probability(state) >= tiny_model.gate.threshold).float().mean()) == rate


def test_the_curve_of_validation_tasks_counts_tokens_an_input(config: RunConfig, tiny_model: DualLoRAModel) -> None:
    tasks = build_tasks(config, "validation", max_queries=5)
    points = choose_threshold(config, tiny_model, tasks, GateBatch(state=torch.zeros(0, 32), gain=torch.zeros(0)))
    num_inputs = 5 + len(tasks[0].candidates)
    assert [point["reasoning_tokens"] for point in tiny_model.gate.curve] == pytest.approx([point.reasoning_tokens / num_inputs for point in points])
    assert 1.0 <= tiny_model.gate.curve[0]["reasoning_tokens"] <= config.decoding.max_new_tokens  # at threshold 0 all think


def test_each_kind_counts_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {"a": ("composing", 90.0), "b": ("plain", 10.0), "c": ("plain", 30.0)}

    class _Task:
        def __init__(self, name: str) -> None:
            self.name, self.kind = name, scores[name][0]

    def sweep(task: RetrievalTask, queries: object, candidates: object, thresholds: list[float]) -> list[SweepPoint]:
        return [SweepPoint(threshold, scores[task.name][1], 1.0, 10) for threshold in thresholds]

    monkeypatch.setattr(gating, "threshold_sweep", sweep)
    encoded = [gating.EncodedTask(_Task(name), None, None) for name in scores]  # type: ignore[arg-type]
    (point,) = mean_sweep(encoded, [0.5])
    assert point.score == pytest.approx((90.0 + (10.0 + 30.0) / 2) / 2)
    assert point.reasoning_tokens == 30
