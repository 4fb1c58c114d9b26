"""A sweep's plan, its order without training (a launcher that finishes steps by itself), its tables from records made by hand."""

import argparse
import json
import logging
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from experiments import ablation_rivals, sweep
from experiments.comparison import OWN, cells, compare, compare_modes, comparison_markdown
from experiments.record import RECORD, RunRecord, TaskRecord
from experiments.runs import CONFIGS, STEPS, RunFolder, num_steps
from experiments.scheduler import LOG, Job, is_held, run_jobs, seconds_left
from experiments.sweep import ABLATIONS, READS, Plan, collect, finished_records, make_plan
from twn_lightning.configs.load import load_config
from twn_lightning.errors import ConfigError, DataError

MODES = ("never", "always", "auto", "oracle", "random", "confidence", "query", "candidate")


def arguments(tmp_path: Path, *words: str, seeds: str = "1", jobs: int = 1, variants: str | None = None) -> argparse.Namespace:
    overrides = [*words, f"output_dir={tmp_path}"]
    return argparse.Namespace(seeds=seeds, jobs=jobs, variants=variants, config=None, profile="smoke", run="base", overrides=overrides)


def record(run: str, seed: int, values: dict[str, list[float]]) -> RunRecord:
    """One task of two queries and six candidates; a quarter of the inputs thinks in every mode, at 8 tokens a task."""
    rates = dict.fromkeys(values, 0.25)
    task = TaskRecord(
        name="Sum", kind="composing", side="query", modality="image", subgroup="", metric="hit@1", num_candidates=6, keys=("a", "b"),
        values={mode: tuple(numbers) for mode, numbers in values.items()},
        query_tokens=dict.fromkeys(values, 6), candidate_tokens=dict.fromkeys(values, 2), query_think_rate=rates, candidate_think_rate=rates,
        gain=(0.0, 0.0), gate_probability=(0.5, 0.5), thought_tokens=(3, 3),
        candidate_keys=(), candidate_gain=(), candidate_gate_probability=(), candidate_thought_tokens=(),
    )  # fmt: skip
    return RunRecord(
        run=run, ablation="", variant="", seed=seed, threshold=0.5, provenance={}, parameters={}, seconds={}, tasks=(task,), sweep=(),
        validation_curve=(), curves={}, examples=(), budgets=(),
    )  # fmt: skip


def finish_step(folder: RunFolder, number: int, **numbers: float | str) -> None:
    step = STEPS[number]
    folder.begin(step)
    folder.bundle(step).mkdir()
    (folder.bundle(step) / "twn_config.json").write_text("{}")
    folder.finish(step, {"seconds": 10.0, **numbers})


def finish(job: Job, value: float = 1.0) -> None:
    for number in range(len(STEPS)):
        if not job.folder.is_done(STEPS[number]):
            finish_step(job.folder, number)
    found = record(job.name, job.folder.config.seed, {mode: [value, value] for mode in MODES})
    (job.folder.path / RECORD).write_text(found.to_json())


class FakeChild:
    """Finishes a step at each look, then the record; notes what was trained at the same time."""

    def __init__(self, job: Job, trained: list[tuple[str, str]], *, fails: bool) -> None:
        self.job, self.trained, self.fails, self.signals = job, trained, fails, list[int]()

    def poll(self) -> int | None:
        if self.fails or self.signals:
            return 1
        waiting = [number for number, step in enumerate(STEPS) if not self.job.folder.is_done(step)]
        if not waiting:
            finish(self.job)
            return 0
        step = STEPS[waiting[0]]
        recipe = self.job.folder.recipe(step)
        code = self.job.folder.code(step, "code")
        origin = self.job.folder.share(step, recipe, code)
        if origin is None:
            finish_step(self.job.folder, waiting[0], recipe=recipe, code=code)
            if num_steps(self.job.folder.config, step):
                self.trained.append((step.name, recipe))
        return None

    def send_signal(self, sig: int) -> None:
        self.signals.append(sig)

    def wait(self, timeout: float | None = None) -> int:
        return 1

    def kill(self) -> None:
        raise AssertionError("it stopped when it was asked to")


