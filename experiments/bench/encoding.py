"""Parts of the benchmark that encode: think modes, generating before encoding anew, and not thinking against the bare backbone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from experiments.bench.baseline import GenerateThenReencode
from experiments.bench.cases import Case, Cases
from experiments.bench.subjects import THINK_RATE, Subject, World, long_items
from experiments.statistics import paired_interval
from twn_lightning.batches import Item
from twn_lightning.encoder import Encoding, Side, Think
from twn_lightning.evaluation.rank import rank_task
from twn_lightning.evaluation.store_digests import item_digest
from twn_lightning.evaluation.task import RetrievalTask
from twn_lightning.models.backbones import load_backbone
from twn_lightning.models.gate import CurvePoint

NEARLY = 0.5
"""Points of validation quality that the threshold of "nearly" may lose against thinking always."""


def modes(world: World) -> Cases:
    """Never, auto and always on queries and candidates of the test tasks, and what each of them finds."""
    for subject in world.encoding_subjects():
        yield _modes(subject, world)


def generate(world: World) -> Cases:
    """The modes against `GenerateThenReencode` on the same inputs and weights."""
    for subject in world.encoding_subjects():
        yield _generate(subject, world)


def never(world: World) -> Cases:
    """The encoder without a thought, words in and vectors out, against the forward pass of a backbone without adapters over the same tokens."""
    for subject in world.fresh_subjects():
        yield _never(subject)


def nearly_always(curve: Sequence[CurvePoint], *, tolerance: float = NEARLY) -> float:
    """The highest threshold whose quality on the validation tasks is within so many points of thinking always."""
    always = min(curve, key=lambda point: point["threshold"])["quality"]
    return max(point["threshold"] for point in curve if point["quality"] >= always - tolerance)


class _Modes:
    """An encoder in each of the modes that are compared.

    Args:
        subject: Whose gate decides by the bundle's threshold ("auto") and by that of `nearly_always` ("nearly"); a gate that knows nothing by the
            one at which `THINK_RATE` of the inputs think.
        items: Inputs.
    """

    def __init__(self, subject: Subject, items: Sequence[Item]) -> None:
        self.encoder = subject.encoder()
        self.items = items
        self._batch_size = subject.size.batch_size
        gate = self.encoder.model.gate
        self._thresholds = {"auto": gate.threshold}
        if not subject.is_trained:
            self._thresholds = {"auto": float(self.run("never").gate_probability.quantile(1.0 - THINK_RATE))}
        elif gate.curve:
            self._thresholds["nearly"] = nearly_always(gate.curve)
        self.names = ("never", *self._thresholds, "always")

    def run(self, name: str, items: Sequence[Item] | None = None, *, side: Side = "query") -> Encoding:
        """Encodes the inputs, or others, in a mode."""
        think: Think = "never" if name == "never" else "always" if name == "always" else "auto"
        self.encoder.model.gate.threshold = self._thresholds.get(name, 0.0)
        chosen = self.items if items is None else items
        return self.encoder.encode(chosen, think=think, side=side, batch_size=self._batch_size, show_progress=False, return_thoughts=True)

    def timed(self, name: str) -> Callable[[], object]:
        """What is timed."""
        return lambda: self.run(name)


def _modes(subject: Subject, world: World) -> Case:
    ways = _Modes(subject, world.items[: subject.size.inputs])
    numbers = {key: value for name in ways.names for key, value in _spent(name, ways.run(name)).items()}
    if subject.is_trained:
        numbers |= _quality(world.tasks, ways)
    return Case(_setting(subject, ways.items), {name: ways.timed(name) for name in ways.names}, subject.size.rounds, len(ways.items), numbers)


def _generate(subject: Subject, world: World) -> Case:
    ways = _Modes(subject, world.items[: subject.size.inputs])
    baseline = GenerateThenReencode(subject, batch_size=subject.size.batch_size)
    always, others = ways.run("always"), baseline.encode(ways.items).thoughts
    equal = sum(one == other for one, other in zip(always.thoughts, others, strict=True)) / len(ways.items)
    numbers = {"equal_thoughts": equal, **_spent("always", always), **_spent("auto", ways.run("auto"))}
    variants = {**{name: ways.timed(name) for name in ("never", "auto", "always")}, "generate": lambda: baseline.encode(ways.items)}
    return Case(_setting(subject, ways.items), variants, subject.size.rounds, len(ways.items), numbers)


def _never(subject: Subject) -> Case:
    encoder, size = subject.encoder(), subject.size
    processor = encoder.model.processor
    items = long_items(processor, tokens=size.prompt_tokens, rows=size.prompts)
    inputs = processor.inputs(items).to(subject.device)
    bare = load_backbone(encoder.model.backbone.path, dtype=subject.dtype, attn_implementation="sdpa", options=processor.options)
    torch.nn.Module.to(bare.model, subject.device)

    @torch.no_grad()
    def forward() -> Tensor:
        return bare.decode_layers(bare.prompt(inputs), inputs.attention_mask, None)

    def encode() -> Tensor:
        return encoder.encode(items, think="never", batch_size=len(items), show_progress=False)

    setting = f"{subject.title}; {len(items)} prompts of {inputs.input_ids.shape[1]} tokens"
    return Case(setting, {"never": encode, "bare": forward}, size.rounds, len(items))


def _spent(name: str, found: Encoding) -> dict[str, float]:
    """What a mode thought."""
    return {f"think_rate.{name}": float(found.thinks.float().mean()), f"tokens.{name}": float(found.num_reasoning_tokens.float().mean())}


def _quality(tasks: Sequence[RetrievalTask], ways: _Modes) -> dict[str, float]:
    """Mean score over the tasks in each mode, 0 to 100, and each mode's difference to always with its 95 % interval."""
    values = {name: _values(tasks, ways, name) for name in ways.names}
    numbers = {}
    for name, found in values.items():
        numbers[f"quality.{name}"] = 100.0 * sum(sum(task) / len(task) for task in found) / len(found)
        if name != "always":
            difference = paired_interval([found], [values["always"]])
            numbers |= {f"gap.{name}": difference.mean, f"gap_low.{name}": difference.low, f"gap_high.{name}": difference.high}
    return numbers


