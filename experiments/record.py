"""What a finished run leaves for comparisons: everything a results page needs, as plain numbers. Loads without torch."""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from twn_lightning.errors import DataError

RECORD = "record.json"
REFERENCES = ("random", "confidence", "query", "candidate")
"""What is reported beside never, always, auto and oracle: see `twn_lightning.evaluation.routing`."""
DIGITS = 5


@dataclass(frozen=True)
class TaskRecord:
    """One test task, query by query.

    Attributes:
        name: Of the task, like the next six.
        kind: ``plain`` or ``composing``.
        side: Side on which thinking should pay on a composing task: ``query`` or ``candidate``; empty on a plain one.
        modality: ``image``, ``video`` or ``visdoc``.
        subgroup: The average below the modality.
        metric: Headline metric.
        num_candidates: How many there are.
        keys: Of the test queries.
        values: Mode → metric of each query, 0 to 1; in "random" the mean over draws.
        query_tokens: Mode → reasoning tokens of all queries together; in "random" the rounded mean over draws.
        candidate_tokens: Mode → reasoning tokens of all candidates together, each once; likewise.
        query_think_rate: Mode → share of queries that think, 0 to 1.
        candidate_think_rate: Mode → share of candidates that think, 0 to 1.
        gain: What each query's own thought brings, in nats, candidates staying discriminative: see `routing.query_gain`.
        gate_probability: Of each query.
        thought_tokens: Of each query's thought.
        candidate_keys: Of the candidates that some query is to find; the next three follow their order.
        candidate_gain: What each of these candidates' own thought brings, in nats, queries staying discriminative.
        candidate_gate_probability: Of each of these candidates.
        candidate_thought_tokens: Of each of these candidates' thought.
    """

    name: str
    kind: str
    side: str
    modality: str
    subgroup: str
    metric: str
    num_candidates: int
    keys: tuple[str, ...]
    values: dict[str, tuple[float, ...]]
    query_tokens: dict[str, int]
    candidate_tokens: dict[str, int]
    query_think_rate: dict[str, float]
    candidate_think_rate: dict[str, float]
    gain: tuple[float, ...]
    gate_probability: tuple[float, ...]
    thought_tokens: tuple[int, ...]
    candidate_keys: tuple[str, ...]
    candidate_gain: tuple[float, ...]
    candidate_gate_probability: tuple[float, ...]
    candidate_thought_tokens: tuple[int, ...]

    def score(self, mode: str) -> float:
        """Mean metric over the queries, 0 to 100."""
        return 100.0 * math.fsum(self.values[mode]) / len(self.keys)

    def tokens_per_query(self, mode: str) -> float:
        """Reasoning tokens of queries and candidates, each candidate once, divided by the number of queries."""
        return (self.query_tokens[mode] + self.candidate_tokens[mode]) / len(self.keys)


@dataclass(frozen=True)
class Example:
    """A query whose ranking its own thought changed.

    Attributes:
        task: Name of the task.
        key: Of the query.
        thought: What the model wrote.
        before: Its three best candidates without thinking.
        after: Its three best candidates with its thought, the candidates unchanged.
        label: Its best-graded candidate.
        gain: As in `TaskRecord.gain`, nats.
    """

    task: str
    key: str
    thought: str
    before: tuple[str, ...]
    after: tuple[str, ...]
    label: str
    gain: float


