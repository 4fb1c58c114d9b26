"""The page follows its records: hand-checked numbers, verdicts that flip, sections that come and go, the same bytes each time."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from datamodules.mini.tasks import TASKS
from experiments.record import Example, RunRecord, TaskRecord
from experiments.results_page import examples, numbers, pictures, words
from experiments.results_page.__main__ import OUT, check, main, render, write
from experiments.results_page.collection import Collection, read_collections
from experiments.results_page.page import make_page
from twn_lightning.errors import DataError
from twn_lightning.evaluation.figures import Band

# --- records made up for the tests ---------------------------------------------------------------------------------------------

CANDIDATE_SIDE = ("PictureBySum", "ClipBySum")
MODES = ("never", "always", "auto", "oracle", "random", "confidence", "query", "candidate")


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


# --- a collection small enough to be checked by hand ------------------------------------------------------------------------------


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


# Of another base run, on other queries: thinking never hurts there.
OTHER_TASK = small_task("Plain", "plain", never=(1.0, 0.0), always=(1.0, 1.0), auto=(1.0, 1.0))
OTHER = small_record(OTHER_TASK, run="ablation-s1", provenance={"commit": "abc", "stages.contrastive.steps": "100", "stages.grpo.steps": "30"})
OTHER_VARIANT = small_record(OTHER_TASK, run="ablation-queries-k1-s1", ablation="queries", variant="k1")


def text_of(*records: RunRecord) -> str:
    return make_page([as_collection(records)]).markdown()


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


def verdict(text: str, words: str) -> tuple[str, str]:
    """Yes or no, and what was measured, of the claim that holds these words."""
    line = next(line for line in text.splitlines() if line.startswith("| ") and words in line)
    cells = [part.strip() for part in line.strip("|").split(" | ")]
    return cells[1].strip("*"), cells[2]


def test_mode_table_holds_means_over_tasks_and_tokens_a_query() -> None:
    text = text_of(small_record(PLAIN, COMPOSING))
    never, always, auto = (row(text, mode) for mode in ("never", "always", "auto"))
    assert never[1].startswith("25.0 [")  # plain 50, composing 0
    assert always[1].startswith("50.0 [")  # plain 0, composing 100
    assert auto[1].startswith("75.0 [")
    assert auto[2].startswith("50.0 [")
    assert auto[3] == "100.0 [100.0, 100.0]"  # all queries alike: no draw differs
    assert (always[4], auto[4], auto[5]) == ("20.0", "10.0", "50 %")  # (20 + 20) / 2 queries; of auto one of two tasks
    assert row(text, "auto − max(never, always)")[1].startswith("+25.0 [")  # 75 against always, the better over all tasks
    assert row(text, "auto − max(never, always)")[2].startswith("0.0 [")  # 50 against never, the better on plain tasks
    assert row(text, "Plain")[6].startswith("50.0 [")
    assert row(text, "Plain")[8].startswith("−50.0 [")
    assert "raises the score on 1 (Composing +100.0)" in text


def test_verdict_on_auto_follows_the_numbers_and_names_the_task() -> None:
    good = text_of(small_record(PLAIN, COMPOSING))
    assert verdict(good, "auto ≥ max")[0] == "yes"
    assert verdict(good, "auto ≥ max")[1].startswith("+25.00 [")
    lazy = dataclasses.replace(COMPOSING, values={**COMPOSING.values, "auto": (0.0, 0.0)})
    bad = text_of(small_record(PLAIN, lazy))
    assert verdict(bad, "auto ≥ max") == ("no", verdict(bad, "auto ≥ max")[1])
    assert "auto lies 25.00 points below always; most on Composing (−100.0)." in bad  # 25 against 50


def test_verdicts_on_tokens_and_think_rates_flip_at_their_bounds() -> None:
    text = text_of(small_record(PLAIN, COMPOSING))
    assert verdict(text, "reasoning tokens of auto") == ("yes", "50.0 %: 10.0 of 20.0 tokens a query")
    assert verdict(text, "of plain tasks that") == ("yes", "0.0 % of queries and candidates")
    assert verdict(text, "of composing tasks that")[0] == "yes"
    eager = small_task("Plain", "plain", rate=0.5, never=(1.0, 0.0), always=(0.0, 0.0), auto=(1.0, 0.0))
    idle = small_task("Composing", "composing", side="query", rate=0.5, never=(0.0, 0.0), always=(1.0, 1.0), auto=(1.0, 1.0))
    text = text_of(small_record(eager, COMPOSING))
    assert verdict(text, "reasoning tokens of auto") == ("no", "75.0 %: 15.0 of 20.0 tokens a query")
    assert "auto spends 5.0 tokens a query too many; most on Composing (20.0 of 20.0)." in text
    assert "it is 35.0 points too high; most on Plain (50 %)." in text
    text = text_of(small_record(PLAIN, idle))
    assert verdict(text, "of composing tasks that") == ("no", "50.0 %")
    assert "it is 30.0 points too low; lowest on Composing (queries: 50 %)." in text


def test_composing_think_rate_is_that_of_the_named_side() -> None:
    other_side = dataclasses.replace(COMPOSING, side="candidate", candidate_think_rate={**COMPOSING.candidate_think_rate, "auto": 0.25})
    assert verdict(text_of(small_record(PLAIN, other_side)), "of composing tasks that") == ("no", "25.0 %")


def test_verdicts_on_the_gate_flip_with_its_probabilities() -> None:
    text = text_of(small_record(PLAIN, COMPOSING))
    assert verdict(text, "AUROC") == ("yes", "1.000 over queries and candidates of all tasks")
    assert verdict(text, "calibration error ≤") == ("no", "0.100")  # says 0.9 and 0.1, where 1 and 0 are right
    certain = [dataclasses.replace(task, gate_probability=(1.0, 0.0)) for task in (PLAIN, COMPOSING)]
    assert verdict(text_of(small_record(*certain)), "calibration error ≤") == ("yes", "0.000")
    wrong = dataclasses.replace(PLAIN, gate_probability=(0.1, 0.9))
    text = text_of(small_record(wrong, COMPOSING))
    assert verdict(text, "AUROC") == ("no", "0.500 over queries and candidates of all tasks")  # of 4 pairs: 1 right, 1 wrong, 2 ties
    assert "within single tasks it is lowest on Plain (0.00) and Composing (1.00)" in text


def test_verdict_on_budgets_counts_what_is_kept_within_a_tenth() -> None:
    def asked(spent: float) -> str:
        budgets = ({"budget": 10.0, "threshold": 0.5, "tokens": spent}, {"budget": 50.0, "threshold": 0.0, "tokens": 20.0})
        return text_of(small_record(PLAIN, COMPOSING, budgets=budgets))

    assert verdict(asked(10.9), "budget") == ("yes", "2 of 2 budgets; the furthest off by 9.0 %")  # always spends 20, so 50 is due 20
    assert verdict(asked(8.0), "budget") == ("no", "1 of 2 budgets; the furthest off by 20.0 %")
    assert "10.0 asked, 8.0 spent (20 % off)." in asked(8.0)


def test_sections_say_in_a_line_what_the_records_lack() -> None:
    page = make_page([as_collection([small_record(PLAIN, COMPOSING)])])
    text = page.markdown()
    for missing in (
        "no threshold sweep", "no budgets", "no ablations", "no rivals", "no learning curves", "no curves by data source", "no examples",
        "neither a variant without stage 4", "not scored in oracle, random and confidence", "not scored with one side thinking alone",
    ):  # fmt: skip
        assert missing in text, missing
    assert "There is one seed" in text
    assert sorted(page.pictures) == ["gains.png", "reliability.png", "tasks.png", "trade_off.png"]
    assert "There are no records yet." in make_page([]).markdown()


def test_ablation_table_holds_paired_differences_and_its_sentence() -> None:
    worse = dataclasses.replace(COMPOSING, values={**COMPOSING.values, "always": (0.0, 0.0)})
    variant = small_record(PLAIN, worse, ablation="queries", variant="k1")
    text = text_of(small_record(PLAIN, COMPOSING), variant)
    found = row(text, "k1")
    assert found[1] == "model.num\\_queries=1"
    assert found[3] == "0.0 (**−50.0 [−50.0, −50.0]**)"  # always: 50 becomes 0; both queries alike
    assert found[2].endswith("(0.0 [0.0, 0.0])")
    assert "excludes 0 under never for no variant; under always for k1 (−50.0); under auto for no variant." in text
    assert "### What stage 4 brings" in text


def test_stage_4_is_compared_with_the_variant_that_was_trained_without_it() -> None:
    before = dataclasses.replace(COMPOSING, values={**COMPOSING.values, "always": (0.5, 0.5)})
    rewarded = {
        "grpo/reward": tuple(zip(range(0, 60, 10), (1.0, 1.2, 9.0, 9.0, 1.5, 1.6), strict=True)),
        "grpo/reward_rank": tuple((step, 0.96) for step in range(0, 60, 10)),
        "grpo/reward_rank/Toy": ((0, 7.0), (50, 8.0)),
    }
    text = text_of(small_record(PLAIN, COMPOSING, curves=rewarded), small_record(PLAIN, before, ablation="stages", variant="without_grpo"))
    assert "mean hit@1 of 2 tasks: 50.0 with stage 4, 25.0 without (variant without\\_grpo); stage 4 changes it by **+25.0" in text
    assert "the mean reward goes from 1.100 to 1.550 (its parts, unweighted: rank 0.96 → 0.96)." in text
    assert "mean reciprocal rank is 0.96 from the start: almost every thought puts the positive first" in text


def test_dual_lora_section_takes_the_mean_of_retrieval_and_generation() -> None:
    base = small_record(PLAIN, COMPOSING, curves={"cot_sft/val_token_accuracy": ((1, 0.2), (9, 0.9))})
    shared = small_record(PLAIN, COMPOSING, curves={"cot_sft/val_token_accuracy": ((1, 0.2), (9, 0.7))}, ablation="dual_lora", variant="shared")
    text = text_of(base, shared)
    start = text.index("generative score (always)")
    assert row(text[start:], "*base run*")[1:4] == ["50.0", "90.0", "70.0 [70.0, 70.0]"]
    assert row(text[start:], "shared")[1:] == ["50.0", "70.0", "60.0 [60.0, 60.0]", "**−10.0 [−10.0, −10.0]**"]
    assert "above the base run none; below it shared (−10.0)." in text


def test_rivals_are_always_called_like_and_compared_in_their_own_mode() -> None:
    rivals = [small_record(PLAIN, COMPOSING, ablation="rivals", variant=name) for name in ("vlm2vec_v2_like", "something")]
    text = text_of(small_record(PLAIN, COMPOSING), *rivals)
    assert row(text, "vlm2vec-v2-like")[1:3] == ["never", "25.0"]
    assert row(text, "something-like")[1:3] == ["auto", "75.0"]
    assert row(text, "vlm2vec-v2-like")[-1].strip("*").startswith("+50.0 [")


def test_seeds_that_only_one_side_has_are_not_compared() -> None:
    variant = small_record(PLAIN, COMPOSING, seed=2, ablation="queries", variant="k1")
    assert "No seed in common with the base run: k1." in text_of(small_record(PLAIN, COMPOSING), variant)


def test_figures_of_records_by_hand() -> None:
    record = small_record(
        PLAIN,
        COMPOSING,
        sweep=({"reasoning_tokens": 0.0, "score": 10.0}, {"reasoning_tokens": 20.0, "score": 30.0}),
        curves={"grpo/kl": ((0, 0.0), (4, 1.0))},
    )
    other = small_record(
        PLAIN,
        COMPOSING,
        seed=2,
        sweep=({"reasoning_tokens": 0.0, "score": 20.0}, {"reasoning_tokens": 10.0, "score": 20.0}),
        curves={"grpo/kl": ((2, 0.5),)},
    )
    curve = numbers.trade_off([record, other], num_points=2)
    assert curve == Band((0.0, 10.0), (15.0, 20.0), (10.0, 20.0), (20.0, 20.0))  # at 10 tokens 20 and 20; at 0 tokens 10 and 20
    assert numbers.curve([record, other], "grpo/kl", scale=2.0) == Band((2.0,), (1.0,), (1.0,), (1.0,))
    assert numbers.curve([record], "grpo/loss") is None
    assert pictures.smooth(Band((0.0, 1.0, 2.0), (0.0, 3.0, 6.0), (0.0, 0.0, 0.0), (9.0, 0.0, 0.0)), width=3).mean == [1.5, 3.0, 4.5]


def test_auroc_and_calibration_error_equal_their_definitions() -> None:
    rng = np.random.default_rng(5)
    probability, helped = rng.integers(0, 11, 60) / 10.0, (rng.random(60) < 0.4).astype(float)
    pairs = [(high > low) + 0.5 * (high == low) for high in probability[helped > 0] for low in probability[helped == 0]]
    inputs = numbers.GateInputs(probability, helped)
    assert inputs.auroc() == pytest.approx(sum(pairs) / len(pairs))
    error = 0.0
    for place in range(10):
        inside = (probability * 10).astype(int).clip(0, 9) == place
        if inside.any():
            error += inside.sum() / 60 * abs(probability[inside].mean() - helped[inside].mean())
    assert inputs.bins().calibration_error == pytest.approx(error)
    assert math.isnan(numbers.GateInputs(probability[:1], helped[:1]).auroc())


def test_gate_is_judged_by_the_runs_own_margin_and_dead_zone() -> None:
    task = small_task("Plain", "plain", never=(1.0, 0.0), always=(0.0, 0.0), auto=(1.0, 0.0), gain=(0.3, 0.04))
    assert numbers.gate_inputs([small_record(task)], ("Plain",)).helped.tolist() == [1.0]  # 0.04 lies in the default dead zone of 0.05
    own = small_record(task, provenance={"stages.gate.margin": "0.35", "stages.gate.dead_zone": "0"})
    assert numbers.gate_inputs([own], ("Plain",)).helped.tolist() == [0.0, 0.0]


def test_examples_that_changed_the_answer_come_first_and_one_a_task() -> None:
    def example(task: str, gain: float, before: str, after: str) -> Example:
        return Example(task=task, key="a", thought="", before=(before,), after=(after,), label="x", gain=gain)

    kept, turned, other = example("A", 3.0, "x", "x"), example("A", 1.0, "y", "x"), example("B", 2.0, "y", "y")
    lost = example("A", -1.0, "x", "y")
    helped, misled = examples.chosen_examples(as_collection([small_record(PLAIN, examples=(kept, turned, other, lost))]))
    assert (helped, misled) == ([turned, other], [lost])


def test_free_text_cannot_break_a_table() -> None:
    assert words.cell("a|b\n<img> *c* d_e") == "a\\|b &lt;img&gt; \\*c\\* d\\_e"
    assert words.cell("") == "–"
    assert (words.number(-0.04), words.signed(0.04), words.signed(-1.25)) == ("0.0", "0.0", "−1.2")


# --- base runs of two names ---------------------------------------------------------------------------------------------------------


def of_other(ablation: str, variant: str, **changes: Any) -> RunRecord:
    return dataclasses.replace(OTHER, run=f"ablation-{ablation}-{variant}-s1", ablation=ablation, variant=variant, **changes)


def test_records_are_grouped_by_their_base_and_most_queries_come_first(tmp_path: Path) -> None:
    own = small_record(PLAIN, COMPOSING, run="mini-queries-k1-s2", ablation="queries", variant="k1", seed=2)
    mine = [small_record(PLAIN, COMPOSING, seed=2), small_record(PLAIN, COMPOSING), own]
    main_group, other = read_collections(save([OTHER_VARIANT, OTHER, *mine], tmp_path))
    assert (main_group.name, main_group.num_queries(), other.name, other.num_queries()) == ("mini", 4, "ablation", 2)
    assert [record.run for record in main_group.records()] == ["mini-s1", "mini-s2", "mini-queries-k1-s2"]
    assert [record.run for record in other.records()] == ["ablation-s1", "ablation-queries-k1-s1"]
    assert read_collections(tmp_path / "nothing") == ()
    equal = [small_record(PLAIN, run="a-s1"), *(small_record(PLAIN, run=f"b-s{seed}", seed=seed) for seed in (1, 2))]
    assert [group.name for group in read_collections(save(equal, tmp_path / "equal"))] == ["b", "a"]  # as many queries, more seeds


def test_claims_on_ablations_are_those_of_the_group_that_holds_them(tmp_path: Path) -> None:
    lazy = dataclasses.replace(OTHER_TASK, values={**OTHER_TASK.values, "always": (0.0, 0.0)})
    rewarded = {"grpo/reward": ((0, 0.25), (30, 0.5)), "cot_sft/val_token_accuracy": ((400, 0.5),)}
    other = [
        dataclasses.replace(OTHER, curves=rewarded),
        of_other("stages", "without_grpo", tasks=(lazy,)),
        of_other("dual_lora", "shared", curves={"cot_sft/val_token_accuracy": ((400, 0.25),)}),
        of_other("rivals", "something"),
    ]
    records = [small_record(PLAIN, COMPOSING, curves={"grpo/reward": ((0, 7.0), (9, 8.0))}), *other]
    page = make_page(read_collections(save(records, tmp_path)))
    text = page.markdown()
    titles = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]
    assert titles[:5] == ["What was run", "The claim", "Task by task", "The gate", "Which side thinks"]
    assert titles[5:] == ["Training", "Thoughts that helped, thoughts that misled", "Ablations", "Other methods as settings"]
    start = text.index("## Ablations")
    claims, comparisons = text[:start], text[start:]
    assert row(claims, "always")[1].startswith("50.0 [")  # plain 0, composing 100, of the main group
    assert "mini, seeds 1 |" in claims
    assert "ablation, seeds 1; 1 test tasks with 2 queries; records: 4: 1 of the base run, 3 of 3 ablations" in claims
    assert "python -m experiments.sweep base --run mini --seeds 1 --collect" in claims
    assert "python -m experiments.sweep dual_lora rivals stages --config ablation --run ablation --seeds 1 --collect" in claims
    said = (
        "**ablation**: 1 test tasks (Plain) with 2 queries; seed 1; steps: contrastive 100, grpo 30; commit abc. Its scores are not comparable with"
    )
    assert comparisons.count(said) == 2
    assert "`python -m experiments.sweep stages --config ablation --run ablation --seeds 1`" in comparisons
    assert "mean hit@1 of 1 tasks: 100.0 with stage 4, 0.0 without (variant without\\_grpo)" in comparisons
    assert "the mean reward goes from 0.250 to 0.500." in comparisons
    assert "above the base run none; below it shared (−12.5)." in comparisons  # (100 + 50) / 2 against (100 + 25) / 2
    assert row(comparisons, "something-like")[1:3] == ["auto", "100.0"]
    assert {"rewards.png", "rewards_ablation.png", "ablations.png"} <= set(page.pictures)


# --- files ------------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page on disk of two tasks with everything that a page can hold."""
    out = tmp_path_factory.mktemp("page") / "page.md"
    save(synthetic_records(seeds=(1, 2), tasks=("SceneNext", "ClipMotion"), num_queries=12), out.with_suffix("") / "records")
    main(["--out", str(out)])
    return out