def _values(tasks: Sequence[RetrievalTask], ways: _Modes, name: str) -> list[list[float]]:
    """The metric of each query of each task; what tasks share is encoded once."""
    queries = [_named(task.query_items) for task in tasks]
    candidates = [_named(task.candidate_items) for task in tasks]
    query_vectors, candidate_vectors = _vectors(queries, ways, name, "query"), _vectors(candidates, ways, name, "document")
    return [
        rank_task(task, _rows(query_vectors, asked), _rows(candidate_vectors, offered)).values.tolist()
        for task, asked, offered in zip(tasks, queries, candidates, strict=True)
    ]


def _named(items: Sequence[Item]) -> list[tuple[bytes, Item]]:
    return [(item_digest(item, by_content=True), item) for item in items]


def _vectors(named: Sequence[Sequence[tuple[bytes, Item]]], ways: _Modes, name: str, side: Side) -> Mapping[bytes, Tensor]:
    distinct = {digest: item for task in named for digest, item in task}
    return dict(zip(distinct, ways.run(name, list(distinct.values()), side=side).vectors, strict=True))


def _rows(vectors: Mapping[bytes, Tensor], named: Sequence[tuple[bytes, Item]]) -> Tensor:
    return torch.stack([vectors[digest] for digest, _ in named])


def _setting(subject: Subject, items: Sequence[Item]) -> str:
    most = subject.decoding.max_new_tokens
    return f"{subject.title}; {len(items)} inputs, batches of {subject.size.batch_size}, thoughts of at most {most} tokens"
