"""Figures of records over seeds and tasks: scores, tokens, think rates, the gate's quality. Numbers in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from experiments.record import RunRecord, TaskRecord
from experiments.statistics import Interval, interval, paired_interval
from twn_lightning.configs.stages import GateConfig
from twn_lightning.evaluation.figures import Band

Records = Sequence[RunRecord]
Names = Sequence[str]
Array = NDArray[np.float64]
NUM_BINS = 10


def mean(numbers: Iterable[float]) -> float:
    """Of at least one number."""
    listed = list(numbers)
    return math.fsum(listed) / len(listed)


def tasks_of(record: RunRecord, names: Names) -> list[TaskRecord]:
    """The record's tasks of these names, in their order."""
    by_name = {task.name: task for task in record.tasks}
    return [by_name[name] for name in names]


def has_mode(records: Records, mode: str) -> bool:
    """Whether every task of every record was scored in a mode."""
    return bool(records) and all(mode in task.values for record in records for task in record.tasks)


def values(records: Records, mode: str, names: Names) -> list[list[tuple[float, ...]]]:
    """Of each seed, of each task, the metric of each query, as `experiments.statistics` takes it."""
    return [[task.values[mode] for task in tasks_of(record, names)] for record in records]


def score(records: Records, mode: str, names: Names) -> float:
    """Mean over seeds and tasks, 0 to 100."""
    return mean(task.score(mode) for record in records for task in tasks_of(record, names))


def score_interval(records: Records, mode: str, names: Names) -> Interval:
    """`score` with its interval."""
    return interval(values(records, mode, names))


def difference(records: Records, mode: str, others: Records, other_mode: str, names: Names) -> Interval:
    """Mean score of a mode less that of another, paired by seed and query."""
    return paired_interval(values(records, mode, names), values(others, other_mode, names))


def better_mode(records: Records, names: Names) -> str:
    """``never`` or ``always``, whichever has the higher mean; never if they are equal."""
    return "always" if score(records, "always", names) > score(records, "never", names) else "never"


def tokens(records: Records, mode: str, names: Names) -> float:
    """Reasoning tokens a query, those of candidates included, mean over seeds and tasks."""
    return mean(task.tokens_per_query(mode) for record in records for task in tasks_of(record, names))


def think_rate(records: Records, mode: str, names: Names, side: str = "both") -> float:
    """Share of inputs that think, 0 to 1, mean over seeds and tasks.

    Args:
        records: Over seeds.
        mode: Think mode.
        names: Of the tasks.
        side: ``query``, ``candidate``, ``both`` (each query and candidate counts once), or ``named``: each task's own `TaskRecord.side`.
    """
    return mean(_think_rate(task, mode, task.side if side == "named" else side) for record in records for task in tasks_of(record, names))


def _think_rate(task: TaskRecord, mode: str, side: str) -> float:
    if side == "query":
        return task.query_think_rate[mode]
    if side == "candidate":
        return task.candidate_think_rate[mode]
    num_queries, num_candidates = len(task.keys), task.num_candidates
    return (task.query_think_rate[mode] * num_queries + task.candidate_think_rate[mode] * num_candidates) / (num_queries + num_candidates)


# --- the gate ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GateInputs:
    """What the gate said and what thinking brought.

    Attributes:
        probability: 0 to 1, ``(N,)``.
        helped: 1.0 where the gain is above the margin, ``(N,)``.
    """

    probability: Array
    helped: Array

    def auroc(self) -> float:
        """How often an input that thinking helped has the higher probability; a tie counts half; NaN if all inputs are alike."""
        positive, negative = self.probability[self.helped > 0], np.sort(self.probability[self.helped <= 0])
        if not len(positive) or not len(negative):
            return math.nan
        below, not_above = np.searchsorted(negative, positive, side="left"), np.searchsorted(negative, positive, side="right")
        return float((below + not_above).mean() / (2 * len(negative)))

    def brier_skill(self) -> float:
        """1 - Brier score / Brier score of always saying the share that thinking helped; at most 1, 0 is no better; NaN if all inputs are alike."""
        share = float(self.helped.mean()) if len(self.helped) else 0.0
        if share in (0.0, 1.0):
            return math.nan
        return 1.0 - float(((self.probability - self.helped) ** 2).mean()) / (share * (1.0 - share))

    def bins(self) -> GateBins:
        """The numbers of a reliability diagram in bins of equal width."""
        index = np.clip((self.probability * NUM_BINS).astype(int), 0, NUM_BINS - 1)
        count = np.bincount(index, minlength=NUM_BINS).astype(float)
        safe = np.maximum(count, 1.0)
        confidence = np.bincount(index, weights=self.probability, minlength=NUM_BINS) / safe
        accuracy = np.bincount(index, weights=self.helped, minlength=NUM_BINS) / safe
        return GateBins(tuple(confidence.tolist()), tuple(accuracy.tolist()), tuple(count.tolist()))


