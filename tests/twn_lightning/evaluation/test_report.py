from __future__ import annotations

import dataclasses
import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from twn_lightning.errors import DataError
from twn_lightning.evaluation import figures
from twn_lightning.evaluation.evaluate import Mode, ModeResult, SweepPoint, TaskResult
from twn_lightning.evaluation.report import Report, TaskLabel, task_labels
from twn_lightning.evaluation.report_files import remove_prediction_files, write_prediction_files
from twn_lightning.evaluation.unreadable import Unreadable
from twn_lightning.metrics.gate import reliability_bins


def mode(score: float, *, tokens: int = 0, rate: float = 0.0, ties: float = 0.0) -> ModeResult:
    return ModeResult(
        score=score,
        values=(score / 100, score / 100),
        tie_rate=ties,
        query_think_rate=rate,
        candidate_think_rate=rate,
        query_reasoning_tokens=tokens,
        candidate_reasoning_tokens=0,
        top=(("a", "b"), ("b", "a")),
        metrics={"hit@1": score / 100, "ndcg_linear@5": 0.5},
    )


def result(name: str, *, kind: str, scores: tuple[float, float, float, float], modality: str = "image") -> TaskResult:
    never, always, auto, oracle = scores
    return TaskResult(
        name=name,
        modality=modality,
        subgroup=f"{modality}_ret",
        kind=kind,
        metric="hit@1",
        scope="global",
        num_queries=2,
        num_candidates=4,
        think_sides="both",
        threshold=0.5,
        seconds=2.0,
        modes={
            "never": mode(never, ties=0.25),
            "always": mode(always, tokens=40, rate=1.0),
            "auto": mode(auto, tokens=10, rate=0.25),
            "oracle": mode(oracle, tokens=8, rate=0.2),
        },
    )


RESULTS = [
    result("sums", kind="composing", scores=(20.0, 80.0, 78.0, 90.0)),
    result("flags", kind="plain", scores=(60.0, 50.0, 60.0, 70.0)),
    result("clips", kind="plain", scores=(40.0, 30.0, 40.0, 50.0), modality="video"),
]
MISSING = TaskLabel(name="pages", kind="plain", modality="visdoc", subgroup="visdoc_ret")


def test_groups_are_plain_means_over_tasks() -> None:
    report = Report.from_results(RESULTS)
    assert report.group("plain").row.scores == pytest.approx({"never": 50.0, "always": 40.0, "auto": 50.0, "oracle": 60.0})
    assert report.group("all").row.scores["always"] == pytest.approx(160 / 3)
    assert report.group("image").num_tasks == 2
    assert [group.row.name for group in report.groups()] == ["composing", "plain", "image_ret", "video_ret", "image", "video", "all"]
    assert report.group("all").row.tokens_per_query["always"] == 20.0
    with pytest.raises(DataError, match='no group "audio"'):
        report.group("audio")


def test_a_mean_that_lacks_tasks_says_so() -> None:
    report = Report.from_results(RESULTS, expected=[*task_labels(RESULTS), MISSING])
    assert report.group("all").label == "all, incomplete (3 of 4)"
    assert report.group("plain").label == "plain, incomplete (2 of 3)"
    assert report.group("composing").label == "composing (mean of 1)"
    assert "Missing: pages." in report.markdown()


def test_a_whole_that_lacks_a_task_is_never_shown_without_saying_so() -> None:
    wholes = {"All-4": ["sums", "flags", "clips", "pages"], "All-3": ["sums", "flags", "clips"]}
    report = Report.from_results(RESULTS, expected=[*task_labels(RESULTS), MISSING], wholes=wholes)
    assert [group.label for group in report.groups()[-2:]] == ["All-4, incomplete (3 of 4)", "All-3 (mean of 3)"]
    assert [group.is_complete for group in report.groups()[-2:]] == [False, True]
    assert "all" not in [group.row.name for group in report.groups()]
    lines = report.markdown().splitlines()
    assert next(line for line in lines if "All-4" in line).startswith("| All-4, incomplete (3 of 4) |")
    assert Report.from_json(report.to_json()) == report