class Launcher:
    """Starts fake children and remembers how many ran at a time."""

    def __init__(self, *, failing: Sequence[str] = ()) -> None:
        self.failing, self.order, self.trained = failing, list[str](), list[tuple[str, str]]()
        self.children: list[FakeChild] = []

    def __call__(self, job: Job) -> FakeChild:
        self.order.append(job.name)
        job.folder.create()
        (job.folder.path / LOG).write_text(f"begins\n{job.name} ran out of luck\n\n")
        self.children.append(FakeChild(job, self.trained, fails=job.name in self.failing))
        return self.children[-1]


class Quiet:
    """Counts what it is told."""

    def __init__(self, interrupt_after: int = -1) -> None:
        self.most, self.calls, self.interrupt_after, self.failures = 0, 0, interrupt_after, dict[str, str]()

    def started(self, job: Job) -> None:
        pass

    def ended(self, job: Job, failure: str) -> None:
        self.failures[job.name] = failure

    def refresh(self, running: Sequence[Job], num_done: int, num_jobs: int, seconds_left: float | None) -> None:
        self.most, self.calls = max(self.most, len(running)), self.calls + 1
        if self.calls == self.interrupt_after:
            raise KeyboardInterrupt


def test_every_variant_of_every_ablation_loads_and_differs() -> None:
    assert set(ABLATIONS) == {"dual_lora", "interface", "queries", "reward", "rivals", "stages"}
    assert set(READS) == {"gate", "sides"}
    for variants in ABLATIONS.values():
        configs = [load_config("mini", folder=CONFIGS, overrides=overrides) for overrides in variants.values()]
        assert len({repr(config) for config in configs}) == len(configs)
    assert set(ablation_rivals.MODES) <= set(ablation_rivals.VARIANTS)
    assert all(sweep.REFERENCES[name] in reads and set(reads.values()) <= set(MODES) for name, reads in READS.items())