def test_same_records_give_the_same_bytes(written: Path) -> None:
    text, pictures_again = render(written.with_suffix("") / "records", folder="page")
    assert text.encode() == written.read_bytes()
    assert {path.name: path.read_bytes() for path in written.with_suffix("").glob("*.png")} == pictures_again
    names = "ablations budgets examples gains learning reliability rewards sources_contrastive sources_cot_sft tasks trade_off"
    assert list(pictures_again) == [f"{name}.png" for name in names.split()]
    assert all(f"](page/{name})" in text for name in pictures_again)


def test_check_names_the_first_file_that_differs(tmp_path: Path) -> None:
    def picture(level: int) -> bytes:
        buffer = io.BytesIO()
        Image.new("RGB", (2, 2), (level, 0, 0)).save(buffer, format="PNG")
        return buffer.getvalue()

    out, made = tmp_path / "page.md", {"a.png": picture(1), "b.png": picture(2)}
    write(out, "text\n", made)
    check(out, "text\n", made)
    with pytest.raises(DataError, match=r"page\.md is not what the records give"):
        check(out, "other\n", made)
    with pytest.raises(DataError, match=r"b\.png is not"):
        check(out, "text\n", {**made, "b.png": picture(3)})
    with pytest.raises(DataError, match=r"b\.png is not"):
        check(out, "text\n", {"a.png": made["a.png"]})
    with pytest.raises(DataError, match=r"c\.png is not"):
        check(out, "text\n", {**made, "c.png": picture(3)})
    with Image.open(io.BytesIO(made["a.png"])) as image:
        image.save(tmp_path / "page" / "a.png", compress_level=1)  # other bytes, the same picture
    check(out, "text\n", made)
    write(out, "text\n", {"a.png": made["a.png"]})
    assert [path.name for path in (tmp_path / "page").iterdir()] == ["a.png"]