def test_the_datas_revision_stands_beside_each_score() -> None:
    revisions = {"sums": "aaaaaaaaaa", "flags": "bbbbbbbbbb", "clips": "cccccccccc"}
    report = Report.from_results(RESULTS, revisions=revisions)
    lines = report.markdown().splitlines()
    assert lines[0].endswith("| seconds | data |")
    assert lines[2].endswith("| 2.0 | aaaaaaaa |")
    of_all = report.group("all").row.revision
    assert len(of_all) == 8
    assert next(line for line in lines if line.startswith("| all (mean of 3)")).endswith(f"| 6.0 | {of_all} |")
    changed = Report.from_results(RESULTS, revisions={**revisions, "clips": "d"})
    assert changed.group("all").row.revision != of_all
    assert changed.group("image").row.revision == report.group("image").row.revision
    assert Report.from_json(report.to_json()) == report
    assert "data" not in Report.from_results(RESULTS).markdown().splitlines()[0]


def test_reports_of_earlier_versions_are_read() -> None:
    data = json.loads(Report.from_results(RESULTS).to_json())
    del data["wholes"]
    for row in data["rows"]:
        for name in ("revision", "num_candidates", "num_unreadable_queries", "num_unreadable_candidates"):
            del row[name]
    report, now = Report.from_json(json.dumps(data)), Report.from_results(RESULTS)
    assert report == dataclasses.replace(now, rows=tuple(dataclasses.replace(row, num_candidates=0) for row in now.rows))
    assert "| sums | composing | hit@1 | 2 | – |" in report.markdown()


def test_a_mode_that_one_task_lacks_has_no_mean() -> None:
    modes: dict[Mode, ModeResult] = {"never": RESULTS[0].modes["never"]}
    report = Report.from_results([dataclasses.replace(RESULTS[0], modes=modes), RESULTS[1]])
    assert set(report.group("all").row.scores) == {"never"}
    assert "| sums | composing | hit@1 | 2 | 4 | 20.0 | – | – | – | – | – (–) | 25.0 | 2.0 |" in report.markdown()


def test_the_table_holds_the_columns_a_reader_wants() -> None:
    lines = Report.from_results(RESULTS, provenance={"bundle": "abc123"}).markdown().splitlines()
    assert (
        lines[0] == "| task | kind | metric | queries | candidates | never | always | auto | oracle | think rate | tokens/query | ties % | seconds |"
    )
    assert lines[2] == "| sums | composing | hit@1 | 2 | 4 | 20.0 | 80.0 | 78.0 | 90.0 | 0.25 | 5.0 (20.0) | 25.0 | 2.0 |"
    assert "| plain (mean of 2) |  | hit@1 | 4 | 8 |" in "\n".join(lines)
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert lines[-1] == "* bundle: abc123"


def test_a_task_of_which_something_could_not_be_opened_makes_its_means_incomplete() -> None:
    unreadable = Unreadable(queries={"7": "7.png: gone"}, candidates={"a": "a.png: gone", "b": "b.png: gone"})
    report = Report.from_results([RESULTS[0], dataclasses.replace(RESULTS[1], unreadable=unreadable), RESULTS[2]])
    assert [row.label for row in report.rows] == ["sums", "flags, incomplete (1 query and 2 candidates unreadable)", "clips"]
    assert report.group("all").label == "all, incomplete (2 of 3, 1 in part)"
    assert report.group("plain").label == "plain, incomplete (1 of 2, 1 in part)"
    assert [group.row.name for group in report.groups() if group.is_complete] == ["composing", "video_ret", "video"]
    assert report.group("plain").row.scores["never"] == 50.0  # what could be scored stays in the mean
    assert "| flags, incomplete (1 query and 2 candidates unreadable) | plain | hit@1 | 2 | 4 |" in report.markdown()
    assert "Unreadable queries count 0 points" in report.markdown()
    assert "Unreadable" not in Report.from_results(RESULTS).markdown()
    assert Report.from_json(report.to_json()) == report


