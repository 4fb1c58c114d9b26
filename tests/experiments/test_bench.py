"""The benchmark: its arithmetic by hand, each part with a run or two on a tiny model, and the page that the numbers give."""

import copy
import functools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.bench.__main__ import main, make_record, measure, parts, profile, render, write
from experiments.bench.baseline import GenerateThenReencode
from experiments.bench.cases import Result
from experiments.bench.encoding import nearly_always
from experiments.bench.limits import LIMITS, Limit, growth, verdicts
from experiments.bench.passes import peak_saved_mib
from experiments.bench.searching import made_up_task
from experiments.bench.sizes import Size, sizes
from experiments.bench.subjects import World, long_items
from experiments.bench.timing import Spread, interleaved, ratios, slope
from experiments.bench_steps import lengthened
from experiments.runs import CONFIGS
from twn_lightning.batches import Item
from twn_lightning.configs.load import load_config
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.models.adapters import use_adapter
from twn_lightning.models.columns import appended
from twn_lightning.models.dual_lora import DualLoRAModel

pytestmark = pytest.mark.slow

TINY = Size(
    rounds=1,
    inputs=6,
    batch_size=4,
    prompt_tokens=40,
    prompts=2,
    pairs=2,
    group_size=2,
    rollout_prompts=2,
    thought_tokens=5,
    task_queries=2,
    task_step=8,
    batches=(1, 2),
    lengths=(20, 40),
    widths=(16,),
    corpora=(120, 240),
    ranked_queries=8,
)


def make_world(bundle: Path, backbone: Path, folder: Path, *, shape: str) -> World:
    overrides = [f"backbone.path={backbone}", "data.tasks=[DigitSum, FlagName]"]
    config = load_config("mini", folder=CONFIGS, profile="smoke", overrides=overrides)
    return World(config, bundle, folder, torch.device("cpu"), "float32", shape, True, {"small": TINY, "large": TINY})


@pytest.fixture(scope="module")
def world(tiny_bundle: Path, tiny_backbone_path: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    """The tiny bundle as the trained one, and no large backbone."""
    return make_world(tiny_bundle, tiny_backbone_path, tmp_path_factory.mktemp("bench"), shape="")


@pytest.fixture(scope="module")
def results(world: World) -> list[Result]:
    kept: list[list[Result]] = []
    measure(world, list(parts()), keep=lambda results: kept.append(list(results)))
    lengths = [len(results) for results in kept]
    assert lengths == sorted(set(lengths)), "after each part, with what was measured before"
    assert len(lengths) == len(parts())
    return kept[-1]


@pytest.fixture
def record(world: World, results: list[Result]) -> dict[str, Any]:
    return make_record(world, results, name="benchmarks", quick=True)


def of_part(results: list[Result], part: str) -> list[Result]:
    return [result for result in results if result.part == part]


# Arithmetic


def test_variants_are_timed_there_and_back_after_one_run_that_is_not_counted() -> None:
    calls: list[str] = []
    ticks = iter([0.0, 9.0, 0.0, 9.0, 0.0, 1.0, 0.0, 2.0, 0.0, 3.0, 0.0, 4.0])
    variants = {name: functools.partial(calls.append, name) for name in "ab"}
    seconds = interleaved(variants, rounds=1, clock=lambda: next(ticks))
    assert "".join(calls) == "ab" + "ba" + "ab"
    assert seconds == {"a": [2.0, 3.0], "b": [1.0, 4.0]}
    assert ratios(seconds["a"], seconds["b"]) == [2.0, 0.75]


def test_a_spread_is_median_and_the_tenth_and_ninetieth_percentile() -> None:
    assert Spread.of([5.0, 1.0, 4.0, 2.0, 3.0]) == Spread(3.0, pytest.approx(1.4), pytest.approx(4.6))  # type: ignore[arg-type]
    assert Spread.of([1.0, 3.0]) == Spread(2.0, pytest.approx(1.2), pytest.approx(2.8))  # type: ignore[arg-type]
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)


def test_a_slope_is_the_exponent_of_the_power_law() -> None:
    assert slope([1.0, 2.0, 4.0, 8.0], [3.0, 12.0, 48.0, 192.0]) == pytest.approx(2.0)
    # logarithms to the base 2: x = 0, 1, 2 and y = 0, 1, 1, so that the slope is (-1 * 0 + 0 * 1 + 1 * 1) / 2
    assert slope([1.0, 2.0, 4.0], [1.0, 2.0, 2.0]) == pytest.approx(0.5)


def test_a_limit_is_held_against_the_median_ratio_of_neighbours() -> None:
    limit = Limit("never", "never", "bare", 1.15)
    result = Result("never", "s", 4, {}, {"never": (1.1, 2.2, 9.0), "bare": (1.0, 2.0, 1.0)})
    found = limit.verdict(result)
    assert found is not None
    assert found.holds
    assert (found.value, found.limit) == ("1.10 [1.10, 7.42]", "at most 1.15")
    slower = limit.verdict(replace(result, seconds={"never": (1.2, 2.4, 1.0), "bare": (1.0, 2.0, 1.0)}))
    assert slower is not None
    assert not slower.holds
    assert limit.verdict(replace(result, part="modes")) is None


