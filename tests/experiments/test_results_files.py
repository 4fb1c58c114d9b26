"""Records on disk: how they are grouped and refused, and the files of the page that they give."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from experiments.record import RunRecord
from experiments.results_page.__main__ import OUT, check, main, render, write
from experiments.results_page.collection import read_collections
from experiments.results_page.page import make_page
from tests.support.made_up_records import COMPOSING, PLAIN, row, save, small_record, small_task, synthetic_records
from twn_lightning.errors import DataError

# Of another base run, on other queries: thinking never hurts there.
OTHER_TASK = small_task("Plain", "plain", never=(1.0, 0.0), always=(1.0, 1.0), auto=(1.0, 1.0))
OTHER = small_record(OTHER_TASK, run="ablation-s1", provenance={"commit": "abc", "stages.contrastive.steps": "100", "stages.grpo.steps": "30"})
OTHER_VARIANT = small_record(OTHER_TASK, run="ablation-queries-k1-s1", ablation="queries", variant="k1")


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
        of_other("rivals", "something", provenance={"commit": "0123abcdef0123abcdef-dirty"}),
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
    chosen = "--variants shared,something,without_grpo"
    assert f"python -m experiments.sweep dual_lora rivals stages {chosen} --config ablation --run ablation --seeds 1 --collect" in claims
    said = (
        "**ablation**: 1 test tasks (Plain) with 2 queries; seed 1; steps: contrastive 100, grpo 30; evaluated at commit abc (3 of 4 records), "
        "0123abcd with uncommitted changes (1 of 4 records). Its scores are not comparable with"
    )
    assert comparisons.count(said) == 2
    assert "`python -m experiments.sweep stages --config ablation --run ablation --seeds 1`" in comparisons
    assert "mean hit@1 of 1 tasks: 100.0 with stage 4, 0.0 without (variant without\\_grpo)" in comparisons
    assert "the mean reward goes from 0.250 to 0.500." in comparisons
    assert "above the base run none; below it shared (−12.5)." in comparisons  # (100 + 50) / 2 against (100 + 25) / 2
    assert row(comparisons, "something-like")[1:3] == ["auto", "100.0"]
    assert {"rewards.png", "rewards_ablation.png", "ablations.png"} <= set(page.pictures)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page on disk of two tasks with everything that a page can hold."""
    out = tmp_path_factory.mktemp("page") / "page.md"
    save(synthetic_records(seeds=(1, 2), tasks=("SceneNext", "ClipMotion"), num_queries=12), out.with_suffix("") / "records")
    main(["--out", str(out)])
    return out


@pytest.mark.slow
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


def test_records_of_other_data_or_settings_are_not_compared(tmp_path: Path) -> None:
    made = {"data_revision": "mmeb-mini 5", "stages.gate.steps": "300", "stages.grpo.steps": "60"}
    base = small_record(PLAIN, provenance=made)

    def variant(**changes: str) -> RunRecord:
        provenance = {**made, "stages.grpo.steps": "0"} | {name.replace("__", "."): value for name, value in changes.items()}
        return small_record(PLAIN, run="mini-stages-without_grpo-s1", ablation="stages", variant="without_grpo", provenance=provenance)

    new = {"stages__gate__tolerance": "1.5", "evaluation__batch_size": "8"}  # the base record holds none of them
    assert len(list(read_collections(save([base, variant(**new)], tmp_path / "good"))[0].records())) == 2
    refused = {
        "data": ([base, variant(data_revision="mmeb-mini 4")], r"without_grpo-s1\.json was made with data_revision mmeb-mini 4, but .*mini-s1\.json"),
        "settings": ([base, variant(stages__gate__steps="100")], r"with stages\.gate\.steps 100, but .*mini-s1\.json with 300, so that they cannot"),
        "seeds": ([base, small_record(PLAIN, seed=2, provenance={**made, "stages.grpo.steps": "0"})], r"mini-s2\.json was made with stages\.grpo"),
    }
    for name, (records, words_of) in refused.items():
        with pytest.raises(DataError, match=words_of):
            read_collections(save(records, tmp_path / name))


@pytest.mark.slow
def test_page_of_the_repository_is_what_its_records_give() -> None:
    records = OUT.with_suffix("") / "records"
    if not list(records.glob("*.json")):
        pytest.skip("docs/results/records holds no records yet, so there is no page to compare with them")
    check(OUT, *render(records))
