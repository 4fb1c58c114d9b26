"""Evaluation on MMEB-V2 from the command line: the check comes first, a mean that lacks tasks says so, and nothing finished is done again."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from datamodules.mmeb.table import TABLE
from experiments import evaluate
from experiments.build import build_tasks
from experiments.command_line import add_settings, new_parser
from experiments.evaluate_model import Subject, open_writer
from experiments.evaluate_suite import WHOLES, profile_changes
from experiments.results import report_metrics
from experiments.runs import CONFIGS
from tests.support import vllm_stand_in
from tests.support.mmeb_tree import make_tree
from tests.support.ranks import run_ranks
from twn_lightning.checkpoints import save_bundle
from twn_lightning.configs.load import load_config
from twn_lightning.configs.run import RunConfig
from twn_lightning.distributed import join_process_group
from twn_lightning.errors import CheckpointError, ConfigError, DataError
from twn_lightning.evaluation.report import Report
from twn_lightning.models.dual_lora import DualLoRAModel

pytestmark = pytest.mark.slow

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


@pytest.fixture(scope="session")
def saved_bundle(make_model: Callable[..., DualLoRAModel], tiny_backbone_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bundle(make_model(), tmp_path_factory.mktemp("saved") / "mine", provenance={}, backbone_path=tiny_backbone_path)


@pytest.fixture
def bundle(saved_bundle: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return shutil.copytree(saved_bundle, tmp_path / "mine")


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


def test_a_picture_that_proves_broken_stops_the_evaluation_or_counts_as_not_found_and_no_old_prediction_stays(
    tree: Path, bundle: Path, given: Callable[..., list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    next(path for path in tree.rglob("FashionIQ/query_0002.jpg")).write_bytes(b"no picture")
    arguments = given(tree, "--bundle", str(bundle), "evaluation.modes=[never,always]", tasks="FashionIQ,VisRAG_ChartQA")
    with pytest.raises(DataError, match=r"Task FashionIQ: .*query_0002\.jpg: this image cannot be read.* With --skip-missing, .* as not found"):
        evaluate.main(arguments)
    evaluate.main([*arguments, "--skip-missing"])
    report = read_report(tmp_path)
    assert [row.label for row in report.rows] == ["FashionIQ, incomplete (1 query unreadable)", "VisRAG_ChartQA"]
    assert report.provenance["unreadable in FashionIQ"].startswith("1 query unreadable, the first: ")
    assert any("FashionIQ, query 2: " in message and "query_0002.jpg" in message for message in caplog.messages)
    assert report.groups()[-1].label == "All-76, incomplete (1 of 76, 1 in part)"
    assert {"test/incomplete/IMG_RET/never", "test/incomplete/All-78/always", "test/incomplete/FashionIQ/never"} <= set(report_metrics(report))
    folder = newest(tmp_path / "bundle-mine" / "evaluation") / "predictions"
    score = json.loads((folder / "FashionIQ_score.json").read_text(encoding="utf-8"))
    assert list(score["unreadable"]["queries"]) == ["2"]
    assert score["num_data"] == 3
    assert score["hit@1"] == pytest.approx(report.rows[0].scores["never"] / 100)
    lines = [json.loads(line) for line in (folder / "FashionIQ_pred.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [bool(line["prediction"]) for line in lines] == [True, True, False]
    for path in tree.rglob("FashionIQ/query_*.jpg"):
        path.write_bytes(b"no picture")
    evaluate.main([*arguments, "--skip-missing"])
    report = read_report(tmp_path)
    assert [row.name for row in report.rows] == ["VisRAG_ChartQA"]
    assert "none of its queries can be opened" in report.provenance["missing FashionIQ"]
    assert {path.name for path in folder.iterdir()} == {"VisRAG_ChartQA_pred.jsonl", "VisRAG_ChartQA_score.json"}
    assert f"removed 4 files of an earlier evaluation from {folder}" in caplog.messages
    with pytest.raises(DataError, match="None of the tasks could be evaluated"):
        evaluate.main(given(tree, "--bundle", str(bundle), "--skip-missing", "evaluation.modes=[never]", tasks="FashionIQ"))


def test_instructions_come_from_a_file_that_the_report_names(
    small_tree: Path, bundle: Path, given: Callable[..., list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    wording = tmp_path / "upstream.yaml"

    def run(*more: str) -> Report:
        evaluate.main(given(small_tree, "--bundle", str(bundle), "evaluation.modes=[never]", *more, tasks="MSVD"))
        return read_report(tmp_path)

    assert "instructions" not in run().provenance
    assert caplog.messages[-1].startswith("vectors: 0 read, 6 encoded")
    wording.write_text("MSVD: {query: 'Find a video of this.', candidate: 'What is seen here?'}\n", encoding="utf-8")
    report = run(f"evaluation.instructions={wording}")
    assert report.provenance["instructions"].startswith(f"{wording} (1 of 78 tasks, ")
    assert caplog.messages[-1].startswith("vectors: 0 read, 6 encoded")  # other prompts, so other vectors
    folders = [path.name for path in (tmp_path / "bundle-mine" / "evaluation").glob("both_mmeb_v2*")]
    assert sorted(name.split("-")[0] for name in folders) == ["both_mmeb_v2_trained_MSVD_6_queries", "both_mmeb_v2_trained_upstream"]
    wording.write_text("MSVD: Another wording.\n", encoding="utf-8")
    run(f"evaluation.instructions={wording}")
    assert caplog.messages[-1].startswith("vectors: 3 read, 3 encoded")  # candidates are worded as at first
    assert len(list((tmp_path / "bundle-mine" / "evaluation").glob("both_mmeb_v2*"))) == 3
    wording.write_text("MSDV: Another wording.\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="upstream.yaml, MSDV: MMEB-V2 has no such task. Did you mean 'MSVD'"):
        run(f"evaluation.instructions={wording}")
    mini = load_config("mini", folder=CONFIGS, profile="cpu", overrides=[f"evaluation.instructions={wording}"])
    with pytest.raises(ConfigError, match="a file for the tasks of MMEB-V2, but data.suite is mini"):
        profile_changes(mini)


def test_vectors_in_the_precision_of_the_run_have_a_key_of_their_own(
    small_tree: Path, bundle: Path, given: Callable[..., list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    found = {}
    for precision in ("32-true", "bf16-mixed"):
        evaluate.main(
            given(small_tree, "--bundle", str(bundle), "evaluation.modes=[never]", f"trainer.precision={precision}", tasks="VisRAG_ChartQA")
        )
        assert caplog.messages[-1].startswith("vectors: 0 read")
        assert read_report(tmp_path).provenance["precision"] == precision
    for path in (tmp_path / "bundle-mine" / "evaluation" / "cache").glob("*/made_by.json"):
        vectors = [load_file(file)["discriminative"] for file in sorted(path.parent.rglob("*.safetensors"))]
        found[json.loads(path.read_text(encoding="utf-8"))["autocast"]] = torch.cat(vectors)
    assert set(found) == {"None", "torch.bfloat16"}
    assert 1e-4 < float((found["None"] - found["torch.bfloat16"]).abs().max()) < 0.2


def test_thoughts_by_vllm_give_the_report_of_the_models_own(
    small_tree: Path, bundle: Path, given: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ["--bundle", str(bundle), "evaluation.modes=[never,always,auto]", "backbone.video_timestamps=true"]
    evaluate.main(given(small_tree, *settings, tasks="OK-VQA,MSVD"))
    own = read_report(tmp_path)
    with pytest.raises(ConfigError, match="needs the package vllm"):
        evaluate.main(given(small_tree, *settings, "evaluation.thought_writer=vllm", tasks="OK-VQA,MSVD"))
    engine = vllm_stand_in.install(monkeypatch)
    evaluate.main(given(small_tree, *settings, "evaluation.thought_writer=vllm", "evaluation.vllm_memory=0.6", tasks="OK-VQA,MSVD"))
    report = read_report(tmp_path)
    assert [engine.settings["gpu_memory_utilization"] for engine in engine.started] == [0.6]
    assert [row.scores for row in report.rows] == [row.scores for row in own.rows]
    assert [row.tokens_per_query for row in report.rows] == [row.tokens_per_query for row in own.rows]
    assert (own.provenance["thoughts"], report.provenance["thoughts"]) == ("own", f"vllm {vllm_stand_in.SIGNATURES['vllm']}, 1 devices")
    caches = [json.loads(path.read_text()) for path in (tmp_path / "bundle-mine" / "evaluation" / "cache").glob("*/made_by.json")]
    assert {cache["thoughts"] for cache in caches} == {own.provenance["thoughts"], report.provenance["thoughts"]}


def ask_for_vllm_on_a_rank(model: DualLoRAModel, bundle: Path) -> None:
    config = load_config("mini", folder=CONFIGS, profile="cpu", overrides=["evaluation.thought_writer=vllm"])
    with join_process_group(use_gpu=False), pytest.raises(ConfigError, match="vllm and there are 2 processes, .* start one process"):
        open_writer(config, model, Subject(bundle, bundle, "mine"))


def test_several_processes_do_not_share_a_gpu_with_vllm(make_model: Callable[..., DualLoRAModel], bundle: Path) -> None:
    run_ranks(ask_for_vllm_on_a_rank, make_model(), bundle)


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