def test_base_runs_come_first_and_a_variant_that_equals_the_base_is_the_base(tmp_path: Path) -> None:
    plan = make_plan(arguments(tmp_path, "queries", "model.num_queries=4", seeds="1,2"))
    assert [job.name for job in plan.jobs[:3]] == ["base-s1", "base-s2", "base-queries-k1-s1"]
    assert plan.runs["queries"]["k4"] == {1: "base-s1", 2: "base-s2"}
    assert plan.runs["queries"]["k1"] == {1: "base-queries-k1-s1", 2: "base-queries-k1-s2"}
    assert len(plan.jobs) == 2 + 2 * 4
    assert {job.folder.config.model.num_queries for job in plan.jobs if "-k1-" in job.name} == {1}
    assert {job.folder.config.seed for job in plan.jobs if job.name.endswith("-s2")} == {2}
    assert plan.jobs[0].command[1:7] == ("-m", "experiments.train", "all", "--share", "--config", "mini")
    assert "trainer.num_threads=1" in make_plan(arguments(tmp_path, "interface", jobs=2)).jobs[0].command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["querys"], "Did you mean 'queries'"),
        ([], "Which ablation"),
        (["interface", "seed=3"], "--seeds"),
        (["interface", "data.suite=none", "data.sources=[{kind: jsonl}]"], "suite's test tasks"),
    ],
)
def test_what_cannot_be_swept_is_answered(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan(arguments(tmp_path, *words))


def test_a_sweep_trains_the_variants_named_alone(tmp_path: Path) -> None:
    plan = make_plan(arguments(tmp_path, "stages", "queries", variants="without_grpo, k1"))
    assert [job.name for job in plan.jobs] == ["base-s1", "base-stages-without_grpo-s1", "base-queries-k1-s1"]
    with pytest.raises(ConfigError, match=r"--variants names 'without_gpro', .* Did you mean 'without_grpo'\? Available: full, without_contrastive,"):
        make_plan(arguments(tmp_path, "stages", variants="without_gpro"))
    with pytest.raises(ConfigError, match="--variants names 'k1', .* Available: none, since none trains"):
        make_plan(arguments(tmp_path, "sides", variants="k1"))


def test_seeds_and_jobs_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--seeds is '1;2'"):
        make_plan(arguments(tmp_path, "interface", seeds="1;2"))
    with pytest.raises(ConfigError, match="--jobs is 0"):
        make_plan(arguments(tmp_path, "interface", jobs=0))


@pytest.mark.parametrize("num_parallel", [1, 3])
def test_each_step_is_trained_once(tmp_path: Path, num_parallel: int) -> None:
    """Base and 8 rewards have stages 1 to 3 in common, interface has nothing: 3 + 2 * 9, and 5 for the re-encoding run."""
    plan = make_plan(arguments(tmp_path, "reward", "interface"))
    launcher, display = Launcher(), Quiet()
    assert run_jobs(plan.jobs, num_parallel=num_parallel, launch=launcher, display=display, poll_seconds=0.0) == {}
    assert len(launcher.trained) == len(set(launcher.trained)) == 3 + 2 * len(ABLATIONS["reward"]) + 5
    assert all(job.is_finished() for job in plan.jobs)
    assert display.most == num_parallel
    assert launcher.order[0] == "base-s1"
    if num_parallel == 3:
        assert launcher.order[1] == "base-interface-reencode-s1"  # the others wait for the base's steps
    origin = json.loads((plan.jobs[-1].folder.step(STEPS[0]) / "done.json").read_text()).get("shared_from", "base-s1")
    assert origin == "base-s1"


def test_a_run_waits_for_a_step_that_another_is_to_train(tmp_path: Path) -> None:
    base, variant, other = (
        make_plan(arguments(tmp_path, "stages", "interface")).jobs[0],
        *(make_plan(arguments(tmp_path, name)).jobs[-1] for name in ("stages", "interface")),
    )
    assert variant.name == "base-stages-without_grpo-s1"
    assert is_held(variant, [base])
    assert not is_held(other, [base])
    assert not is_held(variant, [])
    for number in range(3):
        finish_step(base.folder, number)
    assert not is_held(variant, [base])


def test_finished_runs_are_not_started_again(tmp_path: Path) -> None:
    plan = make_plan(arguments(tmp_path, "interface"))
    plan.jobs[0].folder.create()
    finish(plan.jobs[0])
    launcher = Launcher()
    run_jobs(plan.jobs, num_parallel=2, launch=launcher, display=Quiet(), poll_seconds=0.0)
    assert launcher.order == ["base-interface-reencode-s1"]


def test_a_failed_run_is_named_and_the_others_go_on(tmp_path: Path) -> None:
    plan = make_plan(arguments(tmp_path, "interface"))
    display = Quiet()
    failures = run_jobs(plan.jobs, num_parallel=1, launch=Launcher(failing=["base-s1"]), display=display, poll_seconds=0.0)
    assert failures == {"base-s1": "base-s1 ran out of luck"}
    assert display.failures == {"base-s1": "base-s1 ran out of luck", "base-interface-reencode-s1": ""}


def test_ctrl_c_stops_the_running_and_the_same_command_goes_on(tmp_path: Path) -> None:
    plan = make_plan(arguments(tmp_path, "interface"))
    launcher = Launcher()
    with pytest.raises(KeyboardInterrupt):
        run_jobs(plan.jobs, num_parallel=2, launch=launcher, display=Quiet(interrupt_after=1), poll_seconds=0.0)
    assert [child.signals for child in launcher.children] == [[signal.SIGINT]] * 2
    run_jobs(plan.jobs, num_parallel=2, launch=Launcher(), display=Quiet(), poll_seconds=0.0)
    assert all(job.is_finished() for job in plan.jobs)


def test_the_time_left_counts_each_common_step_once(tmp_path: Path) -> None:
    """Of 10 seconds a step: re-encoding 5 steps; test tasks take nothing here. Two runs side by side would take half of it."""
    plan = make_plan(arguments(tmp_path, "interface"))
    base, other = plan.jobs
    assert seconds_left(plan.jobs, plan.jobs, num_parallel=1) is None
    base.folder.create()
    finish(base)
    assert seconds_left(plan.jobs, [other], num_parallel=2) == pytest.approx(50.0, abs=1.0)


def test_a_row_by_hand() -> None:
    """Auto of the variant is 100 and 50, of the base 50 and 50 in the mean of its seeds' queries, paired: 50 and 0. Standard error 25, Student's t
    of one degree of freedom 12.7062; a score ends at 0 and at 100."""
    base = {1: record("b1", 1, {mode: [0.5, 0.5] for mode in MODES}), 2: record("b2", 2, {mode: [0.5, 0.5] for mode in MODES})}
    variant = {1: record("v1", 1, {mode: [1.0, 1.0] for mode in MODES}), 2: record("v2", 2, {mode: [0.5, 0.5] for mode in MODES})}
    first, second = compare({"same": base, "other": variant, "absent": {}}, base, modes={})
    assert first.difference is None
    assert second.difference is not None
    assert (second.difference.mean, second.difference.low, second.difference.high) == pytest.approx((25.0, 25.0 - 317.655, 25.0 + 317.655))
    assert second.scores["all"]["auto"].mean == pytest.approx(75.0)
    assert set(second.scores) == {"all", "composing"}
    assert (second.think_rate, second.tokens) == (0.25, 4.0)
    assert cells(second, ("auto",)) == ["other", "2", "75.0 ± 75.0", "auto", "+25.0 [-292.7, +342.7]", "0.25", "4.0"]
    assert second.metrics()["difference/mean"] == pytest.approx(25.0)
    assert second.metrics()["auto/composing/low"] == 0.0


def test_modes_of_the_same_runs_are_compared_without_training() -> None:
    values = {mode: [1.0, 0.0] for mode in MODES} | {"never": [0.0, 0.0], "query": [1.0, 1.0]}
    rows = compare_modes({3: record("base-s3", 3, values)}, READS["sides"], reference="both")
    assert [(row.variant, row.difference.mean if row.difference else None) for row in rows] == [
        ("never", -50.0), ("query", 50.0), ("candidate", 0.0), ("both", None)
    ]  # fmt: skip
    assert comparison_markdown(rows, modes=(OWN,), reference="both").splitlines()[0] == "| variant | seeds | score | mode | − both | think | tokens |"


def test_other_queries_cannot_be_compared() -> None:
    ours = record("ours", 1, {"auto": [1.0, 1.0]})
    text = ours.to_json().replace('"keys":["a","b"]', '"keys":["a","c"]').replace('"run":"ours"', '"run":"theirs"')
    with pytest.raises(DataError, match="Runs ours and theirs were tested on different queries"):
        compare({"v": {1: ours}}, {1: RunRecord.from_json(text)}, modes={})


def finished_plan(tmp_path: Path) -> Plan:
    plan = make_plan(arguments(tmp_path, "interface"))
    for number, job in enumerate(plan.jobs):
        job.folder.create()
        finish(job, value=1.0 - number / 2)
    return plan


def test_records_are_collected_with_what_they_belong_to(tmp_path: Path) -> None:
    plan = finished_plan(tmp_path)
    paths = collect(plan, tmp_path / "collected")
    found = {path.stem: RunRecord.from_json(path.read_text()) for path in paths}
    assert {name: (each.ablation, each.variant) for name, each in found.items()} == {
        "base-s1": ("", "base"),
        "base-interface-reencode-s1": ("interface", "reencode"),
    }
    assert list(finished_records(plan)["interface/kv"]) == [1]


def test_a_sweep_of_finished_runs_prints_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    finished_plan(tmp_path)
    options = ["--seeds", "1", "--profile", "smoke", "--run", "base", f"output_dir={tmp_path}", "tracking.enabled=false"]
    with caplog.at_level(logging.INFO):
        sweep.main(["interface", "sides", "--collect", "--records", str(tmp_path / "records"), *options])
    assert "2 records in" in caplog.text
    printed = capsys.readouterr().out
    assert "Ablation interface" in printed
    assert "-50.0 [-50.0, -50.0]" in printed
    assert "Ablation sides" in printed
    assert (tmp_path / "base-sweep" / "interface.md").read_text().count("\n") == 4
    sweep.main(["reward", "--no-training", *options])
    assert "reward" in capsys.readouterr().out
