"""What is missing in the training data is listed before training, in a report and by the exit code."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments import check_data
from experiments.command_line import FAILED, run_command
from tests.support import training_files

ROWS = 12
KINDS = ("mmeb_train", "colpali", "visrag", "llava_hound", "ume_r1", "ume_r1_rl", "twn", "twn_rl")
Check = Callable[..., tuple[int, str]]


@pytest.fixture
def made(tmp_path: Path) -> dict[str, Path]:
    return training_files.make(tmp_path / "data", rows=ROWS)


@pytest.fixture
def check(made: dict[str, Path], tmp_path: Path, tiny_backbone_path: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    """Runs the command on sources of `training_files`; gives the exit code and everything that was said."""

    def run(names: list[str], *arguments: str, options: dict[str, Any] | None = None) -> tuple[int, str]:
        entries = [training_files.sources(made)[name] for name in names]
        listed = [{**entry, "options": {**entry["options"], **(options or {})}} for entry in entries]
        path = tmp_path / "recipe.yaml"
        path.write_text("# a recipe\n" + yaml.safe_dump({"data": {"suite": "none", "sources": listed}}))
        settings = [f"backbone.path={tiny_backbone_path}", "backbone.max_thought_tokens=256", "data.tasks=[]"]
        code = run_command(check_data.main, ["--config", str(path), *settings, *arguments])
        said = capsys.readouterr()
        return code, said.out + said.err

    return run


def test_whole_data_are_counted_and_measured(check: Check, tmp_path: Path) -> None:
    out = tmp_path / "reports" / "data.json"
    code, said = check(list(training_files.sources({"media": tmp_path, **dict.fromkeys(KINDS, tmp_path)})), "--out", str(out))
    assert code == 0, said
    assert "10 of 10 sources are complete; 0 rows cannot be used." in said
    found = {source["name"]: source for source in json.loads(out.read_text())["sources"]}
    assert {source["num_rows"] for source in found.values()} == {ROWS}
    assert found["UME-sft-train"]["num_without_cot"] == 0
    assert found["UME-rl-train"]["num_without_cot"] == ROWS
    assert found["UME-sft-train"]["repairs"] == {"markers": 1, "blank": ROWS}
    assert found["twn_rl"]["num_targets"] == ROWS / 2  # equal target_hash in pairs
    assert "| twn_rl | 12 | 12 | 0 | 0 | 50.0% | 12 |" in said
    lengths = found["CIRR"]["lengths"]
    assert set(lengths) == {"query", "positive", "negative"}
    assert lengths["negative"]["num_measured"] == ROWS
    assert lengths["positive"]["median"] <= lengths["positive"]["high"] <= lengths["positive"]["maximum"]
    assert set(found["UME-sft-train"]["lengths"]) == {"query", "positive", "query_cot", "positive_cot"}


def test_missing_and_unreadable_media_are_listed_and_the_command_fails(made: dict[str, Path], check: Check, tmp_path: Path) -> None:
    (made["media"] / training_files.picture_name(2)).unlink()
    (made["media"] / training_files.picture_name(5)).write_bytes(b"words, and nothing to see")
    out = tmp_path / "data.md"
    code, said = check(["ImageNet_1K", "llava_hound"], "--out", str(out), "--lengths", "0")
    assert code == FAILED
    assert "1 of 2 sources are complete; 2 rows cannot be used." in said
    assert "a medium is missing or unreadable: 2" in said
    assert "row 3: qry_image_path is 'images/flags/2.jpg', but " in said
    assert "row 6: qry_image_path: " in said
    assert said.splitlines()[-1].startswith("DataError: 1 of the sources and tasks have something to be mended")
    assert out.read_text().startswith("## Training sources\n\n1 of 2 sources are complete")
    assert check(["llava_hound"], "--lengths", "0")[0] == 0
    assert "cannot be used" not in check(["ImageNet_1K"], "--rows", "2", "--lengths", "0")[1].replace(
        "0 rows cannot be used", ""
    )  # the first and last row
    code, said = check(["ImageNet_1K"], "--media", "exists", "--lengths", "0")
    assert "a medium is missing or unreadable: 1" in said


def test_prompts_and_thoughts_beyond_the_limits_are_faults(check: Check) -> None:
    code, said = check(["CIRR"], "backbone.max_prompt_tokens=12")
    assert code == FAILED
    assert "more than backbone.max_prompt_tokens=12: raise it, show smaller pictures" in said
    assert "| CIRR | query | 12 |" in said
    assert "| 100.0% |" in said
    code, said = check(["twn"], "backbone.max_thought_tokens=4")
    assert code == FAILED
    assert "query_cot has" in said
    assert "more than backbone.max_thought_tokens=4" in said


def test_rows_without_thoughts_are_faults_where_thoughts_are_learnt(check: Check) -> None:
    assert check(["twn_rl"], "--lengths", "0")[0] == 0
    code, said = check(["twn_rl", "twn"], "--with-cot", "--lengths", "0")
    assert code == FAILED
    assert "1 of 2 sources are complete" in said
    assert "holds no chain of thought under cot" in said


def test_every_source_that_cannot_be_opened_is_named(check: Check, made: dict[str, Path]) -> None:
    made["ume_r1"].unlink()
    made["twn"].write_text("[{")
    code, said = check(["ume_r1", "twn", "visrag"], "--lengths", "0")
    assert code == FAILED
    assert "UME-sft-train.json: this data file does not exist" in said
    assert "this JSON list ends within row 1: the file is cut off" in said
    assert "1 of 3 sources are complete" in said
    assert "| VisRAG-Ret-Train-In-domain-data | 12 | 12 | 0 |" in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rows", "0"], "--rows is 0, but it counts rows: choose 1 or more"),
        (["--lengths", "-1"], "--lengths is -1, but it counts rows: choose 0 or more"),
        (["--out", "report.txt"], "--out is 'report.txt', but the report is Markdown or JSON"),
        (["--suit", "mmeb_v2"], "Did you mean '--suite'?"),
        (["--suite", "mmeb_v2"], "data.suite is mmeb_v2, but data.root does not say where it lies"),
        (["data.sourses=[]"], "data.sourses"),
    ],
)
def test_what_is_mistyped_is_answered_in_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(check_data.main, arguments) == FAILED
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
    assert line.startswith("ConfigError: ")


def test_arguments_are_answered_without_loading_torch() -> None:
    program = (
        "import sys; from experiments import check_data; from experiments.command_line import run_command; "
        "code = run_command(check_data.main, ['--rows', '0']); assert 'torch' not in sys.modules; sys.exit(code)"
    )
    answered = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert answered.returncode == FAILED, answered.stderr
    assert "--rows is 0" in answered.stderr


def test_a_suite_without_its_files_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = run_command(check_data.main, ["--suite", "mmeb_v2", "--root", str(tmp_path), "data.tasks=[MSVD]"])
    said = capsys.readouterr()
    assert code == FAILED
    assert "0 of 1 tasks are complete" in said.out
    assert said.err.splitlines()[-1].startswith("DataError: 1 of the sources and tasks")