@dataclass(frozen=True)
class RunRecord:
    """A finished run.

    Attributes:
        run: Its name.
        ablation: What it belongs to; empty for a run of its own.
        variant: Of the ablation.
        seed: Of the run.
        threshold: The gate's, chosen on validation tasks.
        provenance: Commit, versions, data revision and digests, settings of the evaluation and of the gate's labels.
        parameters: Counts by part, and their ratio to the backbone.
        seconds: Step → wall-clock time of its training.
        tasks: The test tasks.
        sweep: By rising threshold, on the test tasks: threshold, score (0 to 100, mean over tasks), think_rate, reasoning_tokens (a query,
            candidates' tokens included, mean over tasks).
        validation_curve: ``gate.curve`` of the bundle: see `experiments.gating.choose_threshold`.
        curves: Metric → (step, value) while training, at most 120 points each.
        examples: Thoughts that helped most, and that misled most.
        budgets: Rows of budget (asked), threshold (chosen on the validation tasks) and tokens (spent on the test tasks).
    """

    run: str
    ablation: str
    variant: str
    seed: int
    threshold: float
    provenance: dict[str, str]
    parameters: dict[str, float]
    seconds: dict[str, float]
    tasks: tuple[TaskRecord, ...]
    sweep: tuple[dict[str, float], ...]
    validation_curve: tuple[dict[str, float], ...]
    curves: dict[str, tuple[tuple[int, float], ...]]
    examples: tuple[Example, ...]
    budgets: tuple[dict[str, float], ...]

    def to_json(self) -> str:
        """The record as one line of JSON: five decimals, and five digits of numbers below 0.1.

        Raises:
            DataError: A number is not finite.
        """
        return json.dumps(_plain(self, "record"), separators=(",", ":"), ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, name: str = "record") -> RunRecord:
        """The record that `to_json` wrote.

        Args:
            text: JSON.
            name: What messages call it, such as the file's path.

        Raises:
            DataError: It is not JSON, or a field is missing, unknown or of another type; the message names it.
        """
        try:
            loaded = json.loads(text)
        except ValueError as error:
            raise DataError(f"{name} is not JSON ({error}): evaluate the run again, or copy the file again.") from error
        return _fields(loaded, cls, name)


def read_record(path: Path) -> RunRecord:
    """The record of a file.

    Raises:
        DataError: It cannot be read, or is no record of this version.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): a run leaves its record after the test tasks.") from error
    return RunRecord.from_json(text, name=str(path))


T = TypeVar("T")


def _rounded(value: float, where: str) -> float | int:
    if not math.isfinite(value):
        raise DataError(f"{where} is {value}, which JSON cannot hold: look at the run's losses, since the model's vectors are not finite.")
    short = round(value, DIGITS) if abs(value) >= 0.1 else float(f"{value:.{DIGITS}g}")
    return int(short) if short == int(short) else short


def _plain(value: object, where: str) -> object:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name), f"{where}.{field.name}") for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {key: _plain(entry, f"{where}[{key!r}]") for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry, where) for entry in value]
    return _rounded(value, where) if isinstance(value, float) else value


def _typed(value: object, kind: Any, where: str) -> Any:
    """A value of a type hint from plain JSON: dataclasses, tuples, dicts with string keys, float, int and str."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _fields(value, kind, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple and isinstance(value, list):
        if arguments[-1] is Ellipsis:
            return tuple(_typed(entry, arguments[0], f"{where}[{number}]") for number, entry in enumerate(value))
        if len(value) == len(arguments):
            return tuple(_typed(entry, argument, where) for entry, argument in zip(value, arguments, strict=True))
    if origin is dict and isinstance(value, dict):
        return {key: _typed(entry, arguments[1], f"{where}[{key!r}]") for key, entry in value.items()}
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if kind in (int, str) and type(value) is kind:
        return value
    expected = kind.__name__ if kind in (float, int, str) else str(kind)
    raise DataError(f"{where} is {str(value)[:60]!r}, but a record of this version holds {expected} there: evaluate the run again.")


def _fields(value: object, kind: type[T], where: str) -> T:
    hints = typing.get_type_hints(kind)
    if not isinstance(value, dict):
        raise DataError(f"{where} is {str(value)[:60]!r}, but a record of this version holds {kind.__name__} there: evaluate the run again.")
    missing, unknown = sorted(set(hints) - set(value)), sorted(set(value) - set(hints))
    if missing or unknown:
        parts = [f"lacks {', '.join(missing)}"] if missing else []
        parts += [f"holds {', '.join(unknown)}, which this version does not know"] if unknown else []
        raise DataError(f"{where} {' and '.join(parts)}: evaluate the run again with this version.")
    return kind(**{name: _typed(value[name], hint, f"{where}.{name}") for name, hint in hints.items()})
