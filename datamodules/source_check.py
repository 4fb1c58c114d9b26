"""What is wrong with the rows of a source, and how long they are, before a model is loaded or trained."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from datamodules.collate import target_hash
from datamodules.pair_source import PairSource
from datamodules.row_source import FAULT_TITLES, REPAIR_TITLES, Fault, Reading, Repair, RowError, RowSource
from datamodules.sources.jsonl import JsonlSource
from twn_lightning.batches import Item, Pair
from twn_lightning.errors import DataError

if TYPE_CHECKING:
    from twn_lightning.models.backbones.base import Processor

_MESSAGES_KEPT = 1000
_MESSAGES_LISTED = 20


@dataclass(frozen=True)
class Lengths:
    """Lengths in tokens of one field of a source's rows.

    Attributes:
        num_measured: Of how many rows.
        median: Half of them are at most as long.
        high: 95 % of them are at most as long.
        maximum: The longest one.
        num_over: How many are longer than the run allows.
    """

    num_measured: int
    median: int
    high: int
    maximum: int
    num_over: int


@dataclass(frozen=True)
class SourceCheck:
    """What a check of a source found.

    Attributes:
        name: The source's name.
        num_rows: Its rows; 0 if it cannot be opened.
        num_checked: Rows that were read.
        faults: Rows that cannot be used, by kind.
        repairs: Rows that are mended when they are used, by kind.
        messages: What is wrong with each faulty row, the first thousand.
        num_targets: Different targets among the rows that can be used.
        num_without_cot: Rows that can be used and lack a chain of thought.
        lengths: By field: "query", "positive", "negative", "query_cot", "positive_cot".
    """

    name: str
    num_rows: int = 0
    num_checked: int = 0
    faults: Mapping[Fault, int] = field(default_factory=dict)
    repairs: Mapping[Repair, int] = field(default_factory=dict)
    messages: tuple[str, ...] = ()
    num_targets: int = 0
    num_without_cot: int = 0
    lengths: Mapping[str, Lengths] = field(default_factory=dict)

    @property
    def num_faulty(self) -> int:
        """Rows that cannot be used."""
        return sum(self.faults.values())

    @property
    def is_complete(self) -> bool:
        """Whether it can be opened and every row that was read can be used."""
        return not self.messages

    @property
    def duplicate_share(self) -> float:
        """Share of usable rows whose target an earlier row has too, 0 to 1."""
        usable = self.num_checked - self.num_faulty
        return 1 - self.num_targets / usable if usable else 0.0


def check_source(
    source: PairSource,
    processor: Processor | None,
    *,
    max_rows: int | None = None,
    max_measured: int = 500,
    max_prompt_tokens: int | None = None,
    max_thought_tokens: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> SourceCheck:
    """Reads the rows of a source and measures some of them.

    Args:
        source: The source; one that skips faulty rows is read row by row all the same.
        processor: Makes tokens, without limits of its own; None measures nothing.
        max_rows: Rows to read, evenly spaced; None for all.
        max_measured: Rows to measure, evenly spaced among those; their media are decoded.
        max_prompt_tokens: Longer prompts are faults; None for no limit.
        max_thought_tokens: Longer chains of thought are faults; None for no limit.
        progress: Called with how many rows are read and how many will be.
    """
    rows = spaced(len(source), max_rows)
    measured = {rows[place] for place in spaced(len(rows), max_measured)} if processor is not None else set()
    found = _Found(processor, max_prompt_tokens, max_thought_tokens)
    if isinstance(source, JsonlSource):
        found.skip(source.skipped)
    for done, row in enumerate(rows, start=1):
        found.read(source, row, is_measured=row in measured)
        progress(done, len(rows))
    num_left_out = len(source.skipped) if isinstance(source, JsonlSource) else 0
    return found.result(source.name, num_rows=len(source) + num_left_out, num_checked=len(rows) + num_left_out)


def spaced(length: int, wanted: int | None) -> list[int]:
    """At most so many numbers from 0 to ``length - 1``, evenly spaced, the first and the last one included."""
    if wanted is None or wanted >= length:
        return list(range(length))
    return [int(place) for place in np.linspace(0, length - 1, wanted).round()]


class _Found:
    def __init__(self, processor: Processor | None, max_prompt_tokens: int | None, max_thought_tokens: int | None) -> None:
        self.processor = processor
        self.limits = {"prompt": max_prompt_tokens or math.inf, "thought": max_thought_tokens or math.inf}
        self.faults: Counter[Fault] = Counter()
        self.repairs: Counter[Repair] = Counter()
        self.messages: list[str] = []
        self.targets: set[int] = set()
        self.num_without_cot = 0
        self.lengths: dict[str, list[int]] = {}

    def skip(self, messages: Sequence[str]) -> None:
        self.faults.update({"field": len(messages)} if messages else {})
        self.messages += messages[:_MESSAGES_KEPT]

    def read(self, source: PairSource, row: int, *, is_measured: bool) -> None:
        try:
            reading = source.read(row) if isinstance(source, RowSource) else Reading(source[row])
            if is_measured:
                self._measure(reading.pair)
            self.targets.add(target_hash(reading.pair))
        except DataError as error:
            self.faults[error.fault if isinstance(error, RowError) else "prompt"] += 1
            if len(self.messages) < _MESSAGES_KEPT:
                self.messages.append(str(error))
            return
        self.repairs.update(reading.repairs)
        self.num_without_cot += not (reading.pair.query_cot and reading.pair.positive_cot)

    def _measure(self, pair: Pair) -> None:
        assert self.processor is not None
        items: list[tuple[str, Item]] = [("query", pair.query), ("positive", pair.positive), *(("negative", item) for item in pair.negatives)]
        for name, item in items:
            self._add(pair, name, int(self.processor.inputs([item]).attention_mask.sum()), "prompt")
        for name in ("query_cot", "positive_cot"):
            if text := getattr(pair, name):
                self._add(pair, name, int(self.processor.thoughts([text]).mask.sum()), "thought")

    def _add(self, pair: Pair, name: str, num_tokens: int, kind: str) -> None:
        self.lengths.setdefault(name, []).append(num_tokens)
        if num_tokens > self.limits[kind]:
            raise RowError(
                f"{pair.source}, row {pair.key!r}: {name} has {num_tokens} tokens, more than backbone.max_{kind}_tokens={self.limits[kind]}: "
                "raise it, show smaller pictures or fewer frames, or set on_error=skip.",
                "prompt",
            )

    def result(self, name: str, *, num_rows: int, num_checked: int) -> SourceCheck:
        return SourceCheck(
            name=name,
            num_rows=num_rows,
            num_checked=num_checked,
            faults=dict(self.faults),
            repairs=dict(self.repairs),
            messages=tuple(self.messages),
            num_targets=len(self.targets),
            num_without_cot=self.num_without_cot,
            lengths={field: self._summary(field, counts) for field, counts in self.lengths.items()},
        )

    def _summary(self, name: str, counts: list[int]) -> Lengths:
        limit = self.limits["thought" if name.endswith("_cot") else "prompt"]
        ordered = sorted(counts)
        at = [ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.95)]
        return Lengths(len(ordered), at[0], at[1], ordered[-1], sum(count > limit for count in ordered))


def markdown(checks: Sequence[SourceCheck]) -> str:
    """A table of the sources, one of their lengths, and what is wrong with each; of a source at most 20 rows."""
    num_complete = sum(check.is_complete for check in checks)
    lines = [f"{num_complete} of {len(checks)} sources are complete; {sum(check.num_faulty for check in checks)} rows cannot be used.", ""]
    lines += ["| source | rows | read | faulty | mended | equal targets | without CoT |", "|---|--:|--:|--:|--:|--:|--:|"]
    for check in checks:
        counts = f"{check.num_rows:,} | {check.num_checked:,} | {check.num_faulty:,} | {sum(check.repairs.values()):,}"
        lines.append(f"| {check.name} | {counts} | {check.duplicate_share:.1%} | {check.num_without_cot:,} |")
    measured = [(check.name, name, lengths) for check in checks for name, lengths in check.lengths.items()]
    if measured:
        lines += ["", "| source | field | measured | median | 95 % | longest | too long |", "|---|---|--:|--:|--:|--:|--:|"]
        for source, name, one in measured:
            share = one.num_over / one.num_measured
            lines.append(f"| {source} | {name} | {one.num_measured:,} | {one.median:,} | {one.high:,} | {one.maximum:,} | {share:.1%} |")
    for check in checks:
        counted = [f"* {FAULT_TITLES[fault]}: {count:,}" for fault, count in check.faults.items()]
        counted += [f"* {REPAIR_TITLES[repair]}: {count:,}" for repair, count in check.repairs.items()]
        listed = [f"    * {message}" for message in check.messages[:_MESSAGES_LISTED]]
        more = max(check.num_faulty, len(check.messages)) - len(listed)
        if counted or listed:
            lines += ["", f"**{check.name}**", "", *counted, *listed, *([f"    * … and {more:,} more"] if more > 0 else [])]
    return "\n".join(lines) + "\n"
