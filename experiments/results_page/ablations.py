"""The page's comparisons with the base run: a table and a sentence for each ablation, and what single claims need beside them."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from experiments.command_line import CONFIG
from experiments.record import RunRecord
from experiments.results_page import numbers
from experiments.results_page.collection import Collection
from experiments.results_page.words import cell, change, commits, listed, number, percent, signed, table
from experiments.runs import CONFIGS, STEPS
from experiments.statistics import Interval, interval, paired_interval
from twn_lightning.configs.load import load_config

RIVALS = "rivals"
WIDE = ("dual_lora", "detached_wide")
"""Ablation and variant: TWN whose reasoning adapter has the rank and learning rate of the adapter that some rivals share."""
HIT = "hit@1"
TOKEN_ACCURACIES = ("cot_sft/val_token_accuracy", "cot_sft/token_accuracy")
"""Curves of which the last value stands for generation: the first that all records hold."""


@dataclass(frozen=True)
class Compared:
    """A variant beside the base runs of the same seeds.

    Attributes:
        variant: Its name.
        records: Of the seeds that the base has too.
        base: The base runs of these seeds.
        differences: Mode → variant less base, mean over all tasks.
    """

    variant: str
    records: tuple[RunRecord, ...]
    base: tuple[RunRecord, ...]
    differences: dict[str, Interval]


def compared(collection: Collection, ablation: str, modes: Sequence[str] = ("never", "always", "auto")) -> list[Compared]:
    """The variants of an ablation that share a seed with the base."""
    names = collection.task_names()
    found = []
    for variant, records in collection.ablations[ablation].items():
        common, base = collection.paired(records)
        if common:
            differences = {mode: numbers.difference(common, mode, base, mode, names) for mode in modes}
            found.append(Compared(variant, common, base, differences))
    return found


def command(collection: Collection, names: Sequence[str], *, variants: Sequence[str] = (), seeds: str = "") -> str:
    """What trains a group's base runs and the ablations named; a config that is called as the base run is the one that it was made with.

    Args:
        collection: The group.
        names: Of ablations; without any, the base runs alone.
        variants: These alone; without any, all.
        seeds: With commas between; those of the base runs if empty.
    """
    config = _config(collection)
    own = f"--config {config} " if config != CONFIG else ""
    chosen = f"--variants {','.join(variants)} " if variants else ""
    seeds = seeds or ",".join(str(record.seed) for record in collection.base)
    return f"python -m experiments.sweep {' '.join(names) or 'base'} {chosen}{own}--run {collection.name} --seeds {seeds}"


def commands(collection: Collection) -> list[str]:
    """What trains a group's base runs and the variants that have records: a command for each choice of seeds."""
    by_seeds: dict[str, dict[str, list[str]]] = {",".join(str(record.seed) for record in collection.base): {}}
    for ablation, variants in collection.ablations.items():
        for variant, records in variants.items():
            if ablation.isidentifier() and variant.isidentifier():
                by_seeds.setdefault(",".join(str(record.seed) for record in records), {}).setdefault(ablation, []).append(variant)
    return [
        command(collection, list(found), variants=list(dict.fromkeys(itertools.chain.from_iterable(found.values()))), seeds=seeds)
        for seeds, found in by_seeds.items()
    ]


def _config(collection: Collection) -> str:
    """The config that a group's runs were made with: that of the base run's name if there is one."""
    return collection.name if (CONFIGS / f"{collection.name}.yaml").is_file() else CONFIG


def base_line(collection: Collection, main: Collection) -> str:
    """What the base run of comparisons is, where it is not the main run."""
    names = collection.task_names()
    parts = [
        f"{len(names)} test tasks ({listed(names)}) with {collection.num_queries():,} queries",
        f"{'seed' if len(collection.base) == 1 else 'seeds'} {listed(str(record.seed) for record in collection.base)}",
    ]
    told = {section: _told(collection, f"stages.{section}.steps") for section in dict.fromkeys(step.section for step in STEPS)}
    steps = [f"{section} {count}" for section, count in told.items() if count]
    parts += [f"steps: {', '.join(steps)}"] if steps else []
    origin = {"data": ", ".join(sorted({record.provenance.get("data_revision", "").partition(",")[0] for record in collection.records()} - {""}))}
    for what, key in (("trained at commit", "commit.trained"), ("evaluated at commit", "commit")):
        origin[what] = commits(record.provenance.get(key, "") for record in collection.records())
    parts += [f"{what} {value}" for what, value in origin.items() if value]
    said = cell("; ".join(parts))
    return (
        f"The base run here is **{cell(collection.name)}**: {said}. Its scores are not comparable with those of {cell(main.name)}; what is compared "
        "here are runs on the same tasks."
    )


