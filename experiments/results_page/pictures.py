"""The page's pictures: which figures of the records each one shows. None where the records hold nothing to show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.record import TaskRecord
from experiments.results_page import numbers
from experiments.results_page.ablations import Compared
from experiments.results_page.claim import BUDGET, MODES
from experiments.results_page.collection import Collection
from twn_lightning.evaluation import figures
from twn_lightning.evaluation.figures import COLOURS, Band

PARTS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Colours of a reward's parts."""
STAGES = {"contrastive": "stage 1, contrastive", "cot_sft": "stage 2, CoT fine-tuning", "grpo": "stage 4, GRPO"}


def trade_off(collection: Collection) -> Figure:
    """Quality against reasoning tokens."""
    base, names = collection.base, collection.task_names()
    points = {mode: (numbers.tokens(base, mode, names), numbers.score(base, mode, names)) for mode in MODES if numbers.has_mode(base, mode)}
    return figures.trade_off(numbers.trade_off(base), points)


def reliability(collection: Collection) -> Figure | None:
    """The gate's probability against how often thinking helped, all seeds together."""
    inputs = numbers.gate_inputs(collection.base, collection.task_names())
    if not len(inputs.probability):
        return None
    return figures.reliability_diagram(inputs.bins(), note=f", AUROC {inputs.auroc():.3f}\nall seeds together, {len(inputs.probability):,} inputs")


def gains(collection: Collection) -> Figure | None:
    """What thoughts brought, task by task, all seeds together; on a composing task on the side where thinking should pay."""
    shown: dict[str, tuple[str, Sequence[float]]] = {}
    for kind in ("plain", "composing"):
        for name in collection.task_names(kind):
            tasks = [task for record in collection.base for task in numbers.tasks_of(record, (name,))]
            title = f"{name} (candidates)" if tasks[0].side == "candidate" else name
            if found := [gain for task in tasks for gain in _gains(task)]:
                shown[title] = (kind, found)
    if not shown:
        return None
    every = np.abs([gain for _, values in shown.values() for gain in values])
    return figures.gain_by_task(shown, limit=max(0.5, float(np.ceil(2.0 * np.quantile(every, 0.97)) / 2.0)))


def _gains(task: TaskRecord) -> Sequence[float]:
    return task.candidate_gain if task.side == "candidate" else task.gain


def bars(collection: Collection) -> Figure:
    """Scores of each task under never, always and auto with their intervals."""
    groups = {kind: collection.task_names(kind) for kind in ("plain", "composing")}
    scores: dict[str, dict[str, dict[str, tuple[float, float, float]]]] = {}
    for kind, names in groups.items():
        for name in names:
            for mode in ("never", "always", "auto"):
                found = numbers.score_interval(collection.base, mode, (name,))
                scores.setdefault(kind, {}).setdefault(name, {})[mode] = (found.mean, found.low, found.high)
    return figures.score_bars(scores)


def learning(collection: Collection) -> Figure | None:
    """Learning curves of the stages: hit rates where a stage has them, else the gate's accuracy, else the reward."""
    panels: dict[str, dict[str, tuple[Band, str, str]]] = {}
    disc, gen = COLOURS["auto"], COLOURS["always"]
    lines = {
        "stage 1, contrastive: in-batch hit@1, %": [("contrastive", "hit_at_1", "without thought", disc)],
        "stage 2, CoT fine-tuning: in-batch hit@1, %": [
            ("cot_sft", "hit_at_1_disc", "without thought", disc),
            ("cot_sft", "hit_at_1_gen", "with thought", gen),
        ],
        "stage 2: reference tokens predicted, %": [("cot_sft", "token_accuracy", "tokens", "#009e73")],
        "stage 3, gate: labels predicted, %": [("gate", "accuracy", "gate", "#cc79a7")],
        "stage 4, GRPO: in-batch hit@1, %": [("grpo", "hit_at_1_disc", "without thought", disc), ("grpo", "hit_at_1_gen", "with thought", gen)],
    }
    for title, wanted in lines.items():
        for stage, quantity, label, colour in wanted:
            for split, prefix, style in (("training", "", ":"), ("validation", "val_", "-")):
                found = numbers.curve(collection.base, f"{stage}/{prefix}{quantity}", scale=100.0)
                if found is not None:
                    panels.setdefault(title, {})[f"{label}, {split}"] = (found if prefix else smooth(found), colour, style)
    reward = {
        f"reward, {split}": (found if prefix else smooth(found), "#000000", style)
        for split, prefix, style in (("training", "", ":"), ("validation", "val_", "-"))
        if (found := numbers.curve(collection.base, f"grpo/{prefix}reward")) is not None
    }
    if reward:
        panels["stage 4, GRPO: reward of a thought"] = reward
    return figures.line_panels(panels, xlabel="optimiser step of the stage; lines: mean over seeds, bands: their range") if panels else None


