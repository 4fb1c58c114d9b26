"""What the method claims, held against the records: each verdict follows the numbers, and says by how much and where it fails."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from experiments.results_page import numbers
from experiments.results_page.collection import Collection
from experiments.results_page.words import change, listed, number, percent, signed, table, with_interval

MODES = ("never", "always", "auto", "oracle", "random", "confidence")
SHARE_OF_TOKENS, AUROC, CALIBRATION, PLAIN_RATE, COMPOSING_RATE, BUDGET = 0.5, 0.85, 0.08, 0.15, 0.8, 0.1
"""What is held against the records: at most, at least, at most, at most, at least, at most."""
NUM_NAMED = 3
"""Tasks that are named where a claim fails."""


@dataclass(frozen=True)
class Verdict:
    """One claim and what became of it.

    Attributes:
        claim: In words.
        holds: Whether the mean over seeds meets it, rounded as it is shown.
        measured: The figure, with its interval or its range over seeds.
        why: Where it fails: by how much, and on which tasks; empty where it holds.
    """

    claim: str
    holds: bool
    measured: str
    why: str


def verdicts(collection: Collection) -> list[Verdict]:
    """Every claim that the records can be held against."""
    found = [_auto_is_best(collection), *_beats_random(collection), _saves_tokens(collection), *_gate(collection)]
    found += [_plain_rate(collection)] if collection.task_names("plain") else []
    found += [_composing_rate(collection)] if collection.task_names("composing") else []
    budget = _budget(collection)
    return found if budget is None else [*found, budget]


def verdict_lines(found: Sequence[Verdict]) -> list[str]:
    """The verdicts as a table, and a sentence for each claim that fails."""
    rows = [[verdict.claim, "yes" if verdict.holds else "**no**", verdict.measured] for verdict in found]
    failing = [verdict for verdict in found if not verdict.holds]
    lines = [f"{len(found) - len(failing)} of {len(found)} claims hold on these records.", "", *table(["claim", "holds", "measured"], rows, left=3)]
    if failing:
        lines += ["", "Where a claim fails:", "", *(f"* *{verdict.claim}*: {verdict.why}" for verdict in failing)]
    return lines


def mode_lines(collection: Collection) -> list[str]:
    """The table of think modes: mean scores with intervals, tokens, think rates."""
    base, everything = collection.base, collection.task_names()
    groups = {kind or "all": collection.task_names(kind) for kind in ("", "plain", "composing")}
    groups = {title: names for title, names in groups.items() if names}
    most = numbers.tokens(base, "always", everything)
    rows = []
    for mode in MODES:
        if not numbers.has_mode(base, mode):
            continue
        spent = numbers.tokens(base, mode, everything)
        rates = [percent(numbers.think_rate(base, mode, everything, side)) for side in ("query", "candidate")]
        scores = [with_interval(numbers.score_interval(base, mode, names)) for names in groups.values()]
        rows.append([mode, *scores, number(spent), percent(spent / most) if most else "–", *rates])
    heads = [f"{title} ({len(names)})" for title, names in groups.items()]
    return table(["mode", *heads, "tokens a query", "share of always", "queries that think", "candidates that think"], rows)


def difference_lines(collection: Collection) -> list[str]:
    """The table of paired differences between modes."""
    base = collection.base
    groups = {kind or "all": collection.task_names(kind) for kind in ("", "plain", "composing")}
    groups = {title: names for title, names in groups.items() if names}

    def better(names: numbers.Names) -> str:
        return numbers.better_mode(base, names)

    wanted: list[tuple[str, str, str | Callable[[numbers.Names], str]]] = [
        ("always − never", "always", "never"),
        ("auto − max(never, always)", "auto", better),
        ("auto − random", "auto", "random"),
        ("auto − confidence", "auto", "confidence"),
        ("oracle − auto", "oracle", "auto"),
    ]
    rows = []
    for title, mode, other in wanted:
        if numbers.has_mode(base, mode) and (callable(other) or numbers.has_mode(base, other)):
            names_of = {names: other(names) if callable(other) else other for names in groups.values()}
            rows.append([title, *(change(numbers.difference(base, mode, base, against, names)) for names, against in names_of.items())])
    return table(["difference", *groups], rows)


def where_thinking_pays(collection: Collection) -> str:
    """On how many tasks of each kind always thinking beats and loses to never thinking, by the interval."""
    sentences = []
    for kind in ("plain", "composing"):
        names = collection.task_names(kind)
        if not names:
            continue
        found = {name: numbers.difference(collection.base, "always", collection.base, "never", (name,)) for name in names}
        helped = [f"{name} {signed(each.mean)}" for name, each in found.items() if each.low > 0.0]
        hurt = [f"{name} {signed(each.mean)}" for name, each in found.items() if each.high < 0.0]
        unclear = len(names) - len(helped) - len(hurt)
        sentences.append(
            f"Of the {len(names)} {kind} tasks, always thinking raises the score on {_counted(helped)}, lowers it on {_counted(hurt)}, "
            f"and on {unclear or 'none'} the interval includes 0."
        )
    return " ".join(sentences)


def _counted(tasks: Sequence[str]) -> str:
    return f"{len(tasks)} ({listed(tasks)})" if tasks else "none"


def gate_lines(collection: Collection) -> list[str]:
    """The gate's AUROC, calibration error and Brier skill score by side, mean and range of the seeds."""
    rows = []
    names = collection.task_names()
    for title, side in (("queries and candidates", "both"), ("queries", "query"), ("candidates", "candidate")):
        inputs = [numbers.gate_inputs([record], names, side) for record in collection.base]
        if all(len(each.probability) for each in inputs):
            helped = percent(numbers.mean(float(each.helped.mean()) for each in inputs))
            count = number(numbers.mean(len(each.probability) for each in inputs), 0)
            kinds = ([each.auroc() for each in inputs], [each.bins().calibration_error for each in inputs], [each.brier_skill() for each in inputs])
            rows.append([title, count, helped, *(_seeds(kind) for kind in kinds)])
    return table(["inputs", "number a seed", "thinking helped", "AUROC", "calibration error", "Brier skill score"], rows)


