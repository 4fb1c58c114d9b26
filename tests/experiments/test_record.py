"""A record says all of a finished run, survives its file, and is refused if a field is foreign."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from experiments.build import build_model, build_tasks
from experiments.encoded_tasks import encode_tasks
from experiments.gating import token_costs
from experiments.record import (
    RECORD,
    REFERENCES,
    Example,
    RunRecord,
    TaskRecord,
    read_record,
)
from experiments.recording import MAX_POINTS, thinned, training_curves, write_record
from experiments.results import make_report
from experiments.runs import CONFIGS, STEPS, RunFolder
from experiments.tracking import Tracking
from twn_lightning.checkpoints import load_bundle_into
from twn_lightning.configs.load import load_config
from twn_lightning.configs.run import RunConfig
from twn_lightning.errors import DataError
from twn_lightning.evaluation.evaluate import MODES, evaluate_encoded

TASK = TaskRecord(
    name="toy",
    kind="composing",
    side="query",
    modality="image",
    subgroup="IMG_QA",
    metric="hit@1",
    num_candidates=3,
    keys=("0", "1", "2", "3"),
    values={"never": (1.0, 0.0, 0.0, 0.0), "random": (0.35, 0.0, 1.0, 1.0)},
    query_tokens={"never": 0, "random": 6},
    candidate_tokens={"never": 0, "random": 4},
    query_think_rate={"never": 0.0, "random": 0.5},
    candidate_think_rate={"never": 0.0, "random": 0.33333},
    gain=(0.5, -0.5, 0.01, 2.0),
    gate_probability=(0.9, 0.25, 0.5, 0.85),
    thought_tokens=(3, 4, 5, 6),
    candidate_keys=("a", "b"),
    candidate_gain=(-1.0, 0.0),
    candidate_gate_probability=(0.95, 0.1),
    candidate_thought_tokens=(7, 8),
)
RECORD_OF_TOY = RunRecord(
    run="toy-s1",
    ablation="",
    variant="",
    seed=1,
    threshold=0.31,
    provenance={"commit": "abc", "stages.gate.margin": "0.0", "stages.gate.dead_zone": "0.05"},
    parameters={"backbone": 1234567.0, "ratio": 0.012345},
    seconds={"contrastive": 12.5},
    tasks=(TASK,),
    sweep=({"threshold": 0.0, "score": 50.0},),
    validation_curve=({"threshold": 0.5, "quality": 61.25},),
    curves={"contrastive/loss": ((10, 2.5), (20, 1.0))},
    examples=(Example("toy", "1", "one and two, so three", ("a", "b"), ("b", "a"), "b", 0.5),),
    budgets=({"budget": 5.0, "threshold": 0.7, "tokens": 4.9},),
)


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / RECORD
    path.write_text(RECORD_OF_TOY.to_json(), encoding="utf-8")
    assert read_record(path) == RECORD_OF_TOY
    assert RunRecord.from_json(RECORD_OF_TOY.to_json()).to_json() == RECORD_OF_TOY.to_json()


def test_numbers_are_written_with_five_digits() -> None:
    long = dataclasses.replace(RECORD_OF_TOY, threshold=1 / 3, parameters={"ratio": 0.000123456789, "backbone": 1234567.0})
    written = json.loads(long.to_json())
    assert written["threshold"] == 0.33333
    assert written["parameters"] == {"ratio": 0.00012346, "backbone": 1234567}
    with pytest.raises(DataError, match=r"record.threshold is nan"):
        dataclasses.replace(RECORD_OF_TOY, threshold=math.nan).to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.pop("sweep"), "record lacks sweep: evaluate"),
        (lambda record: record.update(more=1), "record holds more, which this version does not know"),
        (lambda record: record["tasks"][0].pop("gain"), r"record.tasks\[0\] lacks gain"),
        (lambda record: record.update(seed="one"), "record.seed is 'one', but a record of this version holds int there"),
        (lambda record: record["tasks"][0]["values"].update(never=["x"]), r"values\['never'\]\[0\] is 'x'"),
        (lambda record: record.update(tasks=3), "record.tasks is '3'"),
        (lambda record: record["examples"].append(7), r"record.examples\[1\] is '7', but .* holds Example there"),
    ],
)
def test_a_foreign_field_is_named(change: object, message: str) -> None:
    written = json.loads(RECORD_OF_TOY.to_json())
    change(written)  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        RunRecord.from_json(json.dumps(written))


def test_a_file_that_is_no_record_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone.json cannot be read"):
        read_record(tmp_path / "gone.json")
    (tmp_path / "torn.json").write_text('{"run": ')
    with pytest.raises(DataError, match=r"torn.json is not JSON"):
        read_record(tmp_path / "torn.json")


def test_scores_and_tokens_of_a_task() -> None:
    assert TASK.score("never") == pytest.approx(100 * 1 / 4)
    assert TASK.tokens_per_query("random") == pytest.approx((6 + 4) / 4)


def test_a_curve_is_thinned_by_means_of_neighbours() -> None:
    assert thinned([(1, 2.0), (2, 4.0), (3, 5.0)], limit=2) == ((2, 3.0), (3, 5.0))
    assert thinned([(1, 2.0), (2, 4.0)], limit=2) == ((1, 2.0), (2, 4.0))
    assert thinned([]) == ()
    assert len(thinned([(step, 1.0) for step in range(1001)])) <= MAX_POINTS


def test_a_value_that_is_logged_once_is_a_curve_of_one_point(smoke_settings: list[str]) -> None:
    config = load_config("mini", folder=CONFIGS, overrides=[*smoke_settings, "name=once"])
    folder = RunFolder(config)
    folder.create()
    tracking = Tracking(config, folder.path)
    child = tracking.child("cot_sft")
    child.log_metrics({"cot_sft/val_token_accuracy": 0.75, "seconds": 3.0}, step=9)
    child.log_metrics({"cot_sft/loss": math.nan}, step=9)
    assert training_curves(config, folder, tracking) == {"cot_sft/val_token_accuracy": ((9, 0.75),)}


@pytest.fixture(scope="module")
def written(finished_run: RunConfig) -> RunRecord:
    folder = RunFolder(finished_run)
    model = build_model(finished_run)
    load_bundle_into(model, folder.bundle(STEPS[-1]))
    tasks = build_tasks(finished_run, "test", max_queries=finished_run.evaluation.max_queries)
    encoded = encode_tasks(finished_run, model, tasks)
    threshold = model.gate.threshold
    results = [evaluate_encoded(each.task, each.queries, each.candidates, threshold=threshold) for each in encoded]
    report = make_report(tasks, results, {"run": finished_run.name})
    with Tracking(finished_run, folder.path).running() as tracking:
        record = read_record(write_record(finished_run, model, folder, tasks, encoded, report, tracking))
    for task, result, row in zip(record.tasks, results, report.rows, strict=True):
        for mode in MODES:
            assert task.values[mode] == pytest.approx(result.modes[mode].values, abs=1e-5)
            assert task.score(mode) == pytest.approx(row.scores[mode], abs=1e-3)
            assert task.tokens_per_query(mode) == pytest.approx(row.tokens_per_query[mode])
    for point in record.budgets:
        # The threshold is written with five digits, and an input's probability may lie between it and what was rounded.
        least, most = (token_costs(encoded, point["threshold"] + shift).reasoning_tokens for shift in (1e-5, -1e-5))
        assert 0.999 * least <= point["tokens"] <= 1.001 * most
    return record


def test_the_record_of_a_run_holds_its_report_and_references(written: RunRecord) -> None:
    for task in written.tasks:
        assert set(task.values) == {*MODES, *REFERENCES}
        assert {len(values) for values in task.values.values()} == {len(task.keys)} == {len(task.gain)}
        assert task.query_tokens["always"] == task.query_tokens["query"] == sum(task.thought_tokens)
        assert task.candidate_tokens["always"] == task.candidate_tokens["candidate"]
        assert task.query_think_rate["random"] == pytest.approx(task.query_think_rate["auto"], abs=1e-5)
        assert len(task.candidate_keys) == len(task.candidate_gain) == len(task.candidate_thought_tokens)
    assert {task.name: task.side for task in written.tasks} == {"DigitSum": "query", "FlagName": ""}
    auto = [point for point in written.sweep if point["threshold"] == written.threshold]
    assert auto[0]["score"] == pytest.approx(sum(task.score("auto") for task in written.tasks) / 2, abs=1e-3)
    assert auto[0]["reasoning_tokens"] == pytest.approx(sum(task.tokens_per_query("auto") for task in written.tasks) / 2, rel=1e-3)


def test_the_record_of_a_run_says_what_made_it(written: RunRecord, finished_run: RunConfig) -> None:
    assert {"commit", "seed", "data_revision", "device"} <= set(written.provenance)
    assert {f"stages.gate.{name}" for name in ("dead_zone", "tolerance", "labels", "folds")} <= set(written.provenance)
    assert {"gate/threshold", "gate/chosen_quality", "gate_refit/chosen_think_rate"} <= set(written.curves)
    assert written.provenance["stages.contrastive.steps"] == "2"
    assert set(written.seconds) == {step.name for step in STEPS}
    assert written.parameters["backbone"] > 0
    assert [point["threshold"] for point in written.validation_curve] == sorted(point["threshold"] for point in written.validation_curve)
    assert {"contrastive/loss", "cot_sft/loss", "grpo/loss"} <= set(written.curves)
    assert {len(points) for name, points in written.curves.items() if name.count("/") == 1 and name.endswith("/loss")} == {2}  # two steps each
    for example in written.examples:
        assert example.task in {"DigitSum", "FlagName"}
        assert len(example.before) == len(example.after) == 3


def test_without_tracking_there_are_no_curves(finished_run: RunConfig, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    silent = dataclasses.replace(
        finished_run, output_dir=str(tmp_path), tracking=dataclasses.replace(finished_run.tracking, enabled=False), name="silent"
    )
    folder = RunFolder(silent)
    folder.create()
    model = build_model(silent)
    tasks = build_tasks(silent, "test", max_queries=2)[:1]
    encoded = encode_tasks(silent, model, tasks)
    results = [evaluate_encoded(each.task, each.queries, each.candidates, threshold=0.5) for each in encoded]
    with caplog.at_level("INFO"), torch.no_grad():
        path = write_record(silent, model, folder, tasks, encoded, make_report(tasks, results, {}), Tracking(silent, folder.path))
    record = read_record(path)
    assert record.curves == {}
    assert record.budgets == ()  # a fresh gate has no curve
    assert record.seconds["grpo"] == 0.0
    assert "tracking is off" in caplog.text
