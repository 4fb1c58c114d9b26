"""Makes a finished run's record from one encoding of its test tasks and from its MLflow runs."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datamodules.mini.tasks import TASKS
from experiments.build import data_tags
from experiments.encoded_tasks import EncodedTask
from experiments.gating import budget_threshold, candidates_per_query, even_thresholds, token_costs
from experiments.record import RECORD, Example, RunRecord, TaskRecord
from experiments.runs import STEPS, RunFolder, Step, write_atomically
from experiments.tracking import Tracking, TrackingLogger, environment_tags
from twn_lightning.configs.run import RunConfig
from twn_lightning.evaluation.evaluate import ThinkSides, evaluate_encoded, threshold_sweep
from twn_lightning.evaluation.rank import rank_task
from twn_lightning.evaluation.report import Report
from twn_lightning.evaluation.routing import RoutedResult, candidate_gain, query_gain, references, route
from twn_lightning.evaluation.task import RetrievalTask
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.gate import tokens_per_query

log = logging.getLogger(__name__)

MAX_POINTS = 120
"""Of a training curve."""
BUDGET_STEP = 5
"""Between two budgets of `RunRecord.budgets`, tokens a query."""
_SWEEP_STEPS = 50
_GATE_SETTINGS = ("temperature", "margin", "dead_zone", "tolerance", "labels", "folds")


def write_record(  # noqa: PLR0917 -- all that a finished run has at hand
    config: RunConfig,
    model: DualLoRAModel,
    folder: RunFolder,
    tasks: Sequence[RetrievalTask],
    encoded: Sequence[EncodedTask],
    report: Report,
    tracking: Tracking,
) -> Path:
    """Leave ``record.json`` in a finished run's folder.

    Args:
        config: The run's settings.
        model: Holds the last bundle.
        folder: The run's folder.
        tasks: The test tasks.
        encoded: Of these tasks, in their order; both sides with ``think="always"``.
        report: On these tasks.
        tracking: Whose MLflow runs hold the training curves.

    Raises:
        DataError: A figure is not finite, or a task was encoded without thoughts.
    """
    assert [each.task.name for each in encoded] == [task.name for task in tasks]
    path = folder.path / RECORD
    write_atomically(path, make_record(config, model, folder, encoded, tracking, made_of=report.provenance).to_json())
    return path


def make_record(
    config: RunConfig, model: DualLoRAModel, folder: RunFolder, encoded: Sequence[EncodedTask], tracking: Tracking, *, made_of: Mapping[str, str]
) -> RunRecord:
    """The record of a finished run.

    Args:
        config: The run's settings.
        model: Holds the last bundle.
        folder: The run's folder.
        encoded: The test tasks; both sides with ``think="always"``.
        tracking: Whose MLflow runs hold the training curves.
        made_of: Provenance besides environment, data, steps and the gate's settings.

    Raises:
        DataError: A task was encoded without thoughts.
    """
    gate, sides = config.stages.gate, config.evaluation.think_sides
    settings = {f"stages.gate.{name}": str(getattr(gate, name)) for name in _GATE_SETTINGS}
    settings |= {f"stages.{step.section}.steps": str(getattr(config.stages, step.section).steps) for step in STEPS}
    return RunRecord(
        run=config.name,
        ablation="",
        variant="",
        seed=config.seed,
        threshold=float(model.gate.threshold),
        provenance={**environment_tags(config), **data_tags(config), **made_of, **settings, "commit.trained": _trained_at(folder)},
        parameters={name: float(value) for name, value in model.parameter_report().items()},
        seconds={step.name: float(_done(folder, step).get("seconds", 0.0)) for step in STEPS},
        tasks=tuple(_task_record(config, each, threshold=model.gate.threshold) for each in encoded),
        sweep=_sweep(encoded, model.gate.threshold, sides),
        validation_curve=tuple(dict(point) for point in model.gate.curve),
        curves=training_curves(config, folder, tracking),
        examples=tuple(example for each in encoded for example in _examples(each, temperature=gate.temperature)),
        budgets=_budgets(model, encoded, sides),
    )


def _trained_at(folder: RunFolder) -> str:
    """The commits at which the steps were trained, each once; a run may be evaluated again at a later one."""
    texts = [(folder.bundle(step) / "twn_config.json").read_text(encoding="utf-8") for step in STEPS if folder.is_done(step)]
    found = [str(json.loads(text).get("provenance", {}).get("commit", "")) for text in texts]
    return ", ".join(dict.fromkeys(commit for commit in found if commit))


def _task_record(config: RunConfig, each: EncodedTask, *, threshold: float) -> TaskRecord:
    task, queries, candidates = each.task, each.queries, each.candidates
    sides, temperature = config.evaluation.think_sides, config.stages.gate.temperature
    modes = evaluate_encoded(task, queries, candidates, think_sides=sides, threshold=threshold).modes
    routed = references(task, queries, candidates, route(queries, candidates, threshold=threshold, think_sides=sides), seed=config.seed)
    results: dict[str, RoutedResult] = {
        **{
            mode: RoutedResult(
                values=result.values,
                query_tokens=result.query_reasoning_tokens,
                candidate_tokens=result.candidate_reasoning_tokens,
                query_think_rate=result.query_think_rate,
                candidate_think_rate=result.candidate_think_rate,
            )
            for mode, result in modes.items()
        },
        **routed,
    }
    gains = candidate_gain(task, queries, candidates, temperature=temperature)
    keys = list(task.candidates)
    return TaskRecord(
        name=task.name,
        kind=task.kind,
        side=TASKS[task.name].side if task.name in TASKS else "",
        modality=task.modality,
        subgroup=task.subgroup,
        metric=task.metric,
        num_candidates=len(task.candidates),
        keys=tuple(query.key for query in task.queries),
        values={name: result.values for name, result in results.items()},
        query_tokens={name: round(result.query_tokens) for name, result in results.items()},
        candidate_tokens={name: round(result.candidate_tokens) for name, result in results.items()},
        query_think_rate={name: result.query_think_rate for name, result in results.items()},
        candidate_think_rate={name: result.candidate_think_rate for name, result in results.items()},
        gain=tuple(query_gain(task, queries, candidates, temperature=temperature).tolist()),
        gate_probability=tuple(queries.gate_probability.tolist()),
        thought_tokens=tuple(queries.num_reasoning_tokens.tolist()),
        candidate_keys=tuple(keys[row] for row in gains.rows.tolist()),
        candidate_gain=tuple(gains.gain.tolist()),
        candidate_gate_probability=tuple(candidates.gate_probability[gains.rows].tolist()),
        candidate_thought_tokens=tuple(candidates.num_reasoning_tokens[gains.rows].tolist()),
    )


def _sweep(encoded: Sequence[EncodedTask], threshold: float, think_sides: ThinkSides) -> tuple[dict[str, float], ...]:
    thresholds = sorted({*even_thresholds(encoded, num_steps=_SWEEP_STEPS), float(threshold)})
    sweeps = [threshold_sweep(each.task, each.queries, each.candidates, thresholds, think_sides=think_sides) for each in encoded]
    return tuple(
        {
            "threshold": value,
            "score": sum(point.score for point in points) / len(points),
            "think_rate": sum(point.think_rate for point in points) / len(points),
            "reasoning_tokens": token_costs(encoded, value, think_sides=think_sides).reasoning_tokens,
        }
        for value, points in zip(thresholds, zip(*sweeps, strict=True), strict=True)
    )


def _budgets(model: DualLoRAModel, encoded: Sequence[EncodedTask], think_sides: ThinkSides) -> tuple[dict[str, float], ...]:
    tasks = [each.task for each in encoded]
    ratio = candidates_per_query(tasks)
    known = [point for point in model.gate.curve if "candidates_per_query" in point]
    dearest = max((tokens_per_query(point, candidates_per_query=ratio, sides=think_sides) for point in known), default=0.0)
    rows = []
    for budget in range(BUDGET_STEP, int(dearest) + 1, BUDGET_STEP):
        threshold = budget_threshold(model, tasks, budget, think_sides=think_sides)
        spent = token_costs(encoded, threshold, think_sides=think_sides).reasoning_tokens
        rows.append({"budget": float(budget), "threshold": threshold, "tokens": spent})
    return tuple(rows)


def _examples(each: EncodedTask, *, temperature: float, num_each: int = 2) -> list[Example]:
    """The thoughts that helped a task's queries most, then those that misled most; first of all those that changed the metric."""
    task, queries, candidates = each.task, each.queries, each.candidates
    assert queries.generative is not None
    before, after = (rank_task(task, vectors, candidates.discriminative, num_top=3) for vectors in (queries.discriminative, queries.generative))
    gain = query_gain(task, queries, candidates, temperature=temperature).tolist()
    change = (after.values - before.values).tolist()
    order = sorted(range(len(gain)), key=lambda row: (change[row], gain[row]), reverse=True)
    helped = [row for row in order if gain[row] > 0][:num_each]
    misled = [row for row in reversed(order) if gain[row] < 0][:num_each]
    return [
        Example(
            task=task.name,
            key=task.queries[row].key,
            thought=queries.thoughts[row],
            before=before.top[row],
            after=after.top[row],
            label=max(task.queries[row].labels, key=task.queries[row].labels.__getitem__),
            gain=gain[row],
        )
        for row in (*helped, *misled)
    ]


