"""Stage 3's way from pairs to a gate: labels from the model's own thoughts, a threshold from validation tasks, thresholds for token budgets."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from datamodules.steps import Batches, StepLoader, StepSampler
from experiments.build import build_decoding, build_label_data
from experiments.cross_fit import judged, judged_out_of_fold, out_of_fold_probability
from experiments.display import progress
from experiments.encoded_tasks import EncodedTask
from experiments.runs import write_atomically
from twn_lightning.batches import GateBatch, PairBatch
from twn_lightning.configs.run import RunConfig
from twn_lightning.distributed import barrier, from_rank_zero, rank
from twn_lightning.evaluation.encode import AUTOCAST
from twn_lightning.evaluation.evaluate import SweepPoint, ThinkSides, threshold_sweep
from twn_lightning.evaluation.self_label import GateExamples, concatenate_examples, fit_threshold, self_label
from twn_lightning.evaluation.shards import dealt, own_windows
from twn_lightning.evaluation.task import RetrievalTask
from twn_lightning.evaluation.task_labels import fold_of, label_task, subject_folds
from twn_lightning.files import replacing
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.gate import CurvePoint, RoutingGate, threshold_within, tokens_per_query

EXAMPLES = "gate_examples.safetensors"
_LOGGED = ("quality", "think_rate", "reasoning_tokens")
CURVE_STEPS = 100
"""Steps of equal cost into which the thresholds of the gate's curve divide what always thinking costs."""


def gate_examples(config: RunConfig, model: DualLoRAModel, folder: Path, encoded: Sequence[EncodedTask] = ()) -> GateBatch:
    """The gate's examples, made by the model's own thoughts; read from the folder if they are there already. The ranks share the work.

    Args:
        config: The run's settings.
        model: Writes the thoughts.
        folder: The step's folder; gets ``gate_examples.safetensors`` and the thoughts.
        encoded: Validation tasks, for ``stages.gate.labels=tasks``, with states; without any, pairs are labelled.
    """
    path = folder / EXAMPLES
    if not from_rank_zero(path.is_file()):
        examples = _label_tasks(config, encoded) if _learns_from(config, encoded) else _label_pairs(config, model)
        if rank() == 0:
            _store(examples, _folds(config, examples, encoded), path)
        barrier()
    tensors = load_file(str(path))
    return GateBatch(state=tensors["state"], gain=tensors["gain"], num_reasoning_tokens=tensors["num_reasoning_tokens"], fold=tensors["fold"])


def _learns_from(config: RunConfig, encoded: Sequence[EncodedTask]) -> bool:
    return bool(encoded) and config.stages.gate.labels == "tasks"


def _label_tasks(config: RunConfig, encoded: Sequence[EncodedTask]) -> GateExamples:
    gate = config.stages.gate
    parts = [label_task(each.task, each.queries, each.candidates, temperature=gate.temperature, sides=gate.sides) for each in encoded]
    return concatenate_examples(parts)


def _folds(config: RunConfig, examples: GateExamples, encoded: Sequence[EncodedTask]) -> Tensor:
    """The fold of each example, ``(N,)``."""
    num_folds = config.stages.gate.folds
    known = subject_folds([each.task for each in encoded], num_folds=num_folds) if _learns_from(config, encoded) else {}
    names = zip(examples.source, examples.subject, strict=True)
    return torch.tensor([known[name] if known else fold_of(*name, num_folds=num_folds) for name in names], dtype=torch.long)


def _label_pairs(config: RunConfig, model: DualLoRAModel) -> GateExamples:
    gate = config.stages.gate
    batches = build_label_data(config, model.processor).train_dataloader()
    own = own_windows(len(batches), over_ranks=True)
    parts = []
    with progress("labelling pairs by the model's own thoughts", shown=config.trainer.progress_bar) as advance:
        for number, batch in zip(own, _chosen(batches, own), strict=True):
            decoding, autocast = build_decoding(config.decoding), AUTOCAST[config.trainer.precision]
            parts.append(self_label(model, [batch], decoding=decoding, temperature=gate.temperature, sides=gate.sides, autocast=autocast))
            advance(number + 1, len(batches))
    return concatenate_examples(dealt(parts, num_values=len(batches), over_ranks=True))


def _chosen(loader: StepLoader[PairBatch], numbers: Sequence[int]) -> Iterable[PairBatch]:
    """A loader's batches of these numbers."""
    dataset = loader.dataset
    batches = Batches(lambda place: dataset[numbers[place]], len(numbers))
    return StepLoader(batches, StepSampler(len(numbers), lambda: 0), num_workers=loader.num_workers) if numbers else ()


