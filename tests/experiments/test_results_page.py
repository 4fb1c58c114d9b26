"""The page follows its records: hand-checked numbers, verdicts that flip, sections that come and go."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

from experiments.record import Example, RunRecord
from experiments.results_page import examples, numbers, pictures, words
from experiments.results_page.page import make_page
from tests.support.made_up_records import COMPOSING, PLAIN, as_collection, row, small_record, small_task
from twn_lightning.evaluation.figures import Band


def text_of(*records: RunRecord) -> str:
    return make_page([as_collection(records)]).markdown()


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


def random_beside_auto(*random: float) -> str:
    auto = (1.0, 1.0, 1.0, 0.0)
    values = {"never": auto, "always": auto, "auto": auto, "random": random}
    shares = dict.fromkeys(values, 0.5)
    task = dataclasses.replace(
        PLAIN, keys=tuple("abcd"), values=values, query_tokens=dict.fromkeys(values, 10), candidate_tokens=dict.fromkeys(values, 10),
        query_think_rate=shares, candidate_think_rate=shares,
    )  # fmt: skip
    return text_of(small_record(task))


def test_verdict_on_random_choice_asks_for_an_interval_above_0() -> None:
    claim = "auto beats a random choice of as many inputs within each task"
    assert claim not in text_of(small_record(PLAIN, COMPOSING))  # not scored at random
    assert verdict(random_beside_auto(0.5, 0.5, 0.5, 0.0), claim)[0] == "yes"  # 0.5, 0.5, 0.5, 0: 37.5 ± 24.5
    text = random_beside_auto(0.75, 1.0, 1.0, 0.0)  # 0.25, 0, 0, 0: 6.25 ± 12.25
    assert verdict(text, claim) == ("no", "+6.25 [−6.00, 18.50] points")
    assert "the difference is above 0, but its interval includes 0" in text
    text = random_beside_auto(1.0, 1.0, 1.0, 1.0)
    assert verdict(text, claim)[0] == "no"
    assert "the difference is not above 0" in text
    assert "It is below random on 1 of 1 tasks, most on Plain (−25.0)." in text


def test_composing_think_rate_is_that_of_the_named_side() -> None:
    other_side = dataclasses.replace(COMPOSING, side="candidate", candidate_think_rate={**COMPOSING.candidate_think_rate, "auto": 0.25})
    assert verdict(text_of(small_record(PLAIN, other_side)), "of composing tasks that") == ("no", "25.0 %")


def test_verdicts_on_the_gate_flip_with_its_probabilities() -> None:
    text = text_of(small_record(PLAIN, COMPOSING))
    assert verdict(text, "AUROC") == ("yes", "1.000 over queries and candidates of all tasks")
    assert verdict(text, "calibration error ≤") == ("no", "0.100; Brier skill score 0.960")  # says 0.9 and 0.1, where 1 and 0 are right
    certain = [dataclasses.replace(task, gate_probability=(1.0, 0.0)) for task in (PLAIN, COMPOSING)]
    assert verdict(text_of(small_record(*certain)), "calibration error ≤") == ("yes", "0.000; Brier skill score 1.000")
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
    assert "There is one seed, so that the intervals hold the spread over test queries alone: seeds are not in them." in text
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
    said = "With an interval that excludes 0, the base run in auto is above vlm2vec-v2-like (+50.0) and below none; 1 of 2 are not settled."
    assert said in text  # half of the plain task's queries move, all of the composing task's


def test_a_rival_with_the_rank_of_the_shared_adapter_is_compared_with_twn_of_that_rank() -> None:
    rivals = [small_record(PLAIN, COMPOSING, ablation="rivals", variant=name) for name in ("ume_r1_like", "embed_rl_like")]
    wide = small_record(
        PLAIN, dataclasses.replace(COMPOSING, values={**COMPOSING.values, "auto": (0.5, 0.5)}), ablation="dual_lora", variant="detached_wide"
    )
    text = text_of(small_record(PLAIN, COMPOSING), *rivals, wide)
    found = row(text, "TWN, rank and rate of the shared adapter")
    assert found[1:3] == ["auto", "50.0"]  # plain 50, composing 50
    assert found[-1].strip("*").startswith("+25.0 [")
    # always: plain 0, composing 100; less auto of the wide 50 and 50, and less its always
    said = "ume-r1-like has the rank and rate of the shared adapter, which the base run's reasoning adapter has not. Less TWN with the same rank"
    assert f"{said} and rate it is 0.0 [−49.0, 49.0] against auto and 0.0 [0.0, 0.0] against always." in text
    assert "embed-rl-like has the rank" not in text
    assert "2 of 2 are not settled." in text  # the row of TWN is no rival
    assert "rank and rate of the shared adapter" not in text_of(small_record(PLAIN, COMPOSING), *rivals)


def test_variants_without_records_are_named_and_the_base_run_is_not_one_of_them() -> None:
    variants = [small_record(PLAIN, COMPOSING, ablation=name, variant=variant) for name, variant in (("queries", "k1"), ("rivals", "ume_r1_like"))]
    text = text_of(small_record(PLAIN, COMPOSING), *variants)
    assert "Not run: k2, k4 and last." in text  # k16 is the base run
    assert "Not run: vlm2vec\\_v2\\_like, think\\_then\\_embed\\_like, embed\\_rl\\_like and mmemb\\_r1\\_like." in text
    interface = small_record(PLAIN, COMPOSING, ablation="interface", variant="reencode")
    assert "Not run" not in text_of(small_record(PLAIN, COMPOSING), interface)


def test_commits_are_short_counted_and_each_named_once() -> None:
    first, second = "3636b6e279e19977d4d7e4dc400261fe0f0f7ce7", "3ae90f690c0daee7219d9c46410a75259e18a657-dirty"
    assert words.commits([first, f"{first}, {second}", f"{first}, {first}"]) == "3636b6e2, 3ae90f69 with uncommitted changes (1 of 3 records)"
    assert words.commits(["", "abc"]) == "abc (1 of 2 records)"
    assert words.commits(["", ""]) == ""
    text = text_of(small_record(PLAIN, COMPOSING, provenance={"commit": first, "commit.trained": f"{first}, {second}"}))
    assert row(text, "evaluated at commit")[1] == "3636b6e2"
    assert row(text, "trained at commit")[1] == "3636b6e2, 3ae90f69 with uncommitted changes"


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


def test_brier_skill_is_0_for_always_saying_the_share_that_was_helped() -> None:
    helped = np.array([1.0, 0.0, 0.0, 0.0])
    assert numbers.GateInputs(np.full(4, 0.25), helped).brier_skill() == pytest.approx(0.0)
    assert numbers.GateInputs(helped, helped).brier_skill() == 1.0
    assert numbers.GateInputs(np.array([0.5, 0.5, 0.0, 0.0]), helped).brier_skill() == pytest.approx(1 - 0.125 / 0.1875)
    assert math.isnan(numbers.GateInputs(helped[:1], helped[:1]).brier_skill())


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