def test_reading_once_may_take_a_tenth_more_than_a_gth_of_reading_g_times() -> None:
    limit = next(limit for limit in LIMITS if limit.part == "rollouts")
    for seconds, holds in ((0.137, True), (0.138, False)):
        found = limit.verdict(Result("rollouts", "s", 8, {"group_size": 8.0}, {"shared": (seconds,), "separate": (1.0,)}))
        assert found is not None
        assert found.holds is holds
        assert found.limit == "at most 0.138"


def test_quality_counts_as_equal_where_the_interval_reaches_0() -> None:
    seconds = {"always": (2.0,), "auto": (1.0,)}
    for high, holds in ((0.0, True), (-0.1, False)):
        numbers = {"gap.auto": -1.0, "gap_low.auto": -2.0, "gap_high.auto": high}
        found = {verdict.what: verdict for verdict in verdicts([Result("modes", "s", 1, numbers, seconds)])}
        assert found["quality: auto − always"].holds is holds
        assert found["always / auto"].holds


def test_growth_is_the_slope_of_the_median_times() -> None:
    result = Result("scaling", "corpus size, search: s", 1, {}, {"10": (1.0, 1.0, 5.0), "100": (10.0, 9.0, 11.0)})
    assert growth(result) == pytest.approx(1.0)
    assert [verdict.holds for verdict in verdicts([result])] == [True]


def test_the_cheapest_threshold_nearly_as_good_as_always_is_taken() -> None:
    curve = [{"threshold": 0.0, "quality": 80.0}, {"threshold": 0.3, "quality": 79.5}, {"threshold": 0.5, "quality": 79.4}]
    assert nearly_always(curve) == 0.3
    assert nearly_always(curve, tolerance=0.6) == 0.5


def test_memory_kept_for_backward_counts_each_storage_while_it_is_kept() -> None:
    layer = torch.nn.Linear(256, 256, bias=False)
    rows = torch.randn(1, 256, requires_grad=True)  # 1 KiB

    def one() -> None:  # the product keeps the rows (and the weights, which are the model's), each exp what it gives: 3 KiB
        layer(rows).exp().exp().sum().backward()

    def many() -> None:
        for _ in range(3):
            one()

    assert peak_saved_mib(one, layer) == pytest.approx(3 / 1024)
    assert peak_saved_mib(many, layer) == pytest.approx(3 / 1024)


def test_long_prompts_differ_and_are_hardly_longer_than_wanted(tiny_model: DualLoRAModel) -> None:
    items = long_items(tiny_model.processor, tokens=100, rows=5)
    lengths = tiny_model.processor.inputs(items).attention_mask.sum(dim=1)
    assert 100 <= int(lengths.min()) < 125
    assert len({item.text for item in items}) == 5


def test_lengthened_prompts_begin_with_the_prompts(tiny_model: DualLoRAModel, make_items: Callable[[int], list[Item]]) -> None:
    inputs = tiny_model.processor.inputs(make_items(5))
    columns = inputs.input_ids.shape[1]
    longer = lengthened(inputs, columns + 20)
    assert torch.equal(longer.input_ids[:, :columns], inputs.input_ids)
    assert torch.equal(longer.attention_mask.sum(dim=1), inputs.attention_mask.sum(dim=1) + 20)
    assert torch.isfinite(tiny_model.embed(tiny_model.prefill(longer)).vector).all()
    assert torch.equal(lengthened(inputs, 3).input_ids, inputs.input_ids)


def test_a_made_up_task_is_answered_by_the_candidate_of_the_querys_number() -> None:
    task = made_up_task(3, 2)
    assert [set(query.labels) for query in task.queries] == [{"0"}, {"1"}, {"0"}]
    own = made_up_task(2, 4, [[3, 1], [2, 0]])
    assert [(query.candidates, set(query.labels)) for query in own.queries] == [(("3", "1"), {"3"}), (("2", "0"), {"2"})]


# Parts


def test_every_part_times_every_variant_there_and_back(results: list[Result]) -> None:
    assert {result.part for result in results} == set(parts())
    assert all(len(seconds) == 2 and min(seconds) > 0.0 for result in results for seconds in result.seconds.values())


def test_modes_come_with_what_they_spend_and_find(results: list[Result]) -> None:
    (found,) = of_part(results, "modes")
    assert "trained" in found.setting
    assert set(found.seconds) == {"never", "auto", "nearly", "always"}
    assert (found.numbers["think_rate.never"], found.numbers["think_rate.always"]) == (0.0, 1.0)
    assert {f"quality.{name}" for name in found.seconds} <= set(found.numbers)
    assert found.numbers["gap_low.never"] <= found.numbers["gap.never"] <= found.numbers["gap_high.never"]


