"""A task's score when the model never thinks, always thinks, lets the gate decide, or is told by an oracle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import torch

from twn_lightning.batches import Item
from twn_lightning.errors import ConfigError
from twn_lightning.evaluation.encode import EncodedItems, KnownItems, ProgressCallback, ThinkMode, encode_items
from twn_lightning.evaluation.rank import TaskRanking
from twn_lightning.evaluation.routing import Routing, route, routed_values
from twn_lightning.evaluation.store import VectorStore
from twn_lightning.evaluation.task import RetrievalTask
from twn_lightning.evaluation.unreadable import Unreadable, rank_readable
from twn_lightning.models.outputs import Decoding
from twn_lightning.models.thought_writers import ThoughtWriter

if TYPE_CHECKING:
    from twn_lightning.models.dual_lora import DualLoRAModel

Mode: TypeAlias = Literal["never", "always", "auto", "oracle"]
ThinkSides: TypeAlias = Literal["both", "query", "candidate"]
MODES: tuple[Mode, ...] = get_args(Mode)
_THINKING: tuple[ThinkMode, ...] = ("never", "always", "auto")


@dataclass(frozen=True)
class ModeResult:
    """One mode's figures on one task.

    Attributes:
        score: Mean of the headline metric, 0 to 100.
        values: The metric of each query, 0 to 1.
        tie_rate: Share of queries with a tie at the positive, 0 to 1.
        query_think_rate: Share of queries that think, 0 to 1.
        candidate_think_rate: Share of candidates that think, 0 to 1.
        query_reasoning_tokens: Tokens written for all queries together.
        candidate_reasoning_tokens: Tokens written for all candidates together, each once.
        top: Best candidates of each query, best first.
        metrics: Means of every metric of MMEB-V2 at 1, 5 and 10, 0 to 1; empty for the oracle, which chooses by the headline metric.
    """

    score: float
    values: tuple[float, ...]
    tie_rate: float
    query_think_rate: float
    candidate_think_rate: float
    query_reasoning_tokens: int
    candidate_reasoning_tokens: int
    top: tuple[tuple[str, ...], ...] = ()
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def reasoning_tokens(self) -> int:
        """Tokens written for queries and candidates."""
        return self.query_reasoning_tokens + self.candidate_reasoning_tokens


@dataclass(frozen=True)
class TaskResult:
    """All modes' figures on one task.

    Attributes:
        name: Of the task, like the next five.
        num_queries: How many there are, unreadable ones too.
        num_candidates: How many there are, unreadable ones too.
        think_sides: Which sides were allowed to think.
        threshold: What ``auto`` compared the gate's probability with.
        seconds: Wall-clock time of the one encoding pass that serves all modes; of candidates shared with an earlier task, as it took then.
        modes: Mode → figures.
        unreadable: What could not be opened, if that was no error.
    """

    name: str
    modality: str
    subgroup: str
    kind: str
    metric: str
    scope: str
    num_queries: int
    num_candidates: int
    think_sides: str
    threshold: float
    seconds: float
    modes: dict[Mode, ModeResult]
    unreadable: Unreadable = field(default_factory=Unreadable)

    def think_rate(self, mode: Mode) -> float:
        """Share of the inputs on the sides that may think which think, 0 to 1."""
        result = self.modes[mode]
        queries = self.num_queries if self.think_sides != "candidate" else 0
        candidates = self.num_candidates if self.think_sides != "query" else 0
        return (result.query_think_rate * queries + result.candidate_think_rate * candidates) / (queries + candidates)


@dataclass(frozen=True)
class SweepPoint:
    """A task's score at one threshold of the gate.

    Attributes:
        threshold: 0 to 1.
        score: 0 to 100.
        think_rate: Share of queries and candidates on the sides that wrote thoughts which think, 0 to 1.
        reasoning_tokens: Tokens of all queries and candidates that think.
    """

    threshold: float
    score: float
    think_rate: float
    reasoning_tokens: int


def evaluate_task(  # noqa: PLR0913 -- the public front door; every argument has a default but two
    model: DualLoRAModel,
    task: RetrievalTask,
    *,
    modes: Sequence[Mode] = MODES,
    think_sides: ThinkSides = "both",
    threshold: float | None = None,
    batch_size: int = 32,
    max_batch_tokens: int | None = None,
    decoding: Decoding | None = None,
    device: torch.device | str | None = None,
    known: KnownItems | None = None,
    store: VectorStore | None = None,
    over_ranks: bool = False,
    autocast: torch.dtype | None = None,
    writer: ThoughtWriter | None = None,
    skip_unreadable: bool = False,
    progress: ProgressCallback | None = None,
) -> TaskResult:
    """Encodes a task once and scores every mode asked for.

    Args:
        model: A `DualLoRAModel`; no Trainer is needed.
        task: What to search, and in what.
        modes: With ``never`` alone no thought is written; with ``auto`` at the gate's own threshold, and neither ``always`` nor ``oracle``,
            only those the gate asks for.
        think_sides: A side that may not think uses its discriminative vectors in every mode.
        threshold: For ``auto``; the gate's own by default.
        batch_size: Items encoded together, at most.
        max_batch_tokens: Prompt tokens encoded together, at most; see `encode_items`.
        decoding: How thoughts are written; greedy by default.
        device: The model's own by default.
        known: Candidates of tasks evaluated before with this model and decoding, which share some; see `encode_items`.
        store: Vectors of this model on disk; see `encode_items`.
        over_ranks: Shares the encoding out among the ranks; each scores for itself, to the same result.
        autocast: Type of the matrix products; see `encode_items`.
        writer: Of the thoughts; the model itself by default.
        skip_unreadable: A query or candidate that cannot be opened is left out of the encoding and counts as `Unreadable` says.
        progress: Told after each batch, over queries and candidates together.

    Raises:
        ConfigError: A mode or side is unknown, or the threshold is no probability.
        DataError: A query or candidate cannot be opened; with ``skip_unreadable``, no query can.
        TwnError: A score is NaN or infinite.
    """
    _check(modes, think_sides, threshold)
    gate_threshold = float(model.gate.threshold)
    think = _needed_thoughts(modes, threshold_is_own=threshold in (None, gate_threshold))
    items: dict[str, Sequence[Item]] = {"query": task.query_items, "candidate": task.candidate_items}
    total = len(items["query"]) + len(items["candidate"])
    encoded: dict[str, EncodedItems] = {}
    faults: dict[str, dict[int, str]] = {side: {} for side in items}
    for side, side_items in items.items():
        done = sum(len(part) for part in encoded.values())
        encoded[side] = encode_items(
            model,
            side_items,
            batch_size=batch_size,
            max_batch_tokens=max_batch_tokens,
            think=think if think_sides in ("both", side) else "never",
            decoding=decoding,
            device=device,
            known=known if side == "candidate" else None,
            store=store,
            over_ranks=over_ranks,
            autocast=autocast,
            writer=writer,
            unreadable=faults[side] if skip_unreadable else None,
            progress=_shifted(progress, done, total),
        )
    return evaluate_encoded(
        task,
        encoded["query"],
        encoded["candidate"],
        modes=modes,
        think_sides=think_sides,
        threshold=gate_threshold if threshold is None else threshold,
        unreadable=_by_key(task, faults["query"], faults["candidate"]),
    )


def evaluate_encoded(
    task: RetrievalTask,
    queries: EncodedItems,
    candidates: EncodedItems,
    *,
    modes: Sequence[Mode] = MODES,
    think_sides: ThinkSides = "both",
    threshold: float,
    unreadable: Unreadable | None = None,
) -> TaskResult:
    """Scores every mode from vectors that are already there.

    Args:
        task: Whose queries and candidates were encoded, in its order.
        queries: With ``think="always"`` if they may think.
        candidates: With ``think="always"`` if they may think.
        modes: Which figures to compute.
        think_sides: Other sides use their discriminative vectors.
        threshold: For ``auto``, 0 to 1.
        unreadable: Whose rows hold nothing.

    Raises:
        ConfigError: A mode or side is unknown, or the threshold is no probability.
        TwnError: A score is NaN or infinite.
    """
    _check(modes, think_sides, threshold)
    needed: list[ThinkMode] = [mode for mode in _THINKING if mode in modes or (mode != "auto" and "oracle" in modes)]
    routings = [route(queries, candidates, mode=mode, think_sides=think_sides, threshold=threshold) for mode in needed]
    unreadable = unreadable or Unreadable()
    ranked = rank_readable(task, unreadable, [(queries.vectors(routing.queries), candidates.vectors(routing.candidates)) for routing in routings])
    results: dict[Mode, ModeResult] = {
        mode: _mode_result(each, queries, candidates, routing) for mode, each, routing in zip(needed, ranked, routings, strict=True)
    }
    if "oracle" in modes:
        results["oracle"] = _oracle(results["never"], results["always"], queries)
    return TaskResult(
        name=task.name,
        modality=task.modality,
        subgroup=task.subgroup,
        kind=task.kind,
        metric=task.metric,
        scope=task.scope,
        num_queries=len(task.queries),
        num_candidates=len(task.candidates),
        think_sides=think_sides,
        threshold=threshold,
        seconds=queries.seconds + candidates.seconds,
        modes={mode: results[mode] for mode in MODES if mode in modes},
        unreadable=unreadable,
    )


def threshold_sweep(
    task: RetrievalTask, queries: EncodedItems, candidates: EncodedItems, thresholds: Sequence[float], *, think_sides: ThinkSides = "both"
) -> list[SweepPoint]:
    """Score, think rate and tokens of ``auto`` at each threshold, from one encoding.

    Args:
        task: Whose queries and candidates were encoded, in its order.
        queries: With ``think="always"``; with ``"never"`` the queries never think.
        candidates: Likewise.
        thresholds: At least one, each 0 (all think) to 1.
        think_sides: Other sides never think, but count in the think rate if they wrote thoughts.
    """
    sides = [side for side in (queries, candidates) if side.generative is not None]
    num_inputs = max(1, sum(len(side) for side in sides))
    routings = [route(queries, candidates, think_sides=think_sides, threshold=threshold) for threshold in thresholds]
    values = routed_values(task, queries, candidates, routings)
    return [
        SweepPoint(
            threshold=threshold,
            score=100.0 * float(row.double().mean()),
            think_rate=(int(routing.queries.sum()) + int(routing.candidates.sum())) / num_inputs,
            reasoning_tokens=queries.reasoning_tokens(routing.queries) + candidates.reasoning_tokens(routing.candidates),
        )
        for threshold, routing, row in zip(thresholds, routings, values, strict=True)
    ]


def _needed_thoughts(modes: Sequence[Mode], *, threshold_is_own: bool) -> ThinkMode:
    if all(mode == "never" for mode in modes):
        return "never"
    if threshold_is_own and "always" not in modes and "oracle" not in modes:
        return "auto"
    return "always"


def _by_key(task: RetrievalTask, queries: dict[int, str], candidates: dict[int, str]) -> Unreadable:
    if not queries and not candidates:
        return Unreadable()
    keys = list(task.candidates)
    return Unreadable({task.queries[number].key: why for number, why in queries.items()}, {keys[number]: why for number, why in candidates.items()})


def _shifted(progress: ProgressCallback | None, offset: int, total: int) -> ProgressCallback | None:
    if progress is None:
        return None
    report = progress
    return lambda done, _: report(offset + done, total)


def _mode_result(ranked: TaskRanking, queries: EncodedItems, candidates: EncodedItems, routing: Routing) -> ModeResult:
    return ModeResult(
        score=100.0 * float(ranked.values.double().mean()),
        values=tuple(ranked.values.tolist()),
        tie_rate=ranked.tie_rate,
        query_think_rate=float(routing.queries.float().mean()),
        candidate_think_rate=float(routing.candidates.float().mean()),
        query_reasoning_tokens=queries.reasoning_tokens(routing.queries),
        candidate_reasoning_tokens=candidates.reasoning_tokens(routing.candidates),
        top=ranked.top,
        metrics=ranked.metrics,
    )


def _oracle(never: ModeResult, always: ModeResult, queries: EncodedItems) -> ModeResult:
    """Per query the better of both, `never` where they are equal; once any query uses `always`, its candidates have all thought."""
    better = torch.tensor([after > before for before, after in zip(never.values, always.values, strict=True)])
    thinks = better & queries.thought if always.query_think_rate > 0 else torch.zeros_like(better)
    values = torch.where(better, torch.tensor(always.values), torch.tensor(never.values))
    any_better = bool(better.any())
    return ModeResult(
        score=100.0 * float(values.double().mean()),
        values=tuple(values.tolist()),
        tie_rate=max(never.tie_rate, always.tie_rate),
        query_think_rate=float(thinks.float().mean()),
        candidate_think_rate=always.candidate_think_rate if any_better else 0.0,
        query_reasoning_tokens=queries.reasoning_tokens(thinks),
        candidate_reasoning_tokens=always.candidate_reasoning_tokens if any_better else 0,
        top=tuple(after if use else before for use, before, after in zip(better.tolist(), never.top, always.top, strict=True)),
    )


def _check(modes: Sequence[str], think_sides: str, threshold: float | None) -> None:
    unknown = [mode for mode in modes if mode not in MODES]
    if unknown or not modes:
        raise ConfigError(f"modes is {list(modes)}: choose at least one of {', '.join(MODES)}.")
    if think_sides not in get_args(ThinkSides):
        raise ConfigError(f'think_sides is "{think_sides}": choose one of {", ".join(get_args(ThinkSides))}.')
    if threshold is not None and not 0.0 <= threshold <= 1.0:
        raise ConfigError(f"threshold is {threshold}, but it is compared with a probability: choose a value from 0 (always think) to 1 (never).")