# --- one function for each claim -----------------------------------------------------------------------------------------------


def _auto_is_best(collection: Collection) -> Verdict:
    base, names = collection.base, collection.task_names()
    better = numbers.better_mode(base, names)
    found = numbers.difference(base, "auto", base, better, names)
    settled = "the interval excludes 0" if found.excludes_zero else "the interval includes 0: these records do not settle it"
    gaps = {name: numbers.score(base, "auto", (name,)) - numbers.score(base, better, (name,)) for name in names}
    worst = sorted((gap, name) for name, gap in gaps.items() if gap < 0.0)[:NUM_NAMED]
    return Verdict(
        claim="auto ≥ max(never, always), mean over tasks",
        holds=round(found.mean, 2) >= 0.0,
        measured=f"{change(found, 2)} points against {better}; {settled}",
        why=f"auto lies {number(-found.mean, 2)} points below {better}; most on {listed(f'{name} ({signed(gap)})' for gap, name in worst)}.",
    )


def _beats_random(collection: Collection) -> list[Verdict]:
    """Empty where the records were not scored at random."""
    base, names = collection.base, collection.task_names()
    if not numbers.has_mode(base, "random"):
        return []
    found = numbers.difference(base, "auto", base, "random", names)
    gaps = {name: numbers.score(base, "auto", (name,)) - numbers.score(base, "random", (name,)) for name in names}
    below = sorted((gap, name) for name, gap in gaps.items() if gap < 0.0)
    worst = listed(f"{name} ({signed(gap)})" for gap, name in below[:NUM_NAMED])
    where = f" It is below random on {len(below)} of {len(names)} tasks, most on {worst}." if below else ""
    settled = "above 0, but its interval includes 0" if found.mean > 0.0 else "not above 0"
    return [
        Verdict(
            claim="auto beats a random choice of as many inputs within each task",
            holds=found.mean > 0.0 and found.excludes_zero,
            measured=f"{change(found, 2)} points",
            why=f"the difference is {settled}: beyond the task and its side, the records do not show that the gate knows which input to think on."
            f"{where}",
        )
    ]


def _saves_tokens(collection: Collection) -> Verdict:
    base, names = collection.base, collection.task_names()
    spent, most = ({name: numbers.tokens(base, mode, (name,)) for name in names} for mode in ("auto", "always"))
    mean_spent, mean_most = numbers.mean(spent.values()), numbers.mean(most.values())
    share = mean_spent / mean_most if mean_most else 0.0
    over = sorted(((spent[name] - SHARE_OF_TOKENS * most[name], name) for name in names), key=lambda pair: (-pair[0], pair[1]))
    worst = [f"{name} ({number(spent[name])} of {number(most[name])})" for excess, name in over[:NUM_NAMED] if excess > 0.0]
    return Verdict(
        claim=f"reasoning tokens of auto ≤ {percent(SHARE_OF_TOKENS)} of always",
        holds=round(share, 3) <= SHARE_OF_TOKENS,
        measured=f"{percent(share, 1)}: {number(mean_spent)} of {number(mean_most)} tokens a query",
        why=f"auto spends {number(mean_spent - SHARE_OF_TOKENS * mean_most)} tokens a query too many; most on {listed(worst)}.",
    )


