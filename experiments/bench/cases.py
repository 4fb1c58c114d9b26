"""What a part of the benchmark gives: cases of variants to be timed, and the results. Loads without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from experiments.bench.timing import Spread, Variants, interleaved


@dataclass(frozen=True)
class Case:
    """Variants that do the same work, or whose work is compared.

    Attributes:
        setting: What with and on what, for people; unique within its part.
        variants: What is timed.
        rounds: See `interleaved`.
        count: Inputs (pairs, prompts, queries) of a call, for inputs a second.
        numbers: Measured besides time. A name "mib.VARIANT" is memory of a variant.
    """

    setting: str
    variants: Variants
    rounds: int
    count: int
    numbers: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """A case that was measured.

    Attributes:
        part: Which part it is of.
        setting: As in `Case`, like the next two.
        count: Inputs of a call.
        numbers: Measured besides time.
        seconds: Variant → seconds; the k-th of two variants are neighbours.
    """

    part: str
    setting: str
    count: int
    numbers: Mapping[str, float]
    seconds: Mapping[str, tuple[float, ...]]

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Result:
        """What `dataclasses.asdict` made of it."""
        return cls(**{**row, "seconds": {name: tuple(values) for name, values in row["seconds"].items()}})

    def per_second(self, variant: str) -> float:
        """Inputs a second, by the median time."""
        return self.count / Spread.of(self.seconds[variant]).median


Cases = Iterator[Case]
"""One after the other, so that what a case holds is free before the next is made."""


def measured(part: str, case: Case, *, clock: Callable[[], float], progress: Callable[[int], None] | None = None) -> Result:
    """Times a case."""
    seconds = interleaved(case.variants, rounds=case.rounds, clock=clock, progress=progress)
    return Result(part, case.setting, case.count, dict(case.numbers), {name: tuple(values) for name, values in seconds.items()})
