"""Stage 3's way from pairs to a gate: labels from the model's own thoughts, and a threshold from validation tasks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from experiments.build import build_decoding, build_label_data
from experiments.display import progress
from experiments.runs import write_atomically
from twn_lightning.batches import GateBatch, Item
from twn_lightning.configs.run import RunConfig
from twn_lightning.evaluation.encode import EncodedItems, KnownItems, encode_items
from twn_lightning.evaluation.evaluate import SweepPoint, threshold_sweep
from twn_lightning.evaluation.self_label import GateExamples, fit_threshold, self_label
from twn_lightning.evaluation.task import RetrievalTask
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.outputs import Decoding

EXAMPLES = "gate_examples.safetensors"
THRESHOLDS = tuple(round(step * 0.02, 2) for step in range(51))


@dataclass(frozen=True)
class EncodedTask:
    """A task with everything that any threshold needs, from one pass."""

    task: RetrievalTask
    queries: EncodedItems
    candidates: EncodedItems


def gate_examples(config: RunConfig, model: DualLoRAModel, folder: Path) -> GateBatch:
    """The gate's examples, made by the model's own thoughts; read from the folder if they are there already.

    Args:
        config: The run's settings.
        model: Writes the thoughts.
        folder: The step's folder; gets ``gate_examples.safetensors`` and a sample of the thoughts.
    """
    path = folder / EXAMPLES
    if not path.is_file():
        _store(_label(config, model), path)
    tensors = load_file(str(path))
    return GateBatch(state=tensors["state"], gain=tensors["gain"], num_reasoning_tokens=tensors["num_reasoning_tokens"])


def _label(config: RunConfig, model: DualLoRAModel) -> GateExamples:
    gate = config.stages.gate
    with progress("labelling pairs by the model's own thoughts", shown=config.trainer.progress_bar) as advance:
        return self_label(
            model,
            build_label_data(config, model.processor).train_dataloader(),
            decoding=build_decoding(config.decoding),
            temperature=gate.temperature,
            sides=gate.sides,
            progress=advance,
        )


def _store(examples: GateExamples, path: Path) -> None:
    tensors = {
        "state": examples.state.contiguous(),
        "gain": examples.gain.contiguous(),
        "gate_probability": examples.gate_probability.contiguous(),
        "num_reasoning_tokens": examples.num_reasoning_tokens.contiguous(),
    }
    rows = zip(examples.source, examples.side, examples.gain.tolist(), examples.thoughts, strict=True)
    lines = [json.dumps({"source": source, "side": side, "gain": round(gain, 4), "thought": thought}) for source, side, gain, thought in rows]
    write_atomically(path.with_suffix(".jsonl"), "\n".join(lines) + "\n")
    temporary = path.with_name(path.name + ".part")
    save_file(tensors, str(temporary))
    temporary.replace(path)


def choose_threshold(config: RunConfig, model: DualLoRAModel, tasks: Sequence[RetrievalTask], examples: GateBatch) -> list[SweepPoint]:
    """Set the gate's threshold and curve by the mean score over validation tasks, each kind of task counting as much.

    The threshold is the one with the fewest reasoning tokens whose mean score lies within ``stages.gate.tolerance`` points of the best.
    Without tasks it is chosen by the gain on the examples themselves.

    Args:
        config: The run's settings.
        model: Gets ``gate.threshold`` and ``gate.curve``, whose tokens are means an input.
        tasks: Validation tasks.
        examples: Used if there are no tasks.

    Returns:
        The sweep over thresholds; empty without tasks.
    """
    if not tasks:
        with torch.no_grad():
            probability = model.gate.probability(examples.state.to(model.device)).cpu()
        assert examples.num_reasoning_tokens is not None
        fit = fit_threshold(probability, examples.gain, examples.num_reasoning_tokens)
        model.gate.threshold, model.gate.curve = fit.threshold, fit.as_dicts()
        return []
    encoded = encode_tasks(config, model, tasks)
    points = mean_sweep(encoded, THRESHOLDS)
    num_inputs = sum(len(each.queries) + len(each.candidates) for each in encoded)
    chosen = cheapest(points, tolerance=config.stages.gate.tolerance)
    model.gate.threshold = chosen.threshold
    model.gate.curve = [
        {
            "threshold": point.threshold,
            "quality": point.score,
            "reasoning_tokens": point.reasoning_tokens / num_inputs,
            "think_rate": point.think_rate,
        }
        for point in points
    ]
    return points


def encode_tasks(config: RunConfig, model: DualLoRAModel, tasks: Sequence[RetrievalTask]) -> list[EncodedTask]:
    """Encode queries and candidates once, thinking always, so that every mode and threshold can be scored."""
    decoding = build_decoding(config.decoding)
    encoded = []
    known: KnownItems = {}
    with progress("encoding tasks", shown=config.trainer.progress_bar) as advance:
        for number, task in enumerate(tasks):
            queries = _encode(config, model, [query.item for query in task.queries], decoding)
            candidates = _encode(config, model, list(task.candidates.values()), decoding, known)
            encoded.append(EncodedTask(task, queries, candidates))
            advance(number + 1, len(tasks))
    return encoded


def _encode(config: RunConfig, model: DualLoRAModel, items: Sequence[Item], decoding: Decoding, known: KnownItems | None = None) -> EncodedItems:
    return encode_items(model, items, batch_size=config.evaluation.batch_size, think="always", decoding=decoding, known=known)


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