def _gate(collection: Collection) -> list[Verdict]:
    base, names = collection.base, collection.task_names()
    inputs = [numbers.gate_inputs([record], names) for record in base]
    if not all(len(each.probability) for each in inputs):
        return []
    areas, errors = [each.auroc() for each in inputs], [each.bins().calibration_error for each in inputs]
    by_task = {name: numbers.gate_inputs(base, (name,)) for name in names}
    area_of = {name: each.auroc() for name, each in by_task.items() if len(each.probability)}
    ranked = sorted((area, name) for name, area in area_of.items() if not math.isnan(area))
    biased = {name: float(each.probability.mean() - each.helped.mean()) for name, each in by_task.items() if len(each.probability)}
    misplaced = sorted(biased.items(), key=lambda pair: (-abs(pair[1]) * len(by_task[pair[0]].probability), pair[0]))
    said = [
        f"{name} (says {percent(float(by_task[name].probability.mean()))}, helps {percent(float(by_task[name].helped.mean()))})"
        for name, _ in misplaced
    ]
    area, error = numbers.mean(areas), numbers.mean(errors)
    lowest = listed(f"{name} ({number(value, 2)})" for value, name in ranked[:NUM_NAMED])
    return [
        Verdict(
            claim=f"the gate's AUROC ≥ {number(AUROC, 2)}",
            holds=round(area, 3) >= AUROC,
            measured=f"{_seeds(areas)} over queries and candidates of all tasks",
            why=f"it is {number(AUROC - area, 3)} too low; within single tasks it is lowest on {lowest}.",
        ),
        Verdict(
            claim=f"the gate's calibration error ≤ {number(CALIBRATION, 2)}",
            holds=round(error, 3) <= CALIBRATION,
            measured=f"{_seeds(errors)}; Brier skill score {_seeds([each.brier_skill() for each in inputs])}",
            why=f"it is {number(error - CALIBRATION, 3)} too high; what the gate says lies furthest from what happens on {listed(said[:NUM_NAMED])}.",
        ),
    ]


def _plain_rate(collection: Collection) -> Verdict:
    names = collection.task_names("plain")
    rates = {name: numbers.think_rate(collection.base, "auto", (name,)) for name in names}
    found = numbers.mean(rates.values())
    worst = sorted(rates.items(), key=lambda pair: (-pair[1], pair[0]))[:NUM_NAMED]
    gain = numbers.difference(collection.base, "always", collection.base, "never", names)
    return Verdict(
        claim=f"inputs of plain tasks that think under auto ≤ {percent(PLAIN_RATE)}",
        holds=round(found, 3) <= PLAIN_RATE,
        measured=f"{percent(found, 1)} of queries and candidates",
        why=f"it is {number(100.0 * (found - PLAIN_RATE))} points too high; most on {listed(f'{name} ({percent(rate)})' for name, rate in worst)}. "
        f"On plain tasks always thinking changes the score by {change(gain)}.",
    )


def _composing_rate(collection: Collection) -> Verdict:
    names = collection.task_names("composing")
    sides = {task.name: task.side for task in collection.base[0].tasks}
    rates = {name: numbers.think_rate(collection.base, "auto", (name,), "named") for name in names}
    found = numbers.mean(rates.values())
    worst = sorted(rates.items(), key=lambda pair: (pair[1], pair[0]))[:NUM_NAMED]
    named = [f"{name} ({_side(sides[name])}: {percent(rate)})" for name, rate in worst]
    return Verdict(
        claim=f"inputs of composing tasks that think under auto, on the side where thinking should pay, ≥ {percent(COMPOSING_RATE)}",
        holds=round(found, 3) >= COMPOSING_RATE,
        measured=percent(found, 1),
        why=f"it is {number(100.0 * (COMPOSING_RATE - found))} points too low; lowest on {listed(named)}.",
    )


def _side(side: str) -> str:
    return {"query": "queries", "candidate": "candidates"}.get(side, "both sides")


def _budget(collection: Collection) -> Verdict | None:
    found = numbers.budgets(collection.base, collection.task_names())
    if not found:
        return None
    missed = [each for each in found if each.miss > BUDGET]
    said = [f"{number(each.asked)} asked, {number(each.mean_spent)} spent ({percent(each.miss)} off)" for each in missed]
    worst = max(found, key=lambda each: each.miss)
    return Verdict(
        claim=f"a budget of tokens is kept within {percent(BUDGET)}",
        holds=not missed,
        measured=f"{len(found) - len(missed)} of {len(found)} budgets; the furthest off by {percent(worst.miss, 1)}",
        why=f"{listed(said)}.",
    )


def _seeds(found: Sequence[float]) -> str:
    middle = number(numbers.mean(found), 3)
    return middle if len(found) == 1 else f"{middle} ({number(min(found), 3)} to {number(max(found), 3)} over seeds)"