def _store(examples: GateExamples, fold: Tensor, path: Path) -> None:
    tensors = {
        "state": examples.state.contiguous(),
        "gain": examples.gain.contiguous(),
        "gate_probability": examples.gate_probability.contiguous(),
        "num_reasoning_tokens": examples.num_reasoning_tokens.contiguous(),
        "fold": fold,
    }
    rows = zip(examples.source, examples.side, examples.subject, [round(gain, 4) for gain in examples.gain.tolist()], examples.thoughts, strict=True)
    lines = [json.dumps(dict(zip(("source", "side", "subject", "gain", "thought"), row, strict=True))) for row in rows]
    write_atomically(path.with_suffix(".jsonl"), "\n".join(lines) + "\n")
    with replacing(path) as temporary:
        save_file(tensors, str(temporary))


def choose_threshold(config: RunConfig, model: DualLoRAModel, encoded: Sequence[EncodedTask], examples: GateBatch) -> list[SweepPoint]:
    """Set the gate's threshold and curve by the mean score over validation tasks, each kind of task counting as much.

    The threshold is the one with the fewest reasoning tokens whose mean score lies within ``stages.gate.tolerance`` points of the best, among
    those of `even_thresholds`. Without tasks it is chosen by the gain on the examples themselves. What the gate has learned from is judged by gates
    that have not (`experiments.cross_fit`). ``stages.gate.fixed_threshold`` overrides the choice; the curve is made all the same.

    Args:
        config: The run's settings.
        model: Gets ``gate.threshold`` and ``gate.curve``: see `twn_lightning.models.gate.CurvePoint`. Without tasks every example counts as one
            query with one candidate of the same cost.
        encoded: Validation tasks, with states.
        examples: What the gate has learned from, with folds.

    Returns:
        The sweep over thresholds; empty without tasks.
    """
    fixed = config.stages.gate.fixed_threshold
    if not encoded:
        _choose_by_gain(config, model, examples)
        model.gate.threshold = model.gate.threshold if fixed is None else fixed
        return []
    encoded = judged_out_of_fold(config, model, encoded, examples) if _learns_from(config, encoded) else judged(encoded, model.gate)
    points = mean_sweep(encoded, sorted({*even_thresholds(encoded), *([] if fixed is None else [fixed])}))
    model.gate.threshold = cheapest(points, tolerance=config.stages.gate.tolerance).threshold if fixed is None else fixed
    ratio = candidates_per_query([each.task for each in encoded])
    model.gate.curve = [
        {
            "threshold": point.threshold,
            "quality": point.score,
            "think_rate": point.think_rate,
            **asdict(token_costs(encoded, point.threshold)),
            "candidates_per_query": ratio,
        }
        for point in points
    ]
    return points


def _choose_by_gain(config: RunConfig, model: DualLoRAModel, examples: GateBatch) -> None:
    assert examples.num_reasoning_tokens is not None
    fit = fit_threshold(out_of_fold_probability(config, model, examples), examples.gain, examples.num_reasoning_tokens)
    model.gate.threshold = fit.threshold
    model.gate.curve = [
        {
            "threshold": point.threshold,
            "quality": point.quality,
            "think_rate": point.think_rate,
            "query_tokens": point.reasoning_tokens,
            "candidate_tokens": point.reasoning_tokens,
            "reasoning_tokens": 2 * point.reasoning_tokens,
            "candidates_per_query": 1.0,
        }
        for point in fit.curve
    ]


def threshold_metrics(gate: RoutingGate) -> dict[str, float]:
    """The gate's threshold as "gate/threshold", and what its curve says there (`twn_lightning.models.gate.CurvePoint`) as "gate/chosen_quality" etc.

    A threshold that the curve does not hold, such as a fixed one without tasks, stands alone.
    """
    here = [point for point in gate.curve if point["threshold"] == gate.threshold]
    chosen = {f"gate/chosen_{name}": here[0][name] for name in _LOGGED} if here else {}
    return {"gate/threshold": gate.threshold, **chosen}


def curve_metrics(curve: Sequence[CurvePoint]) -> dict[int, dict[str, float]]:
    """A gate's curve as metrics "gate_curve/threshold", "…/quality" etc., by the percentage of the tokens that always thinking costs.

    Of points of one percentage the one with the highest threshold.

    Args:
        curve: By rising threshold, from 0.
    """
    always = curve[0]["reasoning_tokens"] or 1.0
    logged = ("threshold", *_LOGGED)
    return {round(100 * point["reasoning_tokens"] / always): {f"gate_curve/{name}": point[name] for name in logged} for point in curve}


@dataclass(frozen=True)
class TokenCosts:
    """What thinking costs on tasks, each figure the mean over tasks.

    Attributes:
        query_tokens: Reasoning tokens a query.
        candidate_tokens: Reasoning tokens a candidate.
        reasoning_tokens: Reasoning tokens of queries and candidates, each candidate once, divided by the number of queries.
    """

    query_tokens: float
    candidate_tokens: float
    reasoning_tokens: float


