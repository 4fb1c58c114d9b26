"""The variants of an ablation side by side, from the records of their runs. Loads without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from experiments.record import RunRecord, TaskRecord
from experiments.statistics import Interval, PerQuery, interval, paired_interval
from twn_lightning.errors import DataError

if TYPE_CHECKING:
    from rich.table import Table

MODES = ("never", "always", "auto")
OWN = "score"
"""The column of each row's own mode."""
KINDS = ("all", "plain", "composing")


@dataclass(frozen=True)
class Row:
    """A variant's figures over its seeds and all test tasks.

    Attributes:
        variant: Its name.
        seeds: Whose runs are finished.
        mode: The mode whose difference, think rate and tokens are given.
        scores: "all", "plain", "composing" → mode → mean with its interval; only what the tasks and the records hold.
        difference: To the reference, paired by seed and query; None for the reference itself, and without common seeds.
        think_rate: Share of inputs that think, mean over tasks and seeds.
        tokens: Reasoning tokens a query, mean over tasks and seeds.
    """

    variant: str
    seeds: tuple[int, ...]
    mode: str
    scores: dict[str, dict[str, Interval]]
    difference: Interval | None
    think_rate: float
    tokens: float

    def metrics(self) -> dict[str, float]:
        """The figures under metric names: ``auto/all/mean``, ``auto/all/low``, ``difference/mean``, ``think_rate``, …"""
        numbers = {"think_rate": self.think_rate, "tokens_per_query": self.tokens, "num_seeds": float(len(self.seeds))}
        named = {f"{mode}/{kind}": found for kind, modes in self.scores.items() for mode, found in modes.items()}
        if self.difference is not None:
            named["difference"] = self.difference
        for name, found in named.items():
            numbers.update({f"{name}/mean": found.mean, f"{name}/low": found.low, f"{name}/high": found.high})
        return numbers


Records = Mapping[int, RunRecord]
"""Seed → the record of its run."""


def compare(variants: Mapping[str, Records], reference: Records, *, modes: Mapping[str, str]) -> list[Row]:
    """A row for each variant that has a record, in their order.

    Args:
        variants: Variant → its records.
        reference: The base runs, with which each variant is compared in auto.
        modes: Variant → the mode it is compared in, if that is not auto.
    """
    rows = []
    for variant, records in variants.items():
        mode = modes.get(variant, "auto")
        if records:
            seeds = sorted(set(records) & set(reference))
            is_reference = records == reference and mode == "auto"
            difference = None if is_reference else paired(records, reference, seeds, mode, "auto")
            rows.append(_row(variant, records, mode=mode, shown=MODES, difference=difference))
    return rows


def compare_modes(records: Records, reads: Mapping[str, str], *, reference: str) -> list[Row]:
    """A row for each mode of the same runs.

    Args:
        records: Of the base runs.
        reads: Variant → the record's mode that it stands for.
        reference: The variant that the others are compared with.
    """
    rows = []
    for variant, mode in reads.items():
        difference = None if variant == reference else paired(records, records, sorted(records), mode, reads[reference])
        rows.append(_row(variant, records, mode=mode, shown=(mode,), difference=difference))
    return rows


def paired(records: Records, reference: Records, seeds: Sequence[int], mode: str, reference_mode: str) -> Interval | None:
    """The difference in the seeds that both have; None if there are none.

    Raises:
        DataError: The runs were tested on other queries.
    """
    for seed in seeds:
        mine, base = records[seed], reference[seed]
        if [(task.name, task.keys) for task in mine.tasks] != [(task.name, task.keys) for task in base.tasks]:
            raise DataError(
                f"Runs {mine.run} and {base.run} were tested on different queries: finish both with the same suite and evaluation settings."
            )
    if not seeds:
        return None
    return paired_interval(per_query(records, seeds, mode), per_query(reference, seeds, reference_mode))


def per_query(records: Records, seeds: Sequence[int], mode: str, *, kind: str = "all") -> PerQuery:
    """Of each seed and each task of a kind the metric of each query, as `experiments.statistics` takes them."""
    return [[task.values[mode] for task in _tasks(records[seed], kind)] for seed in seeds]


def comparison_table(title: str, rows: Sequence[Row], *, modes: Sequence[str] = MODES, reference: str) -> Table:
    """The rows for the terminal.

    Args:
        title: Stands above.
        rows: What to show.
        modes: Columns of scores, `OWN` among them or not; a row that lacks one leaves it empty.
        reference: What the differences are to.
    """
    from rich import box
    from rich.table import Table

    caption = (
        "Mean over seeds and test tasks, 0 to 100, ± half of its 95 % interval over seeds and queries (one seed: over queries alone); difference "
        "paired by query."
    )
    table = Table(title=title, title_justify="left", caption=caption, box=box.SIMPLE_HEAD)
    for heading in ("variant", "seeds", *modes, "mode", f"− {reference}", "think", "tokens"):
        table.add_column(heading, justify="left" if heading in ("variant", "mode") else "right", no_wrap=True)
    for row in rows:
        table.add_row(*cells(row, modes))
    return table


def comparison_markdown(rows: Sequence[Row], *, modes: Sequence[str] = MODES, reference: str) -> str:
    """The rows as a Markdown table."""
    lines = ["| " + " | ".join(("variant", "seeds", *modes, "mode", f"− {reference}", "think", "tokens")) + " |"]
    lines.append("|---|---:|" + "---:|" * len(modes) + "---|---:|---:|---:|")
    return "\n".join([*lines, *("| " + " | ".join(cells(row, modes)) + " |" for row in rows)]) + "\n"


def cells(row: Row, modes: Sequence[str]) -> list[str]:
    """A row's texts."""
    scores = row.scores["all"]
    shown = [plus_minus(found) if (found := scores.get(row.mode if mode == OWN else mode)) is not None else "" for mode in modes]
    difference = "–" if row.difference is None else f"{row.difference.mean:+.1f} [{row.difference.low:+.1f}, {row.difference.high:+.1f}]"
    return [row.variant, str(len(row.seeds)), *shown, row.mode, difference, f"{row.think_rate:.2f}", f"{row.tokens:.1f}"]


def plus_minus(found: Interval) -> str:
    """The mean and half the width, such as 61.4 ± 1.2."""
    return f"{found.mean:.1f} ± {found.half_width:.1f}"


def _row(variant: str, records: Records, *, mode: str, shown: Sequence[str], difference: Interval | None) -> Row:
    seeds = tuple(sorted(records))
    kinds = [kind for kind in KINDS if all(_tasks(record, kind) for record in records.values())]
    held = [name for name in shown if all(name in task.values for record in records.values() for task in record.tasks)]
    return Row(
        variant=variant,
        seeds=seeds,
        mode=mode,
        scores={kind: {name: interval(per_query(records, seeds, name, kind=kind)) for name in held} for kind in kinds},
        difference=difference,
        think_rate=_mean([_think_rate(task, mode) for record in records.values() for task in record.tasks]),
        tokens=_mean([task.tokens_per_query(mode) for record in records.values() for task in record.tasks]),
    )


def _tasks(record: RunRecord, kind: str) -> list[TaskRecord]:
    return [task for task in record.tasks if kind in ("all", task.kind)]


def _think_rate(task: TaskRecord, mode: str) -> float:
    num_queries, num_candidates = len(task.keys), task.num_candidates
    thinking = task.query_think_rate[mode] * num_queries + task.candidate_think_rate[mode] * num_candidates
    return thinking / (num_queries + num_candidates)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