def _told(collection: Collection, key: str) -> str:
    """What the base runs' provenance says under a key, each value once."""
    return ", ".join(sorted({record.provenance[key] for record in collection.base if record.provenance.get(key)}))


def ablation_lines(collection: Collection, ablation: str, rows: Sequence[Compared]) -> list[str]:
    """One ablation: what it asks, its table, and one sentence on what the intervals say."""
    names, settings = collection.task_names(), _settings(ablation)
    cells = [["*base run*", "", *_figures(collection.base, names, None), str(len(collection.base))]]
    for each in rows:
        overrides = cell(" ".join(settings.get(each.variant, ())))
        cells.append([cell(each.variant), overrides, *_figures(each.records, names, each.differences), str(len(each.records))])
    head = ["variant", "settings", "never", "always", "auto", "thinks", "tokens a query", "seeds"]
    lines = [*_introduction(collection, ablation), *table(head, cells, left=2), "", _sentence(ablation, rows)]
    unpaired = sorted(set(collection.ablations[ablation]) - {each.variant for each in rows})
    lines += [f"No seed in common with the base run: {cell(listed(unpaired))}."] if unpaired else []
    return lines + not_run_lines(collection, ablation)


def not_run_lines(collection: Collection, ablation: str) -> list[str]:
    """Which variants of the ablation the records lack; one whose settings are those of the base run is the base run."""
    missing = {name: overrides for name, overrides in _settings(ablation).items() if name not in collection.ablations[ablation]}
    if not missing:
        return []
    config = load_config(_config(collection), folder=CONFIGS)
    names = [name for name, overrides in missing.items() if load_config(_config(collection), folder=CONFIGS, overrides=overrides) != config]
    return ["", f"Not run: {cell(listed(names))}."] if names else []


def side_lines(collection: Collection) -> list[str]:
    """Thinking on one side alone, from the base runs."""
    base, names = collection.base, collection.task_names()
    rows = []
    for title, mode in (("no side", "never"), ("queries", "query"), ("candidates", "candidate"), ("both sides", "always")):
        kinds = [collection.task_names(kind) for kind in ("", "plain", "composing")]
        scores = [number(numbers.score(base, mode, group)) if group else "–" for group in kinds]
        changed = change(numbers.difference(base, mode, base, "never", names)) if mode != "never" else ""
        rows.append([title, *scores, changed, number(numbers.tokens(base, mode, names))])
    return table(["who thinks", "all", "plain", "composing", "change to no side", "tokens a query"], rows)


def rival_lines(collection: Collection) -> list[str]:
    """Other methods as settings, each in the mode that it would be used in, beside the base in auto."""
    names = collection.task_names()
    rows = [["**TWN (base run)**", "auto", *_rival_figures(collection.base, "auto", names), ""]]
    wide, wide_base = collection.paired(collection.ablations.get(WIDE[0], {}).get(WIDE[1], ()))
    if wide:
        found = numbers.difference(wide_base, "auto", wide, "auto", names)
        rows.append(["TWN, rank and rate of the shared adapter", "auto", *_rival_figures(wide, "auto", names), change(found)])
    num_own = len(rows)
    wins: list[str] = []
    losses: list[str] = []
    for variant, records in collection.ablations[RIVALS].items():
        common, base = collection.paired(records)
        if not common:
            continue
        mode = _modes().get(variant, "auto")
        found = numbers.difference(base, "auto", common, mode, names)
        rows.append([cell(_like(variant)), mode, *_rival_figures(common, mode, names), change(found)])
        if found.excludes_zero:
            (wins if found.mean > 0.0 else losses).append(f"{_like(variant)} ({signed(found.mean)})")
    head = ["method", "mode", "all", "plain", "composing", "tokens a query", "base less this one"]
    unsettled = len(rows) - num_own - len(wins) - len(losses)
    sentence = f"With an interval that excludes 0, the base run in auto is above {cell(listed(wins))} and below {cell(listed(losses))}; "
    made_of = [f"* {_like(name)}: `{' '.join(_settings(RIVALS)[name])}`" for name in collection.ablations[RIVALS] if _settings(RIVALS).get(name)]
    lines = [*table(head, rows, left=2), "", f"{sentence}{unsettled} of {len(rows) - num_own} are not settled."]
    lines += [*_beside_wide(collection, wide), *not_run_lines(collection, RIVALS)]
    return [*lines, "", "Their settings, beside those of the base run:", "", *made_of] if made_of else lines


