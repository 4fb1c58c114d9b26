"""Errors on the command line answer in half a second, before torch is loaded."""

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.command_line import FAILED, STOPPED, run_command
from experiments.sweep import main as sweep
from experiments.train import main
from twn_lightning.errors import CheckpointError, ConfigError, DataError


@pytest.fixture
def backbone(tmp_path: Path) -> str:
    folder = tmp_path / "backbone"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return f"backbone.path={folder}"


@pytest.mark.parametrize(("arguments", "words"), [(["stage9"], "There is no stage 'stage9'"), (["stage1", "sead=2"], "Did you mean: 'seed'")])
def test_a_typo_answers_in_half_a_second(arguments: list[str], words: str) -> None:
    fastest = float("inf")
    for _ in range(3):
        start = processor_seconds()
        done = subprocess.run([sys.executable, "-m", "experiments.train", *arguments], capture_output=True, text=True, check=False)
        fastest = min(fastest, processor_seconds() - start)
        assert done.returncode == FAILED
        assert words in done.stderr
        assert "Traceback" not in done.stderr
    assert fastest < 0.5


def processor_seconds() -> float:
    """What finished child processes took of the processor: unlike the clock, it does not count what else the machine is doing."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_works_from_another_folder(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "experiments.train", "--help"], cwd=tmp_path, capture_output=True, text=True, check=False)
    if "No module named" in done.stderr:
        pytest.skip("the package is not installed, only on the path of this checkout")
    assert done.returncode == 0
    assert "stage1, stage2, stage3, stage4, all" in done.stdout


def test_no_error_waits_for_torch() -> None:
    code = (
        "import sys\nfrom experiments.command_line import run_command\nfrom experiments.train import main\n"
        "for arguments in (['stage9'], ['stage1', 'sead=2'], ['all', '--profile', 'nope'], ['stage2', 'backbone.path=/nowhere']):\n"
        "    assert run_command(main, arguments) == 1\n"
        "heavy = {'torch', 'lightning', 'transformers', 'mlflow', 'numpy'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_stage_says_which_command_comes_first(tmp_path: Path, backbone: str) -> None:
    given = ["--run", "r", f"output_dir={tmp_path}", backbone, "--profile", "smoke"]
    command = f"python -m experiments.train stage1 --run r output_dir={tmp_path} {backbone} --profile smoke"
    with pytest.raises(CheckpointError, match=rf"stage 1 · contrastive.*'{re.escape(command)}' first, or make train-stage1"):
        main([given[0], given[1], "stage3", *given[2:]])


def test_an_unknown_backbone_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no config.json in it"):
        main(["stage1", f"backbone.path={tmp_path}"])


def test_a_missing_data_file_is_named(tmp_path: Path, backbone: str) -> None:
    missing = f"data.sources=[{{options: {{path: {tmp_path}/mine.jsonl}}}}]"
    with pytest.raises(DataError, match=r"data.sources names '.*mine.jsonl', which is not there"):
        main(["stage1", backbone, missing])
    with pytest.raises(DataError, match=r"data.sources names '.*mine.jsonl', which is not there"):
        sweep(["stages", backbone, missing, f"output_dir={tmp_path}"])


def test_an_unwritable_folder_is_named(tmp_path: Path, backbone: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ConfigError, match="cannot be written.*output_dir=FOLDER"):
        main(["stage1", backbone, f"output_dir={tmp_path}/file"])


def test_ctrl_c_says_that_the_same_command_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(arguments: object) -> None:
        raise KeyboardInterrupt

    assert run_command(stopped, []) == STOPPED == 130
    assert "stopped; the same command goes on" in capsys.readouterr().err