def token_costs(encoded: Sequence[EncodedTask], threshold: float, *, think_sides: ThinkSides = "both") -> TokenCosts:
    """What the gate spends at a threshold.

    Args:
        encoded: At least one task.
        threshold: 0 to 1.
        think_sides: A side that may not think costs nothing.
    """
    rows = []
    for each in encoded:
        of_queries, of_candidates = (
            side.reasoning_tokens(side.thinks("auto" if think_sides in ("both", name) else "never", threshold=threshold))
            for name, side in (("query", each.queries), ("candidate", each.candidates))
        )
        num_queries, num_candidates = len(each.queries), len(each.candidates)
        rows.append((of_queries / num_queries, of_candidates / num_candidates, (of_queries + of_candidates) / num_queries))
    return TokenCosts(*(sum(column) / len(rows) for column in zip(*rows, strict=True)))


def candidates_per_query(tasks: Sequence[RetrievalTask]) -> float:
    """How many candidates are encoded for each query, mean over tasks."""
    return sum(len(task.candidates) / len(task.queries) for task in tasks) / len(tasks)


def even_thresholds(encoded: Sequence[EncodedTask], *, num_steps: int = CURVE_STEPS) -> list[float]:
    """Rising thresholds from 0 to 1 between which the cost of thinking (`TokenCosts.reasoning_tokens`) falls in about equal steps.

    They lie midway between neighbouring probabilities. A step is larger only where many inputs have the same probability.

    Args:
        encoded: With thoughts.
        num_steps: Into how many parts the cost of always thinking is divided, at least 1.
    """
    probability = torch.cat([side.gate_probability.double() for each in encoded for side in (each.queries, each.candidates)])
    cost = torch.cat([side.num_reasoning_tokens.double() / len(each.queries) for each in encoded for side in (each.queries, each.candidates)])
    values, places = torch.unique(probability, return_inverse=True)
    spent_below = torch.zeros(len(values), dtype=torch.float64).index_add(0, places, cost).cumsum(0)
    marks = torch.linspace(0.0, float(spent_below[-1]), num_steps + 1, dtype=torch.float64)[1:-1]
    between = (values[1:] + values[:-1]) / 2
    if not len(between):
        return [0.0, 1.0]
    place = torch.searchsorted(spent_below, marks).clamp(max=len(between) - 1)
    return sorted({0.0, *between[place].tolist(), 1.0})


def budget_threshold(model: DualLoRAModel, tasks: Sequence[RetrievalTask], budget: float, *, think_sides: ThinkSides = "both") -> float:
    """The threshold that should spend a budget on tasks, from the gate's stored curve and the number of the tasks' queries and candidates.

    Args:
        model: Whose gate has a curve.
        tasks: What is to be evaluated; their labels and contents are not looked at.
        budget: Reasoning tokens a query, the candidates' tokens included, each candidate once; mean over tasks.
        think_sides: Which sides may think.

    Raises:
        ConfigError: There is no such threshold.
    """
    ratio = candidates_per_query(tasks)
    return threshold_within(model.gate.curve, lambda point: tokens_per_query(point, candidates_per_query=ratio, sides=think_sides), budget=budget)


def mean_sweep(encoded: Sequence[EncodedTask], thresholds: Sequence[float]) -> list[SweepPoint]:
    """Score (mean over kinds of the mean over tasks), think rate and tokens (sums) at each threshold."""
    sweeps = [threshold_sweep(each.task, each.queries, each.candidates, thresholds) for each in encoded]
    kinds = [each.task.kind for each in encoded]
    weights = torch.tensor([1.0 / (len(set(kinds)) * kinds.count(kind)) for kind in kinds], dtype=torch.float64)
    points = []
    for index, threshold in enumerate(thresholds):
        column = [sweep[index] for sweep in sweeps]
        points.append(
            SweepPoint(
                threshold=threshold,
                score=_weighted(weights, [point.score for point in column]),
                think_rate=_weighted(weights, [point.think_rate for point in column]),
                reasoning_tokens=sum(point.reasoning_tokens for point in column),
            )
        )
    return points


def cheapest(points: Sequence[SweepPoint], *, tolerance: float) -> SweepPoint:
    """The point with the fewest tokens within ``tolerance`` points of the best score; of equal ones the better, then the higher threshold."""
    best = max(point.score for point in points)
    good = [point for point in points if point.score >= best - tolerance]
    return min(good, key=lambda point: (point.reasoning_tokens, -point.score, -point.threshold))


def _weighted(weights: Tensor, values: Sequence[float]) -> float:
    return float((weights * torch.tensor(values, dtype=torch.float64)).sum())