def _beside_wide(collection: Collection, wide: Sequence[RunRecord]) -> list[str]:
    """Rivals that have the shared adapter's rank and rate, less TWN with the same."""
    by_seed, names = {record.seed: record for record in wide}, collection.task_names()
    own = set(_settings(WIDE[0]).get(WIDE[1], ()))
    lines = []
    for variant, records in collection.ablations[RIVALS].items():
        common = [record for record in records if record.seed in by_seed]
        if common and own <= set(_settings(RIVALS).get(variant, ())):
            others, mode = [by_seed[record.seed] for record in common], _modes().get(variant, "auto")
            found = [change(numbers.difference(common, mode, others, other, names)) for other in ("auto", "always")]
            lines.append(
                f"{cell(_like(variant))} has the rank and rate of the shared adapter, which the base run's reasoning adapter has not. Less TWN with "
                f"the same rank and rate it is {found[0]} against auto and {found[1]} against always."
            )
    return ["", *lines] if lines else []


NOTHING_LEFT = 0.9
"""Mean reciprocal rank of sampled thoughts from which rank has nothing left to teach."""


def grpo_lines(collection: Collection) -> list[str]:
    """What stage 4 brings: thoughts of the base run against those of the variant that was trained without it."""
    names = tuple(task.name for task in collection.base[0].tasks if task.metric == HIT)
    lines = []
    for variant, records in collection.ablations.get("stages", {}).items():
        common, base = collection.paired(records)
        if common and names and _lacks_grpo(common) and not _lacks_grpo(base):
            found = numbers.difference(base, "always", common, "always", names)
            lines.append(
                f"Always thinking, mean {HIT} of {len(names)} tasks: {number(numbers.score(base, 'always', names))} with stage 4, "
                f"{number(numbers.score(common, 'always', names))} without (variant {cell(variant)}); stage 4 changes it by {change(found)}"
                f" ({'the interval excludes 0' if found.excludes_zero else 'the interval includes 0'})."
            )
    lines.extend(_reward_lines(collection))
    return [" ".join(lines)] if lines else []


def _reward_lines(collection: Collection) -> list[str]:
    """How the reward and its parts moved, and whether the training prompts left thoughts anything to gain in rank."""
    names = [name for name in collection.base[0].curves if re.fullmatch(r"grpo/reward(_\w+)?", name)]
    curves = {name.removeprefix("grpo/reward").removeprefix("_"): numbers.curve(collection.base, name) for name in names}
    # A batch is of one source, and sources differ more than the stage changes: thirds of the stage instead of its first and last batch.
    ends = {name: (_third(curve.mean, 0), _third(curve.mean, -1)) for name, curve in curves.items() if curve is not None}
    if "" not in ends:
        return []
    first, last = ends.pop("")
    moved = ", ".join(f"{name} {number(before, 2)} → {number(after, 2)}" for name, (before, after) in ends.items())
    parts = f" (its parts, unweighted: {moved})" if moved else ""
    lines = [f"From the first third of the stage to the last, the mean reward goes from {number(first, 3)} to {number(last, 3)}{parts}."]
    rank = ends.get("rank", (0.0, 0.0))[0]
    if rank >= NOTHING_LEFT:
        lines.append(
            f"On the training prompts the sampled thoughts' mean reciprocal rank is {number(rank, 2)} from the start: almost every thought puts the "
            "positive first there, so that rank has hardly anything left to teach."
        )
    return lines