def training_curves(config: RunConfig, folder: RunFolder, tracking: Tracking) -> dict[str, tuple[tuple[int, float], ...]]:
    """Training curves of each step by ``<step>/<quantity>``, also those of one point.

    Args:
        config: The run's settings.
        folder: The run's folder; the curves of a step that was taken over from another run lie in that one's MLflow run.
        tracking: Whose MLflow runs hold the curves.
    """
    client = tracking.parent.experiment
    if client is None:
        log.info("tracking is off: %s holds no training curves", RECORD)
        return {}
    experiment = client.get_run(tracking.parent.version).info.experiment_id
    curves = {}
    for step in STEPS:
        origin = folder.path.parent / str(_done(folder, step).get("shared_from", config.name)) / "mlflow.json"
        ids = json.loads(origin.read_text(encoding="utf-8"))["runs"] if origin.is_file() else {}
        found = client.search_runs([experiment], filter_string=f"attributes.run_id = '{ids[step.name]}'") if step.name in ids else []
        if not found:
            log.info("no MLflow run of %s: %s holds no training curves of it", step.title, RECORD)
            continue
        for key in found[0].data.metrics:
            section, _, quantity = key.partition("/")
            points = _history(tracking.parent, found[0].info.run_id, key) if section == step.section else []
            if points:
                curves[f"{step.name}/{quantity}"] = thinned(points)
    return curves