def test_of_a_gate_that_knows_nothing_a_share_thinks(tiny_bundle: Path, tiny_backbone_path: Path, tmp_path: Path) -> None:
    both = make_world(tiny_bundle, tiny_backbone_path, tmp_path, shape="qwen3-vl-2b")
    large = replace(both, trained_bundle=None)
    kept: list[Result] = []
    measure(large, ["modes"], keep=kept.extend)
    (found,) = kept
    assert "random weights, K = 4" in found.setting
    assert set(found.seconds) == {"never", "auto", "always"}
    assert found.numbers["think_rate.auto"] == pytest.approx(2 / 6)  # of six inputs the two above the 65th percentile
    assert not any(name.startswith("quality") for name in found.numbers)
    assert [subject.title.partition(", ")[2] for subject in both.fresh_subjects()] == ["random adapters, K = 16", "random weights, K = 16"]


def test_the_rival_writes_the_encoders_thoughts(results: list[Result]) -> None:
    (found,) = of_part(results, "generate")
    assert found.numbers["equal_thoughts"] == 1.0
    assert found.numbers["tokens.always"] > 1.0


def test_the_rival_reads_prompt_and_thought_anew_with_the_same_weights(world: World) -> None:
    (subject,) = world.encoding_subjects()
    items, model = world.items[:4], subject.model()
    found = GenerateThenReencode(subject, batch_size=4).encode(items).vectors
    for item, vector in zip(items, found, strict=True):
        inputs = model.processor.inputs([item])
        with torch.no_grad(), use_adapter(model.backbone.model, "reasoning"):
            thoughts = model.think(model.prefill(inputs), subject.decoding).thoughts
            columns = appended(model.backbone.prompt(inputs), model.backbone.embed_tokens(thoughts.token_ids), thoughts.mask)
            hidden = model.backbone.decode_layers(columns, torch.cat([inputs.attention_mask, thoughts.mask], dim=1), None)
        torch.testing.assert_close(vector, torch.nn.functional.normalize(hidden[0, -1], dim=0), atol=1e-5, rtol=1e-4)


def test_stage_1_gradient_checkpointing_and_gradcache_keep_less_than_plain_lora(results: list[Result]) -> None:
    (found,) = of_part(results, "stage1")
    kept = {name: found.numbers[f"mib.{name}"] for name in found.seconds}
    assert max(kept[name] for name in ("stage1", "checkpointed", "grad_cache")) < 0.6 * kept["plain"]


def test_scalings_are_by_batch_by_length_and_by_corpus(results: list[Result]) -> None:
    found = {result.setting.partition(":")[0]: set(result.seconds) for result in of_part(results, "scaling")}
    assert found == {
        "batch size, never": {"1", "2"},
        "batch size, always": {"1", "2"},
        "prompt tokens, never": {"20", "40"},
        "corpus size, search": {"120", "240"},
    }


def test_a_profile_names_operations_and_functions(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    profile(world, "ranking")
    shown = capsys.readouterr().out
    assert "ranking · 8 queries, 120 candidates, width 16 · rank" in shown
    assert "aten::mm" in shown
    assert "rank_candidates" in shown


# Page


def test_the_page_is_what_the_numbers_give(record: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, record)
    main(["--check", "--out", str(tmp_path)])
    page = (tmp_path / "benchmarks.md").read_text()
    assert render(json.loads((tmp_path / "benchmarks.json").read_text()))[0] == page
    assert f"commit {record['commit']}" in page
    assert page.count("| at most ") + page.count("| at least ") + page.count("| interval reaches 0 ") == len(
        verdicts([Result.from_json(row) for row in record["results"]])
    )
    (tmp_path / "benchmarks.md").write_text(page.replace("yes", "**no**", 1))
    with pytest.raises(DataError, match=r"benchmarks\.md is not what benchmarks\.json gives"):
        main(["--check", "--out", str(tmp_path)])
    write(tmp_path, record)
    changed = copy.deepcopy(record)
    next(row for row in changed["results"] if row["part"] == "scaling")["seconds"]["1"] = [3.0, 3.0]
    picture = render(changed)[1]
    assert picture is not None
    (tmp_path / "benchmarks_scaling.png").write_bytes(picture)
    with pytest.raises(DataError, match=r"benchmarks_scaling\.png is not"):
        main(["--check", "--out", str(tmp_path)])


def test_a_page_of_one_part_holds_that_part_alone(record: dict[str, Any]) -> None:
    only = {**record, "results": [row for row in record["results"] if row["part"] == "never"]}
    text, picture = render(only)
    assert "## Not thinking, against the bare backbone" in text
    assert "## Ranking" not in text
    assert picture is None


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (["--bundle", "no/such/folder"], ConfigError, "no such folder"),
        (["--run", "no-such-run"], ConfigError, "has no finished stage"),
        (["--only", "speed"], ConfigError, "invalid choice: 'speed'"),
        (["--check", "--out", "no/such/folder"], DataError, "makes it"),
    ],
)
def test_a_wrong_argument_is_answered_in_words(arguments: list[str], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        main(arguments)


def test_quick_sizes_are_smaller_and_a_gpus_larger() -> None:
    whole, quick, gpu = (sizes(device=device, quick=is_quick) for device, is_quick in (("cpu", False), ("cpu", True), ("cuda", False)))
    assert all(quick[name].inputs < whole[name].inputs and quick[name].rounds == 1 for name in whole)
    assert gpu["large"].inputs > whole["large"].inputs