def _third(values: Sequence[float], which: Literal[0, -1]) -> float:
    """Mean of the first (0) or the last (-1) third of some values, at least one."""
    count = max(1, len(values) // 3)
    return math.fsum(values[:count] if which == 0 else values[-count:]) / count


def dual_lora_lines(collection: Collection) -> list[str]:
    """Both tasks of the adapters in one figure: the mean of generative score and accuracy on the reference thoughts' tokens."""
    names, variants = collection.task_names(), collection.ablations["dual_lora"]
    every = [*collection.base, *(record for records in variants.values() for record in records)]
    curve = next((name for name in TOKEN_ACCURACIES if numbers.last_values(every, name) is not None), None)
    accuracy = numbers.last_values(collection.base, curve) if curve is not None else None
    if curve is None or accuracy is None:
        return [f"*Not all records hold a curve {' or '.join(TOKEN_ACCURACIES)}, so generation is not compared.*"]
    rows: list[list[str]] = []
    better: list[str] = []
    worse: list[str] = []
    rows.append(["*base run*", *_both(collection.base, accuracy, names), ""])
    for variant, records in variants.items():
        common, base = collection.paired(records)
        own, others = numbers.last_values(common, curve), numbers.last_values(base, curve)
        if own is None or others is None:
            continue
        found = paired_interval(_joint(common, own, names), _joint(base, others, names))
        rows.append([cell(variant), *_both(common, own, names), change(found)])
        if found.excludes_zero:
            (better if found.mean > 0.0 else worse).append(f"{cell(variant)} ({signed(found.mean)})")
    head = ["variant", "generative score (always)", "token accuracy, %", "mean of both", "change to the base run"]
    sentence = f"By this mean, with an interval that excludes 0: above the base run {listed(better)}; below it {listed(worse)}."
    return [*table(head, rows), "", f"Token accuracy: last value of {curve}. {sentence}"]


def _both(records: Sequence[RunRecord], accuracy: Sequence[float], names: numbers.Names) -> list[str]:
    found = interval(_joint(records, accuracy, names))
    parts = [number(numbers.score(records, "always", names)), number(100.0 * numbers.mean(accuracy))]
    return [*parts, f"{number(found.mean)} [{number(found.low)}, {number(found.high)}]"]


def _joint(records: Sequence[RunRecord], accuracy: Sequence[float], names: numbers.Names) -> list[list[list[float]]]:
    """The mean of each query's generative metric and its seed's token accuracy, so that one interval holds both."""
    scores = numbers.values(records, "always", names)
    return [[[(value + right) / 2 for value in task] for task in tasks] for tasks, right in zip(scores, accuracy, strict=True)]


def _lacks_grpo(records: Sequence[RunRecord]) -> bool:
    return all(not any(name.startswith("grpo/") for name in record.curves) for record in records)


def _figures(records: Sequence[RunRecord], names: numbers.Names, differences: Mapping[str, Interval] | None) -> list[str]:
    cells = []
    for mode in ("never", "always", "auto"):
        text = number(numbers.score(records, mode, names))
        cells.append(f"{text} ({change(differences[mode])})" if differences else text)
    return [*cells, percent(numbers.think_rate(records, "auto", names)), number(numbers.tokens(records, "auto", names))]


def _rival_figures(records: Sequence[RunRecord], mode: str, names: numbers.Names) -> list[str]:
    by_kind = {kind: tuple(task.name for task in records[0].tasks if task.kind == kind) for kind in ("plain", "composing")}
    scores = [number(numbers.score(records, mode, group)) if group else "–" for group in (names, *by_kind.values())]
    return [*scores, number(numbers.tokens(records, mode, names))]


def _sentence(ablation: str, rows: Sequence[Compared]) -> str:
    parts = []
    for mode in ("never", "always", "auto"):
        apart = [f"{cell(each.variant)} ({signed(each.differences[mode].mean)})" for each in rows if each.differences[mode].excludes_zero]
        parts.append(f"under {mode} for {listed(apart, none='no variant')}")
    return f"The interval of the difference to the base run excludes 0 {'; '.join(parts)}."


def _introduction(collection: Collection, ablation: str) -> list[str]:
    return [f"{_question(ablation)} `{command(collection, [ablation])}`".strip(), ""]


def _module(ablation: str) -> object | None:
    name = f"experiments.ablation_{ablation}"
    return importlib.import_module(name) if ablation.isidentifier() and importlib.util.find_spec(name) else None


def _question(ablation: str) -> str:
    """What the ablation's own module says that it asks: the first sentence below its command."""
    paragraphs = (getattr(_module(ablation), "__doc__", None) or "").split("\n\n")
    sentence = " ".join(paragraphs[1].split()).split(". ")[0].rstrip(".") if len(paragraphs) > 1 else ""
    return f"{cell(sentence)}." if sentence else ""


def _settings(ablation: str) -> Mapping[str, Sequence[str]]:
    found: Mapping[str, Sequence[str]] = getattr(_module(ablation), "VARIANTS", {})
    return found


def _modes() -> Mapping[str, str]:
    found: Mapping[str, str] = getattr(_module(RIVALS), "MODES", {})
    return found


def _like(variant: str) -> str:
    """A rival's name, which always says that it is only like the method."""
    words = variant.replace("_", "-")
    return words if words.endswith("-like") else f"{words}-like"
