"""Stage 3's examples are made once, and the threshold weighs kinds of tasks alike."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from mlflow import MlflowClient

from experiments import evaluate, gating
from experiments.build import build_gate_data, build_tasks
from experiments.encoded_tasks import EncodedTask, encode_tasks
from experiments.gating import (
    budget_threshold,
    candidates_per_query,
    choose_threshold,
    curve_metrics,
    even_thresholds,
    gate_examples,
    mean_sweep,
    threshold_metrics,
    token_costs,
)
from experiments.runs import CONFIGS, RunFolder
from experiments.tracking import store_uri
from twn_lightning.batches import GateBatch, Item
from twn_lightning.configs.load import load_config
from twn_lightning.configs.run import RunConfig
from twn_lightning.errors import ConfigError
from twn_lightning.evaluation.encode import EncodedItems
from twn_lightning.evaluation.evaluate import SweepPoint
from twn_lightning.evaluation.task import Query, RetrievalTask
from twn_lightning.evaluation.task_labels import query_subjects
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.stages.base import OptimSpec
from twn_lightning.stages.gate import GateStage


@pytest.fixture
def config(tiny_backbone_path: Path) -> RunConfig:
    overrides = [f"backbone.path={tiny_backbone_path}", "data.tasks=[DigitSum]", "trainer.progress_bar=false"]
    return load_config("mini", folder=CONFIGS, profile="smoke", overrides=overrides)


def with_gate(config: RunConfig, **settings: Any) -> RunConfig:
    return dataclasses.replace(config, stages=dataclasses.replace(config.stages, gate=dataclasses.replace(config.stages.gate, **settings)))


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


def test_of_tasks_every_input_is_an_example(config: RunConfig, tiny_model: DualLoRAModel, tmp_path: Path) -> None:
    config = with_gate(config, labels="tasks", sides="query")
    tasks = encode_tasks(config, tiny_model, build_tasks(config, "validation", max_queries=16), keep_states=True)
    examples = gate_examples(config, tiny_model, tmp_path, tasks)
    assert tasks[0].queries.state is not None
    assert torch.equal(examples.state, tasks[0].queries.state)
    rows = [json.loads(line) for line in (tmp_path / "gate_examples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["subject"] for row in rows] == query_subjects(tasks[0].task)


def test_without_tasks_the_threshold_follows_the_gain(config: RunConfig, tiny_model: DualLoRAModel) -> None:
    optim = dataclasses.replace(config.stages.gate.optim, learning_rate=1e-2)
    config = with_gate(config, steps=40, batch_size=64, optim=optim)
    state = torch.randn(64, tiny_model.gate.width, generator=torch.Generator().manual_seed(0))
    state[:32, 0] += 8.0
    gain = torch.tensor([2.0] * 32 + [-2.0] * 32)  # above and below the margin
    examples = GateBatch(state=state, gain=gain, num_reasoning_tokens=torch.arange(64), fold=torch.arange(64) % config.stages.gate.folds)
    assert choose_threshold(config, tiny_model, [], examples) == []
    (chosen,) = [point for point in tiny_model.gate.curve if point["threshold"] == tiny_model.gate.threshold]
    assert chosen["think_rate"] == pytest.approx(0.5, abs=0.05)
    assert chosen["quality"] == pytest.approx(1.0, abs=0.1)
    assert tiny_model.gate.curve[0] == {
        "threshold": 0.0,
        "quality": 0.0,
        "think_rate": 1.0,
        "query_tokens": 31.5,
        "candidate_tokens": 31.5,
        "reasoning_tokens": 63.0,
        "candidates_per_query": 1.0,
    }


def test_a_fixed_threshold_stays_and_the_curve_is_made_all_the_same(config: RunConfig, tiny_model: DualLoRAModel) -> None:
    fixed = with_gate(config, fixed_threshold=0.37)
    state = torch.randn(8, tiny_model.gate.width)
    examples = GateBatch(state=state, gain=torch.ones(8), num_reasoning_tokens=torch.ones(8), fold=torch.arange(8) % 5)
    choose_threshold(fixed, tiny_model, [], examples)
    assert tiny_model.gate.threshold == 0.37
    assert tiny_model.gate.curve
    tiny_model.gate.curve = []
    tasks = encode_tasks(fixed, tiny_model, build_tasks(config, "validation", max_queries=2), keep_states=True)
    points = choose_threshold(fixed, tiny_model, tasks, examples)
    assert tiny_model.gate.threshold == 0.37
    assert tiny_model.gate.curve
    (here,) = [point for point in points if point.threshold == 0.37]
    assert threshold_metrics(tiny_model.gate)["gate/chosen_quality"] == here.score


def test_the_threshold_is_logged_with_what_it_costs_and_brings_and_the_curve_by_the_share_of_tokens(tiny_model: DualLoRAModel) -> None:
    gate = tiny_model.gate
    rows = [(0.0, 60.0, 1.0, 40.0), (0.3, 62.0, 0.5, 10.0), (1.0, 50.0, 0.0, 0.0)]
    gate.curve = [dict(zip(("threshold", "quality", "think_rate", "reasoning_tokens"), row, strict=True)) for row in rows]
    gate.threshold = 0.3
    assert threshold_metrics(gate) == {
        "gate/threshold": 0.3,
        "gate/chosen_quality": 62.0,
        "gate/chosen_think_rate": 0.5,
        "gate/chosen_reasoning_tokens": 10.0,
    }
    curve = curve_metrics(gate.curve)
    assert {percent: numbers["gate_curve/quality"] for percent, numbers in curve.items()} == {100: 60.0, 25: 62.0, 0: 50.0}
    assert set(curve[25]) == {f"gate_curve/{name}" for name in ("threshold", "quality", "think_rate", "reasoning_tokens")}
    gate.threshold = 0.4
    assert threshold_metrics(gate) == {"gate/threshold": 0.4}
    assert list(curve_metrics([{**point, "reasoning_tokens": 0.0} for point in gate.curve])) == [0]  # nobody wrote a thought


@pytest.mark.parametrize(("gain", "rate"), [(1.0, 1.0), (-1.0, 0.0)])
def test_where_thinking_always_or_never_helps_the_gate_is_constant(
    config: RunConfig, tiny_model: DualLoRAModel, caplog: pytest.LogCaptureFixture, gain: float, rate: float
) -> None:
    state = torch.randn(64, tiny_model.gate.width, generator=torch.Generator().manual_seed(0))
    examples = GateBatch(state=state, gain=torch.full((64,), gain), num_reasoning_tokens=torch.ones(64), fold=torch.arange(64) % 5)
    data = build_gate_data(config, examples)
    data.setup("fit")
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


def test_the_curve_of_validation_tasks_counts_tokens_a_query(config: RunConfig, tiny_model: DualLoRAModel) -> None:
    tasks = build_tasks(config, "validation", max_queries=5)
    encoded = encode_tasks(config, tiny_model, tasks, keep_states=True)
    points = choose_threshold(config, tiny_model, encoded, GateBatch(state=torch.zeros(0, 32), gain=torch.zeros(0)))
    curve = tiny_model.gate.curve
    assert [point["reasoning_tokens"] for point in curve] == pytest.approx([point.reasoning_tokens / 5 for point in points])
    dearest, ratio = curve[0], len(tasks[0].candidates) / 5
    assert 1.0 <= dearest["query_tokens"] <= config.decoding.max_new_tokens  # at threshold 0 all think
    assert dearest["reasoning_tokens"] == pytest.approx(dearest["query_tokens"] + ratio * dearest["candidate_tokens"])
    assert dearest["candidates_per_query"] == ratio
    assert tiny_model.gate.threshold in [point["threshold"] for point in curve]


def items(probability: list[float], tokens: list[int]) -> EncodedItems:
    number = len(probability)
    vectors = torch.eye(number)
    thoughts = ("",) * number
    return EncodedItems(vectors, vectors, torch.tensor(probability), torch.tensor(tokens), thoughts, 0.0, torch.ones(number, dtype=torch.bool))


def encoded_task(name: str, queries: EncodedItems, candidates: EncodedItems) -> EncodedTask:
    keys = [str(number) for number in range(len(candidates))]
    asked = [Query(Item(text=key), {"0": 1.0}, None, key) for key in map(str, range(len(queries)))]
    task = RetrievalTask(name, "image", "IMG_QA", "hit@1", "global", asked, {key: Item(text=key) for key in keys}, "plain")
    return EncodedTask(task, queries, candidates)


TWO_TASKS = [
    encoded_task("a", items([0.9, 0.2], [10, 20]), items([0.8, 0.4, 0.1, 0.1], [1, 2, 3, 6])),
    encoded_task("b", items([0.7], [4]), items([0.3], [8])),
]


def test_costs_are_means_over_tasks_by_hand() -> None:
    costs = token_costs(TWO_TASKS, 0.35)  # of a: query 0 and candidates 0 and 1; of b: the query
    assert costs.query_tokens == pytest.approx((10 / 2 + 4 / 1) / 2)
    assert costs.candidate_tokens == pytest.approx(((1 + 2) / 4 + 0) / 2)
    assert costs.reasoning_tokens == pytest.approx(((10 + 1 + 2) / 2 + 4) / 2)
    assert token_costs(TWO_TASKS, 0.35, think_sides="candidate").reasoning_tokens == pytest.approx((1 + 2) / 2 / 2)
    assert candidates_per_query([each.task for each in TWO_TASKS]) == pytest.approx((4 / 2 + 1 / 1) / 2)


def test_thresholds_divide_the_cost_into_equal_steps() -> None:
    generator = torch.Generator().manual_seed(0)
    many = [
        encoded_task(name, items(torch.rand(number, generator=generator).tolist(), [3] * number), items([0.0] * 2, [0] * 2))
        for name, number in (("a", 400), ("b", 100))
    ]
    thresholds = even_thresholds(many, num_steps=20)
    spent = [token_costs(many, threshold).reasoning_tokens for threshold in thresholds]
    assert len(thresholds) == 21
    assert (thresholds[0], thresholds[-1]) == (0.0, 1.0)
    assert (spent[0], spent[-1]) == (3.0, 0.0)
    # a step is 5 %, give or take an input: one of task b weighs 1 % of its task, so half a percent of all
    assert all(before - after == pytest.approx(0.05 * 3.0, abs=0.006 * 3.0) for before, after in itertools.pairwise(spent))


def test_a_constant_gate_has_two_thresholds() -> None:
    assert even_thresholds([encoded_task("a", items([0.5, 0.5], [1, 1]), items([0.5], [1]))]) == [0.0, 1.0]


def test_a_budget_is_spent_whatever_the_number_of_queries(tiny_model: DualLoRAModel) -> None:
    generator = torch.Generator().manual_seed(1)

    def draw(number: int) -> EncodedItems:
        return items(torch.rand(number, generator=generator).tolist(), torch.randint(5, 15, (number,), generator=generator).tolist())

    validation, test = ([encoded_task(name, draw(number), draw(300)) for name in "ab"] for number in (100, 600))
    ratio = candidates_per_query([each.task for each in validation])
    tiny_model.gate.curve = [
        {"threshold": threshold, "quality": 0.0, **dataclasses.asdict(token_costs(validation, threshold)), "candidates_per_query": ratio}
        for threshold in even_thresholds(validation)
    ]
    always = token_costs(test, 0.0).reasoning_tokens  # about 10 tokens a query and 5 more for its share of the candidates; validation: 40
    assert 13 < always < 17
    tasks = [each.task for each in test]
    for budget in (5.0, 10.0, 13.0):
        threshold = budget_threshold(tiny_model, tasks, budget)
        assert token_costs(test, threshold).reasoning_tokens == pytest.approx(budget, rel=0.1)
    for side in ("query", "candidate"):
        threshold = budget_threshold(tiny_model, tasks, 4.0, think_sides=side)
        assert token_costs(test, threshold, think_sides=side).reasoning_tokens == pytest.approx(4.0, rel=0.1)


def test_evaluate_says_what_was_asked_and_what_was_spent(
    finished_run: RunConfig, smoke_settings: list[str], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level("INFO"):
        evaluate.main(["--profile", "smoke", "--run", "done", "--budget", "10", *smoke_settings])
    report = json.loads((RunFolder(finished_run).path / "evaluation" / "both_budget_10_DigitSum+FlagName_4_queries" / "report.json").read_text())
    spent, always = (sum(row["tokens_per_query"][mode] for row in report["rows"]) / 2 for mode in ("auto", "always"))
    assert f"budget: 10 reasoning tokens a query asked for, {spent:.1f} spent at threshold" in caplog.text
    assert f"always thinking costs {always:.1f}" in caplog.text
    assert report["provenance"]["budget"] == "10 reasoning tokens a query"
    with pytest.raises(ConfigError, match="budget is -1"):
        evaluate.main(["--profile", "smoke", "--run", "done", "--budget", "-1", *smoke_settings])
    parent = json.loads((RunFolder(finished_run).path / "mlflow.json").read_text())["runs"][""]
    assert MlflowClient(tracking_uri=store_uri(finished_run)).get_run(parent).info.status == "FINISHED"  # a budget that is refused is no failed run


def test_each_kind_counts_as_much(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {"a": ("composing", 90.0), "b": ("plain", 10.0), "c": ("plain", 30.0)}

    class _Task:
        def __init__(self, name: str) -> None:
            self.name, self.kind = name, scores[name][0]

    def sweep(task: RetrievalTask, queries: object, candidates: object, thresholds: list[float]) -> list[SweepPoint]:
        return [SweepPoint(threshold, scores[task.name][1], 1.0, 10) for threshold in thresholds]

    monkeypatch.setattr(gating, "threshold_sweep", sweep)
    encoded = [EncodedTask(_Task(name), None, None) for name in scores]  # type: ignore[arg-type]
    (point,) = mean_sweep(encoded, [0.5])
    assert point.score == pytest.approx((90.0 + (10.0 + 30.0) / 2) / 2)
    assert point.reasoning_tokens == 30
