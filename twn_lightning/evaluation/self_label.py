"""Labels for the routing gate from the model's own chains of thought, and the threshold that suits them.

Teacher thoughts would leak the answer: the gate would learn where a teacher helps, not where this model's own thinking does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

from twn_lightning.batches import Inputs, PairBatch
from twn_lightning.errors import ConfigError, DataError, TwnError
from twn_lightning.evaluation.encode import ProgressCallback, autocasting, evaluating
from twn_lightning.losses.info_nce import false_negative_mask, positive_log_probs
from twn_lightning.models.outputs import Decoding, Encoded

if TYPE_CHECKING:
    from twn_lightning.models.dual_lora import DualLoRAModel

LabelSides: TypeAlias = Literal["query", "positive", "both"]


@dataclass(frozen=True)
class GateExamples:
    """What the gate learns from, on the CPU.

    Attributes:
        state: What the gate reads, ``(N, H)``.
        gain: u_gen - u_disc in nats, ``(N,)``.
        gate_probability: What the gate said before it learned from these, ``(N,)``.
        num_reasoning_tokens: What the thought cost, ``(N,)``.
        side: ``query`` or ``positive``, of each example.
        source: Name of the data source, of each example.
        subject: What each example is about, a name within its source: of a pair the hash of its target; of a task's query its best candidate's
            key; of a candidate its own.
        thoughts: What the model wrote, without markers.
    """

    state: Tensor
    gain: Tensor
    gate_probability: Tensor
    num_reasoning_tokens: Tensor
    side: tuple[str, ...]
    source: tuple[str, ...]
    subject: tuple[str, ...]
    thoughts: tuple[str, ...]

    def __len__(self) -> int:
        return int(self.gain.shape[0])


@dataclass(frozen=True)
class ThresholdPoint:
    """What a threshold of the gate brings and costs on held-out inputs.

    Attributes:
        threshold: An input thinks if its probability is at least this.
        quality: Mean gain over never thinking, in the unit of the gains given.
        reasoning_tokens: Mean tokens an input.
        think_rate: Share of inputs that think, 0 to 1.
    """

    threshold: float
    quality: float
    reasoning_tokens: float
    think_rate: float


@dataclass(frozen=True)
class ThresholdFit:
    """The best threshold and everything else that could have been chosen.

    Attributes:
        threshold: The best one, 0 to 1.
        curve: By rising threshold: falling think rate and tokens.
    """

    threshold: float
    curve: tuple[ThresholdPoint, ...]


def self_label(  # noqa: PLR0913 -- every argument but two has a default
    model: DualLoRAModel,
    batches: Iterable[PairBatch],
    *,
    decoding: Decoding | None = None,
    temperature: float = 0.02,
    sides: LabelSides = "both",
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
    autocast: torch.dtype | None = None,
    progress: ProgressCallback | None = None,
) -> GateExamples:
    """Lets the model think about each input and measures what that changed.

    u is the log-softmax score of the right partner among the batch: of the positive among positives and hard negatives for a query, of the
    query among queries for a positive. Partners stay discriminative, and equal targets are left out. So an example's gain is that
    of its own thinking alone. Equal inputs of a batch are encoded, and think, once.

    Args:
        model: Is put in evaluation mode, and back afterwards.
        batches: At least two pairs each, or a gain is 0.
        decoding: How thoughts are written; greedy by default.
        temperature: Divides the cosine scores, above 0.
        sides: Which inputs become examples.
        device: The model's own by default.
        generator: For sampled decoding.
        autocast: Type of the matrix products, see `AUTOCAST`; None: that of the weights. Gains are float32 in any case.
        progress: Told after each batch how many pairs are done; the total is -1 where the batches have no length.

    Raises:
        DataError: There is no batch.
        TwnError: A gain is not finite.
    """
    if temperature <= 0.0:
        raise ConfigError(f"temperature is {temperature}, but it divides the scores: choose a value above 0, such as 0.02.")
    device = device if device is not None else next(model.parameters()).device
    parts: list[GateExamples] = []
    done = 0
    with evaluating(model), autocasting(device, autocast):
        for batch in batches:
            parts.extend(_label_batch(model, batch, decoding or Decoding(), temperature, sides, device=torch.device(device), generator=generator))
            done += len(batch)
            if progress is not None:
                progress(done, _num_pairs(batches, len(batch)))
    if not parts:
        raise DataError("There is no pair to label: the gate learns from the gains of the model's own thoughts on training pairs.")
    return concatenate_examples(parts)


def concatenate_examples(parts: Sequence[GateExamples]) -> GateExamples:
    """All examples one after the other; at least one part."""
    return GateExamples(
        state=torch.cat([part.state for part in parts]),
        gain=torch.cat([part.gain for part in parts]),
        gate_probability=torch.cat([part.gate_probability for part in parts]),
        num_reasoning_tokens=torch.cat([part.num_reasoning_tokens for part in parts]),
        side=tuple(side for part in parts for side in part.side),
        source=tuple(source for part in parts for source in part.source),
        subject=tuple(subject for part in parts for subject in part.subject),
        thoughts=tuple(text for part in parts for text in part.thoughts),
    )


def fit_threshold(
    probability: Tensor, gain: Tensor, num_reasoning_tokens: Tensor, *, token_price: float = 0.0, max_points: int = 101
) -> ThresholdFit:
    """The threshold with the best mean gain on held-out inputs; of equally good ones, that which thinks least.

    Args:
        probability: The gate's, ``(N,)``.
        gain: What thinking brings each input: ``GateExamples.gain`` in nats, or the metric's difference always - never, ``(N,)``.
        num_reasoning_tokens: What thinking costs each input, ``(N,)``.
        token_price: Gain that a reasoning token must bring; 0 chooses by quality alone.
        max_points: Most points of the curve, at least 2. The thresholds lie between neighbouring probabilities, besides 0 and 1.

    Raises:
        DataError: There is no input.
    """
    if len(probability) == 0:
        raise DataError("There is no held-out input to choose the gate's threshold on.")
    curve = tuple(_point(probability, gain, num_reasoning_tokens, threshold) for threshold in _candidate_thresholds(probability, max_points))
    best = max(curve, key=lambda point: (round(point.quality - token_price * point.reasoning_tokens, 9), point.threshold))
    return ThresholdFit(threshold=best.threshold, curve=curve)


def _label_batch(
    model: DualLoRAModel,
    batch: PairBatch,
    decoding: Decoding,
    temperature: float,
    sides: LabelSides,
    *,
    device: torch.device,
    generator: torch.Generator | None,
) -> list[GateExamples]:
    def encode(inputs: Inputs, *, think: bool) -> Encoded:
        rows, places = inputs.distinct()
        encoded = model.encode(inputs.select(rows).to(device), think="always" if think else "never", decoding=decoding, generator=generator)
        return encoded.select(places.to(device))

    query = encode(batch.query, think=sides != "positive")
    positive = encode(batch.positive, think=sides != "query")
    positive_hash = batch.positive_hash.to(device)
    targets, target_hash = positive.discriminative, positive_hash
    if batch.negative is not None and batch.negative_hash is not None:
        targets = torch.cat([targets, encode(batch.negative, think=False).discriminative])
        target_hash = torch.cat([target_hash, batch.negative_hash.to(device)])
    column = torch.arange(len(batch), device=targets.device)
    examples = []
    for side, own, partners, partner_hash in (
        ("query", query, targets, target_hash),
        ("positive", positive, query.discriminative, positive_hash),
    ):
        if sides in ("both", side):
            mask = false_negative_mask(positive_hash, partner_hash, column)
            after, before = (
                positive_log_probs(vectors, partners, column, temperature=temperature, mask=mask) for vectors in (own.generative, own.discriminative)
            )
            examples.append(_examples(model, own, after - before, side, batch))
    return examples


def _examples(model: DualLoRAModel, encoded: Encoded, gain: Tensor, side: str, batch: PairBatch) -> GateExamples:
    if not bool(gain.isfinite().all()):
        raise TwnError(
            f"The gain of a {side} of source {batch.source} is not finite: the model's vectors are not. Look at the last training steps' loss."
        )
    texts = iter(model.processor.decode(encoded.thoughts) if encoded.thoughts is not None else [])
    return GateExamples(
        state=encoded.state.float().cpu(),
        gain=gain.cpu(),
        gate_probability=encoded.gate_probability.float().cpu(),
        num_reasoning_tokens=encoded.num_reasoning_tokens.cpu(),
        side=(side,) * len(gain),
        source=(batch.source,) * len(gain),
        subject=tuple(map(str, batch.positive_hash.tolist())),
        thoughts=tuple(next(texts) if thinks else "" for thinks in encoded.thinks.tolist()),
    )


def _candidate_thresholds(probability: Tensor, max_points: int) -> list[float]:
    values = torch.tensor(sorted(set(probability.double().tolist())), dtype=torch.float64)
    between = (values[1:] + values[:-1]) / 2
    inner = max(0, max_points - 2)
    if len(between) > inner:
        between = between[torch.linspace(0, len(between) - 1, inner).round().long()] if inner else between[:0]
    return [0.0, *between.tolist(), 1.0]


def _point(probability: Tensor, gain: Tensor, num_reasoning_tokens: Tensor, threshold: float) -> ThresholdPoint:
    thinks = (probability.double() >= threshold).double()
    return ThresholdPoint(
        threshold=threshold,
        quality=float((thinks * gain.double()).mean()),
        reasoning_tokens=float((thinks * num_reasoning_tokens.double()).mean()),
        think_rate=float(thinks.mean()),
    )


def _num_pairs(batches: Iterable[PairBatch], batch_size: int) -> int:
    try:
        return len(batches) * batch_size  # type: ignore[arg-type]
    except TypeError:
        return -1