@dataclass(frozen=True)
class GateBins:
    """A reliability diagram's numbers, as `twn_lightning.metrics.gate.ReliabilityBins`, without torch.

    Attributes:
        confidence: Mean probability of each bin.
        accuracy: Share of each bin that thinking helped.
        count: Inputs of each bin.
    """

    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    count: tuple[float, ...]

    @property
    def calibration_error(self) -> float:
        """Expected calibration error, 0 to 1."""
        total = max(1.0, math.fsum(self.count))
        rows = zip(self.confidence, self.accuracy, self.count, strict=True)
        return math.fsum(count / total * abs(confidence - accuracy) for confidence, accuracy, count in rows)


def label_rule(record: RunRecord) -> tuple[float, float]:
    """Margin and dead zone of the gate's labels, in nats: the run's own where its provenance holds them, else the defaults."""
    defaults = GateConfig()
    margin = float(record.provenance.get("stages.gate.margin", defaults.margin))
    return margin, float(record.provenance.get("stages.gate.dead_zone", defaults.dead_zone))


def gate_inputs(records: Records, names: Names, side: str = "both") -> GateInputs:
    """Probabilities and labels of the tasks' queries and of the candidates that some query is to find, the dead zone left out.

    Args:
        records: Over seeds.
        names: Of the tasks.
        side: ``query``, ``candidate`` or ``both``.
    """
    probability: list[float] = []
    helped: list[float] = []
    for record in records:
        margin, dead_zone = label_rule(record)
        for task in tasks_of(record, names):
            sides = {"query": (task.gate_probability, task.gain), "candidate": (task.candidate_gate_probability, task.candidate_gain)}
            for name, (said, gains) in sides.items():
                if side in (name, "both"):
                    kept = [(value, gain) for value, gain in zip(said, gains, strict=True) if abs(gain) >= dead_zone]
                    probability += [value for value, _ in kept]
                    helped += [float(gain > margin) for _, gain in kept]
    return GateInputs(np.asarray(probability, dtype=np.float64), np.asarray(helped, dtype=np.float64))


# --- sweep and budgets -------------------------------------------------------------------------------------------------------


def trade_off(records: Records, *, num_points: int = 60) -> Band | None:
    """The threshold sweep over seeds: score by tokens a query; None without a sweep.

    Each seed's score is read off straight lines between its own points, at the token counts that all seeds reach.
    """
    curves = []
    for record in records:
        points: dict[float, float] = {}
        for point in sorted(record.sweep, key=lambda point: (point["reasoning_tokens"], point["score"])):
            points[point["reasoning_tokens"]] = point["score"]  # of equal token counts the best
        if len(points) < 2:
            return None
        curves.append((np.asarray(list(points)), np.asarray(list(points.values()))))
    if not curves:
        return None
    low, high = max(spent[0] for spent, _ in curves), min(spent[-1] for spent, _ in curves)
    grid = np.linspace(low, high, num_points)
    scores = np.stack([np.interp(grid, spent, reached) for spent, reached in curves])
    return _band(grid, scores)


@dataclass(frozen=True)
class Budget:
    """Tokens a query.

    Attributes:
        asked: The budget.
        due: The budget, or what ``always`` spends if that is less.
        spent: Of each seed.
    """

    asked: float
    due: float
    spent: tuple[float, ...]

    @property
    def mean_spent(self) -> float:
        """Over the seeds."""
        return mean(self.spent)

    @property
    def miss(self) -> float:
        """Mean over the seeds of the distance from what was due, as a share of it."""
        return mean(abs(spent - self.due) / self.due for spent in self.spent)


def budgets(records: Records, names: Names) -> list[Budget]:
    """The budgets that every record was asked for, by size; a budget of 0 is left out."""
    by_asked = [{row["budget"]: row["tokens"] for row in record.budgets} for record in records]
    common = sorted({asked for rows in by_asked for asked in rows if asked > 0.0 and all(asked in others for others in by_asked)})
    most = tokens(records, "always", names) if records else 0.0
    return [Budget(asked, min(asked, most), tuple(rows[asked] for rows in by_asked)) for asked in common if min(asked, most) > 0.0]


# --- curves ------------------------------------------------------------------------------------------------------------------


def curve(records: Records, name: str, *, scale: float = 1.0) -> Band | None:
    """A training curve over the seeds that have it, by optimiser step, times a scale; None if no seed has it."""
    found = [record.curves[name] for record in records if record.curves.get(name)]
    if not found:
        return None
    steps = sorted({step for points in found for step, _ in points})
    first, last = max(points[0][0] for points in found), min(points[-1][0] for points in found)
    grid = np.asarray([step for step in steps if first <= step <= last], dtype=np.float64)
    if not len(grid):
        return None
    rows = np.stack([np.interp(grid, [step for step, _ in points], [value for _, value in points]) for points in found])
    return _band(grid, scale * rows)


def _band(grid: Array, rows: Array) -> Band:
    return Band(*(tuple(row.tolist()) for row in (grid, rows.mean(axis=0), rows.min(axis=0), rows.max(axis=0))))


def last_values(records: Records, name: str) -> list[float] | None:
    """The last value of a curve of each record; None if one lacks it."""
    if not records or not all(record.curves.get(name) for record in records):
        return None
    return [record.curves[name][-1][1] for record in records]