def by_source(collection: Collection, stage: str) -> Figure | None:
    """A stage's loss (in GRPO the reward) by data source, training and validation."""
    quantity = "reward" if stage == "grpo" else "loss"
    prefix = f"{stage}/by_source/"
    names = sorted({name.split("/")[2] for record in collection.base for name in record.curves if name.startswith(prefix)})
    panels: dict[str, dict[str, tuple[Band, str, str]]] = {}
    for name in names:
        for split, word, colour in (("", "training", COLOURS["auto"]), ("val_", "validation", COLOURS["always"])):
            found = numbers.curve(collection.base, f"{prefix}{name}/{split}{quantity}")
            if found is not None:
                panels.setdefault(name, {})[f"{quantity}, {word}"] = (found if split else smooth(found), colour, "-" if split else ":")
    if not panels:
        return None
    return figures.line_panels(panels, columns=4, height=1.6, xlabel=f"optimiser step of {STAGES[stage]}")


def rewards(collection: Collection) -> Figure | None:
    """The parts of the reward and the KL over stage 4."""
    names = sorted({name for record in collection.base for name in record.curves if name.startswith("grpo/reward_")})
    parts = {name.removeprefix("grpo/reward_"): found for name in names if (found := numbers.curve(collection.base, name)) is not None}
    panels: dict[str, dict[str, tuple[Band, str, str]]] = {}
    for number, (name, found) in enumerate(parts.items()):
        panels.setdefault("parts of the reward, unweighted", {})[name] = (smooth(found), PARTS[number % len(PARTS)], "-")
    for title, name in (
        ("reward, weighted sum", "reward"),
        ("KL to the thoughts of stage 2, nats a token", "kl"),
        ("tokens of a thought", "think_tokens"),
    ):
        found = numbers.curve(collection.base, f"grpo/{name}")
        if found is not None:
            panels[title] = {"mean over a batch's thoughts": (smooth(found), "#000000", "-")}
    return figures.line_panels(panels, xlabel="optimiser step of stage 4; lines: mean over seeds, bands: their range") if panels else None


def forest(collection: Collection, found: Mapping[str, Sequence[Compared]]) -> Figure | None:
    """The difference of every variant to the base run under auto."""
    rows = [
        (ablation, each.variant, each.differences["auto"].mean, each.differences["auto"].low, each.differences["auto"].high)
        for ablation, variants in found.items()
        for each in variants
    ]
    return figures.forest(rows, xlabel="auto: difference to the base run, points (mean over tasks, 95 % interval)") if rows else None


def budgets(collection: Collection) -> Figure | None:
    """Tokens spent against the budget asked for."""
    found = numbers.budgets(collection.base, collection.task_names())
    rows = [(each.asked, each.mean_spent, min(each.spent), max(each.spent)) for each in found]
    return figures.budget_figure(rows, tolerance=BUDGET) if rows else None


def smooth(band: Band, *, width: int = 7) -> Band:
    """Running means over so many points, fewer at the ends: single batches of a training curve differ too much to be read."""

    def means(column: Sequence[float]) -> list[float]:
        reach = width // 2
        return [numbers.mean(column[max(0, place - reach) : place + reach + 1]) for place in range(len(column))]

    return Band(band.x, means(band.mean), means(band.low), means(band.high))