def test_json_round_trip_is_exact() -> None:
    report = Report.from_results(RESULTS, expected=[*task_labels(RESULTS), MISSING], provenance={"split": "test"})
    assert Report.from_json(report.to_json()) == report
    with pytest.raises(DataError, match="not a report"):
        Report.from_json('{"rows": [{}]}')


def test_a_task_cannot_count_twice() -> None:
    with pytest.raises(DataError, match="same task"):
        Report.from_results([RESULTS[0], RESULTS[0]])


def test_prediction_files_can_be_scored_by_vlm2vec(tmp_path: Path) -> None:
    labels = [{"a": 1.0}, {"a": 2.0, "b": 1.0}]
    predictions, score = write_prediction_files(tmp_path / "new", RESULTS[0], labels, mode="always", keys=["x", "y"])
    lines = [json.loads(line) for line in predictions.read_text(encoding="utf-8").splitlines()]
    assert lines[1] == {"prediction": ["b", "a"], "label": ["a", "b"], "rel_scores": [2.0, 1.0], "query": "y"}
    figures_written = json.loads(score.read_text(encoding="utf-8"))
    assert (predictions.name, score.name) == ("sums_pred.jsonl", "sums_score.json")
    assert (figures_written["hit@1"], figures_written["ndcg_linear@5"], figures_written["num_data"]) == (0.8, 0.5, 2)
    assert "unreadable" not in figures_written
    unreadable = Unreadable(candidates={"b": "b.png: gone"})
    write_prediction_files(tmp_path / "new", dataclasses.replace(RESULTS[0], unreadable=unreadable), labels, mode="always")
    assert json.loads(score.read_text(encoding="utf-8"))["unreadable"] == {"queries": {}, "candidates": {"b": "b.png: gone"}}
    with pytest.raises(DataError, match="in mode sometimes"):
        write_prediction_files(tmp_path, RESULTS[0], labels, mode="sometimes")
    blocked = tmp_path / "file"
    blocked.write_text("", encoding="utf-8")
    with pytest.raises(DataError, match="cannot be written"):
        write_prediction_files(blocked, RESULTS[0], labels, mode="always")


def test_predictions_of_an_earlier_evaluation_can_be_removed_and_nothing_else(tmp_path: Path) -> None:
    labels = [{"a": 1.0}, {"b": 1.0}]
    assert remove_prediction_files(tmp_path / "predictions") == 0
    for each in RESULTS:
        write_prediction_files(tmp_path / "predictions", each, labels, mode="always")
    (tmp_path / "predictions" / "notes.txt").write_text("mine", encoding="utf-8")
    assert remove_prediction_files(tmp_path / "predictions") == 6
    assert [path.name for path in (tmp_path / "predictions").iterdir()] == ["notes.txt"]


def heights(figure: Figure) -> list[float]:
    return [patch.get_height() for patch in figure.axes[0].patches if isinstance(patch, Rectangle)]


def test_figures_are_drawn_from_the_numbers_given() -> None:
    diagram = figures.reliability_diagram(reliability_bins(torch.tensor([0.1, 0.9]), torch.tensor([0, 1])))
    assert "0.100" in diagram.axes[0].get_title()
    points = [SweepPoint(0.0, 50.0, 1.0, 90), SweepPoint(1.0, 40.0, 0.0, 0)]
    curve = figures.quality_against_tokens(points, references={"always": (90.0, 50.0)})
    assert np.asarray(curve.axes[0].lines[0].get_xdata()).tolist() == [0, 90]
    bars = figures.task_bars(Report.from_results(RESULTS))
    assert heights(bars)[:3] == [20.0, 60.0, 40.0]
    for figure in (diagram, curve, bars):
        figure.savefig(BytesIO(), format="png")
