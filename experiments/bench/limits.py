"""What the benchmark's numbers are held against, and which of them hold. Loads without torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from experiments.bench.cases import Result
from experiments.bench.timing import Spread, ratios, slope
from experiments.results_page.words import number, signed


@dataclass(frozen=True)
class Limit:
    """What a ratio of two variants is held against.

    Attributes:
        part: Whose results it is for: all that have both variants.
        over: The variant above the line.
        under: The variant below it.
        bound: Of the median ratio.
        sense: Whether the ratio is to be at most or at least the bound.
        of: Times, or memory.
        divided_by: A number of the result by which the bound is divided; empty for none.
    """

    part: str
    over: str
    under: str
    bound: float
    sense: Literal["at most", "at least"] = "at most"
    of: Literal["seconds", "mib"] = "seconds"
    divided_by: str = ""

    def verdict(self, result: Result) -> Verdict | None:
        """On a result; None where it does not apply."""
        found = self.ratio(result)
        if found is None:
            return None
        bound = self.bound / (result.numbers[self.divided_by] if self.divided_by else 1.0)
        holds = found.median <= bound if self.sense == "at most" else found.median >= bound
        quantity = "memory kept: " if self.of == "mib" else ""
        what = f"{quantity}{TITLES[self.part][self.over]} / {TITLES[self.part][self.under]}"
        value = spread(found) if self.of == "seconds" else number(found.median, 2)
        return Verdict(self.part, what, result.setting, value, f"{self.sense} {number(bound, 3 if self.divided_by else 2)}", holds)

    def ratio(self, result: Result) -> Spread | None:
        """Of a result, or None where it does not apply."""
        if result.part != self.part:
            return None
        if self.of == "mib":
            over, under = (result.numbers.get(f"mib.{name}") for name in (self.over, self.under))
            return None if over is None or under is None else Spread(over / under, over / under, over / under)
        if self.over not in result.seconds or self.under not in result.seconds:
            return None
        return Spread.of(ratios(result.seconds[self.over], result.seconds[self.under]))


@dataclass(frozen=True)
class Verdict:
    """Whether something holds.

    Attributes:
        part: Of the benchmark.
        what: Is held against a limit.
        setting: With what.
        value: Measured, as words.
        limit: Likewise.
        holds: Whether it does.
    """

    part: str
    what: str
    setting: str
    value: str
    limit: str
    holds: bool


TITLES: dict[str, dict[str, str]] = {
    "modes": {"never": "never", "auto": "auto", "nearly": "auto, nearly always' quality", "always": "always"},
    "generate": {"never": "never", "auto": "auto", "always": "always", "generate": "generate, then encode anew"},
    "never": {"never": "encoder, never", "bare": "bare forward"},
    "stage1": {
        "stage1": "stage 1",
        "plain": "plain LoRA",
        "checkpointed": "plain LoRA, gradient checkpointing",
        "grad_cache": "plain LoRA, GradCache",
    },
    "rollouts": {
        "shared": "reading once",
        "separate": "reading G times",
        "shared_rollout": "reading once, with thoughts",
        "separate_rollout": "reading G times, with thoughts",
    },
    "ranking": {"bare": "product and best", "rank": "rank_task", "search": "Encoder.search"},
}
"""Part → variant → what it is called."""

LIMITS = (
    Limit("modes", "always", "auto", 2.0, "at least"),
    Limit("modes", "always", "nearly", 2.0, "at least"),
    Limit("generate", "generate", "auto", 3.0, "at least"),
    Limit("never", "never", "bare", 1.15),
    Limit("stage1", "stage1", "plain", 0.6),
    Limit("stage1", "stage1", "checkpointed", 0.4),
    Limit("stage1", "stage1", "plain", 0.35, of="mib"),
    Limit("rollouts", "shared", "separate", 1.1, divided_by="group_size"),
    Limit("ranking", "rank", "bare", 1.3),
    Limit("ranking", "search", "bare", 1.3),
)
EQUAL_THOUGHTS = 0.99
"""Share of the baseline's thoughts that are the encoder's; fewer, and the two have not done the same work."""
SLOPES = {"batch size": 1.05, "prompt tokens": 1.25, "corpus size": 1.05}
"""By what grows: 1 is twice the time for twice as much; attention over a prompt grows with its square."""


def verdicts(results: Sequence[Result]) -> list[Verdict]:
    """All of them, part by part in the order of the results."""
    return [verdict for result in results for verdict in _of(result)]


def growth(result: Result) -> float:
    """Exponent by which a scaling's median times grow."""
    return slope([float(name) for name in result.seconds], [Spread.of(values).median for values in result.seconds.values()])


def grows_by(result: Result) -> str:
    """Which of `SLOPES` a scaling is about."""
    return result.setting.partition(",")[0]


def spread(found: Spread, digits: int = 2) -> str:
    """Median and the tenth and ninetieth percentile."""
    return f"{number(found.median, digits)} [{number(found.low, digits)}, {number(found.high, digits)}]"


def _of(result: Result) -> Iterator[Verdict]:
    for limit in LIMITS:
        verdict = limit.verdict(result)
        if verdict is not None:
            yield verdict
    if "equal_thoughts" in result.numbers:
        share = result.numbers["equal_thoughts"]
        yield Verdict(result.part, "share of equal thoughts", result.setting, number(share, 3), f"at least {EQUAL_THOUGHTS}", share >= EQUAL_THOUGHTS)
    for name in ("auto", "nearly"):
        if f"gap.{name}" in result.numbers:
            gap, low, high = (result.numbers[f"{key}.{name}"] for key in ("gap", "gap_low", "gap_high"))
            value = f"{signed(gap)} [{number(low)}, {number(high)}] points"
            yield Verdict(result.part, f"quality: {TITLES['modes'][name]} − always", result.setting, value, "interval reaches 0", high >= 0.0)
    if result.part == "scaling":
        bound = SLOPES[grows_by(result)]
        exponent = growth(result)
        yield Verdict(result.part, "exponent of growth", result.setting, number(exponent, 2), f"at most {bound}", exponent <= bound)