def _history(logger: TrackingLogger, run_id: str, key: str) -> list[tuple[int, float]]:
    """Values by step, from the store that a logger writes to; of a step that was run twice, the later one."""
    assert logger.experiment is not None
    history = sorted(logger.experiment.get_metric_history(run_id, key), key=lambda metric: metric.timestamp)
    values = {metric.step: metric.value for metric in history}
    finite = {step: value for step, value in values.items() if math.isfinite(value)}
    if len(finite) < len(values):
        log.warning("%s: %d of %d values are not finite; %s leaves them out", key, len(values) - len(finite), len(values), RECORD)
    return sorted(finite.items())


def thinned(points: Sequence[tuple[int, float]], *, limit: int = MAX_POINTS) -> tuple[tuple[int, float], ...]:
    """A curve of at most ``limit`` points: neighbours in groups of equal size, each with its last step and its mean value.

    Args:
        points: (step, value), by step.
        limit: At least 1.
    """
    size = -(-len(points) // limit)
    groups = [points[start : start + size] for start in range(0, len(points), size or 1)]
    return tuple((group[-1][0], math.fsum(value for _, value in group) / len(group)) for group in groups)


def _done(folder: RunFolder, step: Step) -> dict[str, Any]:
    path = folder.step(step) / "done.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
