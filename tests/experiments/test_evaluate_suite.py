"""Evaluation on MMEB-V2 from the command line: the check comes first, a mean that lacks tasks says so, and nothing finished is done again."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from datamodules.mmeb.table import TABLE
from experiments import evaluate
from experiments.build import build_tasks
from experiments.command_line import add_settings, new_parser
from experiments.evaluate_suite import WHOLES, profile_changes
from experiments.results import report_metrics
from experiments.runs import CONFIGS
from tests.support.mmeb_tree import make_tree
from twn_lightning.checkpoints import save_bundle
from twn_lightning.configs.load import load_config
from twn_lightning.configs.run import RunConfig
from twn_lightning.errors import CheckpointError, ConfigError, DataError
from twn_lightning.evaluation.report import Report
from twn_lightning.models.dual_lora import DualLoRAModel

TASKS = ("OK-VQA", "FashionIQ", "MSVD", "QVHighlight", "VisRAG_ChartQA", "ViDoSeek-page")


@pytest.fixture(scope="session")
def small_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six of the 78 tasks, three rows each."""
    root = tmp_path_factory.mktemp("mmeb") / "tree"
    make_tree(root, num_rows=3, tasks=TASKS)
    return root


@pytest.fixture
def tree(small_tree: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return shutil.copytree(small_tree, tmp_path / "tree")


@pytest.fixture
def bundle(make_model: Callable[..., DualLoRAModel], tiny_backbone_path: Path, tmp_path: Path) -> Path:
    return save_bundle(make_model(), tmp_path / "mine", provenance={}, backbone_path=tiny_backbone_path)


@pytest.fixture
def given(tmp_path: Path) -> Callable[..., list[str]]:
    """Makes the arguments for a tree."""

    def arguments(tree: Path, *more: str, tasks: str = ",".join(TASKS)) -> list[str]:
        settings = [f"output_dir={tmp_path}", "data.suite=mmeb_v2", f"data.root={tree}", "trainer.progress_bar=false", "tracking.enabled=false"]
        return ["--config", "mini", "--profile", "smoke", "--tasks", tasks, *more, *settings, "decoding.max_new_tokens=3"]

    return arguments


def newest(evaluations: Path, name: str = "both_mmeb_v2") -> Path:
    """The folder of the last evaluation; profile, tasks and queries are in its name."""
    return max(evaluations.glob(f"{name}*"), key=lambda path: path.stat().st_mtime_ns)


def read_report(tmp_path: Path, run: str = "bundle-mine", name: str = "both_mmeb_v2") -> Report:
    return Report.from_json((newest(tmp_path / run / "evaluation", name) / "report.json").read_text(encoding="utf-8"))


def test_a_bundle_is_evaluated_on_some_tasks_and_goes_on_where_it_was(
    small_tree: Path,
    bundle: Path,
    given: Callable[..., list[str]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.INFO)
    evaluate.main(given(small_tree, "--bundle", str(bundle)))
    report = read_report(tmp_path)
    assert [row.name for row in report.rows] == [name for name in TABLE if name in TASKS]
    assert {mode for row in report.rows for mode in row.scores} == {"never", "always", "auto", "oracle"}
    labels = [group.label for group in report.groups()]
    assert labels[-2:] == ["All-78, incomplete (6 of 78)", "All-76, incomplete (5 of 76)"]
    assert "VID_RET, incomplete (1 of 5)" in labels
    assert {len(row.revision) > 8 for row in report.rows} == {True}
    assert "All-78, incomplete (6 of 78)" in capsys.readouterr().out
    assert {name.removeprefix("test/").split("/")[0] for name in report_metrics(report)} == {*TASKS, "incomplete"}
    folder = tmp_path / "bundle-mine" / "evaluation"
    written = {path.name for path in (newest(folder) / "predictions").iterdir()}
    assert written == {f"{name}_{kind}" for name in TASKS for kind in ("pred.jsonl", "score.json")}
    lines = (newest(folder) / "predictions" / "OK-VQA_pred.jsonl").read_text(encoding="utf-8").splitlines()
    assert [set(json.loads(line)) for line in lines] == [{"prediction", "label", "rel_scores", "query"}] * 3
    assert report.provenance["profile"] == "trained"
    assert report.provenance["files of ViDoSeek-page"].startswith("corrected")
    assert caplog.messages[-1].startswith("vectors: 0 read")
    evaluate.main(given(small_tree, "--bundle", str(bundle)))
    assert ", 0 encoded and kept, 0 damaged" in caplog.messages[-1]
    assert read_report(tmp_path).rows == report.rows  # the time, too, is that of the encoding


def remove_table(tree: Path) -> None:
    next((tree / TABLE["QVHighlight"].repo).glob("*.jsonl")).unlink()


def remove_row(tree: Path) -> None:
    path = next((tree / TABLE["VisRAG_ChartQA"].repo / "corpus").glob("*.parquet"))
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)


def remove_folder(tree: Path) -> None:
    shutil.rmtree(next(folder for folder in tree.rglob("video7001") if folder.is_dir()))


def remove_image(tree: Path) -> None:
    next(path for path in tree.rglob("FashionIQ/query_0002.jpg")).unlink()


@pytest.mark.parametrize(
    ("remove", "task", "words"),
    [
        (remove_table, "QVHighlight", "VLM2Vec/QVHighlight"),
        (remove_row, "VisRAG_ChartQA", "row 0"),
        (remove_folder, "MSVD", "video7001"),
        (remove_image, "FashionIQ", "query_0002.jpg"),
    ],
)
def test_what_is_missing_is_named_before_a_model_is_loaded(
    tree: Path, bundle: Path, given: Callable[..., list[str]], tmp_path: Path, remove: Callable[[Path], None], task: str, words: str
) -> None:
    remove(tree)
    (bundle / "gate_mlp.pt").write_bytes(b"")  # would be noticed by whoever loads the model
    with pytest.raises(DataError, match=f"1 of the tasks of MMEB-V2 .* cannot be evaluated:\n  {task}: .*{words}(.|\n)*--skip-missing"):
        evaluate.main(given(tree, "--bundle", str(bundle)))
    assert task in (tmp_path / "bundle-mine" / "evaluation" / "check.md").read_text(encoding="utf-8")
    with pytest.raises(CheckpointError, match="gate_mlp.pt"):
        evaluate.main(given(tree, "--bundle", str(bundle), "--skip-missing"))


def test_what_is_there_is_evaluated_without_what_is_missing(tree: Path, bundle: Path, given: Callable[..., list[str]], tmp_path: Path) -> None:
    remove_image(tree)
    evaluate.main(given(tree, "--bundle", str(bundle), "--skip-missing", "evaluation.modes=[never]", tasks="FashionIQ,VisRAG_ChartQA"))
    report = read_report(tmp_path)
    assert [row.name for row in report.rows] == ["VisRAG_ChartQA"]
    assert "query_0002.jpg" in report.provenance["missing FashionIQ"]
    assert report.groups()[-1].label == "All-76, incomplete (1 of 76)"
    with pytest.raises(DataError, match="cannot be evaluated"):
        evaluate.main(given(tree, "--bundle", str(bundle), "--skip-missing", tasks="FashionIQ"))


def test_a_bundle_without_its_settings_needs_a_backbone(
    small_tree: Path, bundle: Path, tiny_backbone_path: Path, given: Callable[..., list[str]], tmp_path: Path
) -> None:
    evaluate.main(given(small_tree, "--bundle", str(bundle), "evaluation.modes=[never]", tasks="QVHighlight"))
    whole = read_report(tmp_path)
    (bundle / "twn_config.json").unlink()
    with pytest.raises(ConfigError, match=r"no twn_config.json.* add --backbone PATH"):
        evaluate.main(given(small_tree, "--bundle", str(bundle)))
    more = ["--bundle", str(bundle), "--backbone", str(tiny_backbone_path), "evaluation.modes=[never]", "backbone.num_frames=4"]
    evaluate.main(given(small_tree, *more, "backbone.video_timestamps=true", "model.num_queries=2", tasks="QVHighlight"))
    assert read_report(tmp_path).rows[0].scores == whole.rows[0].scores


def test_a_profile_changes_prompts_and_is_named(
    small_tree: Path, bundle: Path, given: Callable[..., list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for profile in ("trained", "qwen", "vlm2vec"):
        settings = [f"evaluation.profile={profile}", "evaluation.modes=[never]", "evaluation.max_batch_tokens=400"]
        evaluate.main(given(small_tree, "--bundle", str(bundle), *settings, tasks="VisRAG_ChartQA"))
        assert read_report(tmp_path).provenance["profile"] == profile
        assert caplog.messages[-1].startswith("vectors: 0 read")
    caches = [json.loads(path.read_text()) for path in (tmp_path / "bundle-mine" / "evaluation" / "cache").glob("*/made_by.json")]
    assert sorted(json.loads(cache["processor"])["layout"] for cache in caches) == ["bare", "system", "user"]


def test_a_run_on_other_tasks_is_evaluated_on_all_of_mmeb_v2(finished_run: RunConfig, small_tree: Path) -> None:
    parser = new_parser("evaluate", "")
    for option in ("--bundle", "--tasks"):
        parser.add_argument(option)
    parser.add_argument("--backbone", default="")
    add_settings(parser, of_run=True)
    suite = ["data.suite=mmeb_v2", f"data.root={small_tree}", f"output_dir={finished_run.output_dir}"]
    assert finished_run.data.tasks == ("DigitSum", "FlagName")
    assert evaluate.evaluation_settings(parser.parse_args(["--run", "done", *suite])).data.tasks == ()
    assert evaluate.evaluation_settings(parser.parse_args(["--run", "done", "--tasks", "image,MSVD", *suite])).data.tasks == ("image", "MSVD")
    of_its_own = parser.parse_args(["--run", "done", f"output_dir={finished_run.output_dir}"])
    assert evaluate.evaluation_settings(of_its_own).data.tasks == ("DigitSum", "FlagName")


def test_a_run_is_evaluated_on_mmeb_v2_under_a_profile(finished_run: RunConfig, small_tree: Path) -> None:
    settings = [f"output_dir={finished_run.output_dir}", "data.suite=mmeb_v2", f"data.root={small_tree}", "evaluation.profile=qwen"]
    evaluate.main(["--run", "done", "--tasks", "OK-VQA", "--budget", "50", *settings, "evaluation.modes=[never,auto]", "evaluation.max_queries=2"])
    report = read_report(Path(finished_run.output_dir), "done", "both_budget_50_mmeb_v2_qwen_OK-VQA_2_queries")
    assert [(row.name, row.num_queries) for row in report.rows] == [("OK-VQA", 2)]
    assert report.provenance["max_queries"] == "2 of each task"


def test_wrong_arguments_are_answered(small_tree: Path, bundle: Path, given: Callable[..., list[str]]) -> None:
    with pytest.raises(ConfigError, match="--backbone .* give --bundle FOLDER too"):
        evaluate.main(given(small_tree, "--backbone", "somewhere"))
    with pytest.raises(ConfigError, match="--bundle names a model without a run, .* give them with --config"):
        evaluate.main(["--bundle", str(bundle), "data.suite=mmeb_v2", f"data.root={small_tree}"])
    with pytest.raises(ConfigError, match="--bundle is 'nowhere', but there is no such folder"):
        evaluate.main(given(small_tree, "--bundle", "nowhere"))
    with pytest.raises(ConfigError, match="Did you mean 'MSVD'"):
        evaluate.main(given(small_tree, "--bundle", str(bundle), tasks="MSDV"))
    with pytest.raises(DataError, match=r"data.root is .*no such folder"):
        evaluate.main(given(small_tree / "nowhere", "--bundle", str(bundle)))
    mini = load_config("mini", folder=CONFIGS, profile="cpu", overrides=["evaluation.profile=qwen"])
    with pytest.raises(ConfigError, match="evaluation.profile is qwen, .* but data.suite is mini"):
        profile_changes(mini)


def test_training_watches_the_tasks_that_are_named_and_no_others(small_tree: Path) -> None:
    def config(*more: str) -> RunConfig:
        suite = ["data.suite=mmeb_v2", f"data.root={small_tree}", "data.tasks=[OK-VQA,FashionIQ]"]
        return load_config("mini", folder=CONFIGS, profile="cpu", overrides=[*suite, "evaluation.validation_queries=2", *more])

    assert build_tasks(config(), "validation", max_queries=None) == []
    watched = build_tasks(config("callbacks.evaluate_tasks=[MSVD]", "data.tasks=[]"), "validation", max_queries=None)
    assert [(task.name, len(task.queries)) for task in watched] == [("MSVD", 2)]
    assert [(task.name, len(task.queries)) for task in build_tasks(config(), "test", max_queries=None)] == [("OK-VQA", 3), ("FashionIQ", 3)]


def test_the_means_are_over_78_and_76_tasks() -> None:
    assert {name: len(tasks) for name, tasks in WHOLES.items()} == {"All-78": 78, "All-76": 76}
    assert set(WHOLES["All-78"]) - set(WHOLES["All-76"]) == {"ViDoSeek-page", "MMLongBench-page"}