def test_broken_records_are_named(tmp_path: Path) -> None:
    good = small_record(PLAIN, COMPOSING)
    other_keys = dataclasses.replace(PLAIN, keys=("a", "c"))
    short = dataclasses.replace(PLAIN, gain=(1.0,))
    no_auto = dataclasses.replace(PLAIN, values={mode: PLAIN.values[mode] for mode in ("never", "always")})
    cases: Mapping[str, tuple[Sequence[RunRecord], str]] = {
        "short": ([small_record(short)], r"mini-s1\.json: task Plain: gains, probabilities and thoughts of its 2 queries are 1, 2, 2"),
        "mode": ([small_record(no_auto)], r"mini-s1\.json: task Plain: values lack the mode 'auto'"),
        "suite": ([good, small_record(other_keys, COMPOSING, seed=2)], r"mini-s2\.json was not made on the same test queries as .*task Plain"),
        "no base": (
            [small_record(PLAIN, ablation="queries", variant="k1", run="big-queries-k1-s1"), good],
            "'big', but there is no base run big-s<seed>",
        ),
        "group": (
            [good, OTHER, dataclasses.replace(OTHER_VARIANT, tasks=(COMPOSING,))],
            r"k1-s1\.json was not made on .*ablation-s1\.json .*task Composing",
        ),
        "twice": ([good, small_record(PLAIN, COMPOSING, run="mini")], "both seed 1 of the base run"),
        "empty": ([small_record()], r"mini-s1\.json holds no test task"),
    }
    for name, (records, words_of) in cases.items():
        with pytest.raises(DataError, match=words_of):
            read_collections(save(records, tmp_path / name))
    folder = save([good], tmp_path / "json")
    (folder / "mini-s2.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"mini-s2\.json is not JSON"):
        read_collections(folder)
    with pytest.raises(DataError, match="There is no folder"):
        main(["--records", str(tmp_path / "nowhere")])


def test_page_of_the_repository_is_what_its_records_give() -> None:
    records = OUT.with_suffix("") / "records"
    if not list(records.glob("*.json")):
        pytest.skip("docs/results/records holds no records yet, so there is no page to compare with them")
    check(OUT, *render(records))
