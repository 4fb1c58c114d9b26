"""What a stranger finds: targets, pins that agree, a CI script that runs the README's test command."""

import configparser
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TARGETS = (
    "train", "train-stage1", "train-stage2", "train-stage3", "train-stage4", "evaluate", "ablations", "ablation-gate", "bench-stage1", "mlflow-ui",
    "test", "check", "format",
)  # fmt: skip


def test_make_help_lists_every_target() -> None:
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert not [target for target in TARGETS if f"make {target} " not in shown]


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_stage_targets_name_their_own_stage(number: int) -> None:
    shown = subprocess.run(["make", "-n", f"train-stage{number}", "RUN=r"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert f"-m experiments.train stage{number} --config mini --profile cpu --run r" in shown


def test_the_results_are_made_of_every_record_that_the_page_shows() -> None:
    """Of the ablations on the main run only the one without stage 4 is trained; its records must be of the same sweep as the base runs'."""
    shown = subprocess.run(["make", "-n", "results", "SEEDS=1"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "-m experiments.sweep stages --variants without_grpo --config mini --profile cpu --run mini --seeds 1 " in shown
    records = (ROOT / "docs" / "results" / "records").glob("mini-*.json")
    assert {path.stem.rpartition("-s")[0] for path in records} == {"mini", "mini-stages-without_grpo"}


def test_a_second_install_installs_nothing(tmp_path: Path) -> None:
    first = subprocess.run(["make", "-n", "install", f"VENV={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    (tmp_path / ".installed").touch()
    second = subprocess.run(["make", "-n", "install", f"VENV={tmp_path}"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "pip install" in first
    assert "pip" not in second


def test_constraints_satisfy_every_exact_pin() -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    wanted = parser["options"]["install_requires"] + "".join(parser["options.extras_require"].values())
    pins = dict(re.findall(r"^([\w-]+)==([\w.]+)", wanted.replace("\n    ", "\n"), flags=re.MULTILINE))
    frozen = {
        name.lower().replace("_", "-"): version for name, version in re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M)
    }
    assert pins["torch"] == "2.13.0"
    assert {name: frozen.get(name.lower()) for name in pins} == pins


def test_every_data_file_is_part_of_the_package() -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    patterns = {name: value.replace(",", " ").split() for name, value in parser["options.package_data"].items()}
    left_out = []
    for package in ("twn_lightning", "datamodules", "callbacks", "experiments"):
        folder = ROOT / package
        packed = {file for pattern in [*patterns.get("*", []), *patterns.get(package, [])] for file in folder.glob(pattern)}
        files = {file for file in folder.rglob("*") if file.is_file() and file.suffix not in (".py", ".pyc")}
        left_out += sorted(files - packed)
    assert not left_out


def test_no_index_is_written_down() -> None:
    for name in ("Makefile", "constraints.txt", "pyproject.toml", ".ci/run"):
        assert not re.search(r"https?://|index-url [^$]*://", (ROOT / name).read_text()), name


def test_ci_runs_the_readmes_test_command() -> None:
    assert "make test" in (ROOT / "README.md").read_text()
    assert (ROOT / ".ci" / "run").read_text().rstrip().endswith("exec make test")
