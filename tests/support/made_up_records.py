"""Made-up records of runs, for tests of the results page: large ones of every kind of content, and small ones whose page can be checked by hand."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodules.mini.tasks import TASKS
from experiments.record import Example, RunRecord, TaskRecord
from experiments.results_page.collection import Collection

CANDIDATE_SIDE = ("PictureBySum", "ClipBySum")


def synthetic_task(name: str, rng: np.random.Generator, *, shift: float = 0.0, num_queries: int | None = None) -> TaskRecord:
    """A task in which thinking helps on composing tasks alone and a good gate knows it."""
    row = TASKS[name]
    keys = tuple("/".join([*subject, str(turn)]) for subject in row.subjects("test") for turn in range(row.repeats))[:num_queries]
    composing = row.kind == "composing"
    skill = 0.35 + 0.4 * rng.random() + shift
    never = rng.random(len(keys)) < skill
    always = rng.random(len(keys)) < skill + (0.2 if composing else -0.02)
    thinks = rng.random(len(keys)) < (0.9 if composing else 0.1)
    auto = np.where(thinks, always, never)
    values = {
        "never": never, "always": always, "auto": auto, "oracle": never | always,
        "random": 0.5 * never + 0.5 * always, "confidence": np.where(rng.random(len(keys)) < 0.5, always, never), "query": always, "candidate": never,
    }  # fmt: skip
    side = ("candidate" if name in CANDIDATE_SIDE else "query") if composing else ""
    candidate_keys = tuple(str(number) for number in range(20))

    def gains(number: int) -> NDArray[np.float64]:
        return rng.normal(0.9 if composing else -0.15, 1.2, number) * (rng.random(number) < 0.8)

    def said(gain: NDArray[np.float64]) -> tuple[float, ...]:
        return tuple(float(value) for value in 1 / (1 + np.exp(-(1.6 * gain + rng.normal(0, 0.9, len(gain))))))

    num_candidates = 100
    rate = 0.88 if composing else 0.11
    gain, candidate_gain = gains(len(keys)), gains(len(candidate_keys))
    tokens = rng.integers(5, 20, len(keys))
    shares = {"never": 0.0, "always": 1.0, "auto": rate, "oracle": 0.4, "random": rate, "confidence": rate, "query": 1.0, "candidate": 0.0}
    candidate_shares = {**shares, "query": 0.0, "candidate": 1.0}
    return TaskRecord(
        name=name, kind=row.kind, side=side, modality=row.modality, subgroup=row.subgroup, metric=row.metric, num_candidates=num_candidates,
        keys=keys, values={mode: tuple(float(value) for value in column) for mode, column in values.items()},
        query_tokens={mode: round(share * int(tokens.sum())) for mode, share in shares.items()},
        candidate_tokens={mode: round(share * 6 * num_candidates) for mode, share in candidate_shares.items()},
        query_think_rate=shares,
        candidate_think_rate=candidate_shares,
        gain=tuple(gain.tolist()), gate_probability=said(gain), thought_tokens=tuple(tokens.tolist()),
        candidate_keys=candidate_keys, candidate_gain=tuple(candidate_gain.tolist()), candidate_gate_probability=said(candidate_gain),
        candidate_thought_tokens=tuple(6 for _ in candidate_keys),
    )  # fmt: skip


def synthetic_curves(rng: np.random.Generator, tasks: Sequence[str]) -> dict[str, tuple[tuple[int, float], ...]]:
    def rise(first: float, last: float, steps: int, *, noise: float = 0.04) -> tuple[tuple[int, float], ...]:
        places = np.linspace(5, steps, 100).round().astype(int)
        return tuple((int(place), float(last + (first - last) * math.exp(-4 * place / steps) + rng.normal(0, noise))) for place in places)

    curves = {
        "contrastive/loss": rise(3.3, 1.0, 500), "contrastive/hit_at_1": rise(0.1, 0.7, 500),
        "contrastive/val_hit_at_1": rise(0.1, 0.6, 500, noise=0.0),
        "cot_sft/hit_at_1_disc": rise(0.5, 0.8, 1500), "cot_sft/hit_at_1_gen": rise(0.3, 0.9, 1500), "cot_sft/token_accuracy": rise(0.2, 0.95, 1500),
        "cot_sft/val_hit_at_1_disc": rise(0.5, 0.7, 1500, noise=0.0), "cot_sft/val_hit_at_1_gen": rise(0.3, 0.8, 1500, noise=0.0),
        "cot_sft/val_token_accuracy": rise(0.2, 0.9, 1500, noise=0.0),
        "gate/accuracy": rise(0.5, 0.85, 300), "gate/val_accuracy": rise(0.5, 0.8, 300, noise=0.0),
        "grpo/reward": rise(1.0, 1.6, 60), "grpo/kl": rise(0.0, 0.05, 60, noise=0.002), "grpo/think_tokens": rise(14, 10, 60, noise=0.5),
    }  # fmt: skip
    curves |= {
        f"grpo/reward_{part}": rise(0.3, 0.5 + 0.1 * number, 60) for number, part in enumerate(("format", "retrieval", "rank", "gain", "length"))
    }
    for name in tasks:
        for stage, steps in (("contrastive", 500), ("cot_sft", 1500)):
            curves[f"{stage}/by_source/{name}/loss"] = rise(3.0, 0.5 + rng.random(), steps, noise=0.15)
            curves[f"{stage}/by_source/{name}/val_loss"] = rise(3.0, 0.9 + rng.random(), steps, noise=0.0)
    return curves


def synthetic_record(
    seed: int, *, ablation: str = "", variant: str = "", shift: float = 0.0, tasks: Sequence[str] = tuple(TASKS), num_queries: int | None = None
) -> RunRecord:
    rng = np.random.default_rng((seed, *variant.encode()))
    made = tuple(synthetic_task(name, rng, shift=shift, num_queries=num_queries) for name in tasks)
    most = sum(task.tokens_per_query("always") for task in made) / len(made)
    low, high = (sum(task.score(mode) for task in made) / len(made) for mode in ("never", "always"))
    sweep = tuple(
        {"threshold": step / 50, "think_rate": 1 - step / 50, "reasoning_tokens": most * (1 - step / 50),
         "score": low + (high - low) * (1 - step / 50) + 12 * (1 - step / 50) * step / 50}
        for step in range(51)
    )  # fmt: skip
    examples = tuple(
        Example(task=name, key=task.keys[number], thought=f"The flag of {name}. Its capital is a city.", before=("b", "a"), after=("a", "b"),
                label="a" if number % 2 else "b", gain=(1 if number % 2 else -1) * (0.5 + rng.random()))
        for name, task in zip(tasks, made, strict=True) for number in range(2)
    )  # fmt: skip
    return RunRecord(
        run=f"mini-{ablation}-{variant}-s{seed}" if ablation else f"mini-s{seed}",
        ablation=ablation, variant=variant, seed=seed, threshold=0.5,
        provenance={"commit": "0123abc", "data_revision": "mmeb-mini 2", "platform": "Linux x86_64", "python": "3.11.7", "version.torch": "2.13.0"},
        parameters={"backbone": 4002496.0, "reasoning": 98304.0, "embedding": 98304.0, "queries": 512.0, "gate": 16513.0, "ratio": 0.0534},
        seconds={"contrastive": 100.0 + seed, "cot_sft": 400.0, "gate": 60.0, "grpo": 200.0, "gate_refit": 55.0},
        tasks=made, sweep=sweep, validation_curve=(), curves=synthetic_curves(rng, tasks), examples=examples,
        budgets=tuple({"budget": budget, "threshold": 0.5, "tokens": budget * (1 + rng.normal(0, 0.05))} for budget in (2.0, 5.0, 10.0, 15.0)),
    )  # fmt: skip


def synthetic_records(*, seeds: Sequence[int] = (1, 2, 3), tasks: Sequence[str] = tuple(TASKS), num_queries: int | None = None) -> list[RunRecord]:
    variants = {
        "queries": {"k1": -0.06, "k4": 0.01},
        "dual_lora": {"shared": -0.08, "attached": -0.02},
        "stages": {"without_grpo": -0.03, "without_contrastive": -0.1},
        "rivals": {"vlm2vec_v2_like": -0.05, "ume_r1_like": -0.03, "mmemb_r1_like": 0.0},
    }
    records = [synthetic_record(seed, tasks=tasks, num_queries=num_queries) for seed in seeds]
    for ablation, shifts in variants.items():
        for variant, shift in shifts.items():
            for seed in seeds:
                made = synthetic_record(seed, ablation=ablation, variant=variant, shift=shift, tasks=tasks, num_queries=num_queries)
                if variant == "without_grpo":
                    made = dataclasses.replace(made, curves={name: points for name, points in made.curves.items() if not name.startswith("grpo/")})
                records.append(made)
    return records


def save(records: Sequence[RunRecord], folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for record in records:
        (folder / f"{record.run}.json").write_text(record.to_json(), encoding="utf-8")
    return folder


def small_task(
    name: str,
    kind: str,
    *,
    side: str = "",
    rate: float = 0.0,
    gain: Sequence[float] = (0.5, -0.5),
    said: Sequence[float] = (0.9, 0.1),
    **values: Sequence[float],
) -> TaskRecord:
    """Two queries and two candidates; 10 tokens a thought on either side; under auto a share `rate` of either side thinks."""
    rates = {"never": 0.0, "always": 1.0, "auto": rate} | {mode: 0.5 for mode in values if mode not in ("never", "always", "auto")}
    tokens = {mode: round(20 * share) for mode, share in rates.items()}
    return TaskRecord(
        name=name, kind=kind, side=side, modality="image", subgroup="IMG_QA", metric="hit@1", num_candidates=2, keys=("a", "b"),
        values={mode: tuple(column) for mode, column in values.items()},
        query_tokens=tokens, candidate_tokens=tokens, query_think_rate=rates, candidate_think_rate=rates,
        gain=tuple(gain), gate_probability=tuple(said), thought_tokens=(10, 10),
        candidate_keys=(), candidate_gain=(), candidate_gate_probability=(), candidate_thought_tokens=(),
    )  # fmt: skip


def small_record(*tasks: TaskRecord, seed: int = 1, **changes: Any) -> RunRecord:
    record = RunRecord(
        run=f"mini-s{seed}", ablation="", variant="", seed=seed, threshold=0.5, provenance={}, parameters={}, seconds={}, tasks=tasks, sweep=(),
        validation_curve=(), curves={}, examples=(), budgets=(),
    )  # fmt: skip
    return dataclasses.replace(record, **changes)


PLAIN = small_task("Plain", "plain", never=(1.0, 0.0), always=(0.0, 0.0), auto=(1.0, 0.0))
COMPOSING = small_task("Composing", "composing", side="query", rate=1.0, never=(0.0, 0.0), always=(1.0, 1.0), auto=(1.0, 1.0))


def as_collection(records: Sequence[RunRecord]) -> Collection:
    ablations: dict[str, dict[str, tuple[RunRecord, ...]]] = {}
    for record in records:
        if record.ablation:
            variants = ablations.setdefault(record.ablation, {})
            variants[record.variant] = (*variants.get(record.variant, ()), record)
    return Collection("mini", tuple(record for record in records if not record.ablation), ablations)


def row(text: str, title: str) -> list[str]:
    """The cells of the first table row of this title."""
    line = next(line for line in text.splitlines() if line.startswith(f"| {title} |"))
    return [part.strip() for part in line.strip("|").split(" | ")]
