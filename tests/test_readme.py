"""What the documents name is there: files, make targets, modules, settings; and their Python runs."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from experiments import readme_results
from experiments.runs import CONFIGS
from twn_lightning.checkpoints import save_bundle
from twn_lightning.command_line.app import main as twn
from twn_lightning.configs.load import load_config
from twn_lightning.models.dual_lora import DualLoRAModel

ROOT = Path(__file__).parents[1]
FOLDERS = ("callbacks", "datamodules", "docs", "experiments", "tests", "twn_lightning")
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.md"))])
TEXTS = {str(path.relative_to(ROOT)): re.sub(r"<!-- \{\{.*?-->", "", path.read_text(encoding="utf-8"), flags=re.DOTALL) for path in DOCUMENTS}
COMMAND_FILES = [*sorted((ROOT / "experiments").glob("*.py")), *sorted((ROOT / "experiments" / "configs").rglob("*.yaml"))]
MAKEFILE_TARGETS = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def commands(text: str) -> list[str]:
    """Lines of shell blocks and spans of code, without their comments."""
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    spans = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    return [line.split("  #")[0].split(" # ")[0].strip() for block in blocks for line in block.splitlines()] + spans


@pytest.mark.parametrize("name", TEXTS)
def test_relative_links_lead_to_files(name: str) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", TEXTS[name])
    local = [target.split("#")[0] for target in targets if not re.match(r"[a-z]+:", target) and not target.startswith("#")]
    assert not [target for target in local if not ((ROOT / name).parent / target).exists()]


@pytest.mark.parametrize("name", TEXTS)
def test_make_targets_exist(name: str) -> None:
    named = {word for command in commands(TEXTS[name]) for word in re.findall(r"(?:^|; )make ([a-z][a-z0-9-]*)", command)}
    assert named <= MAKEFILE_TARGETS


@pytest.mark.parametrize("name", [*TEXTS, *(str(path.relative_to(ROOT)) for path in COMMAND_FILES)])
def test_modules_to_run_exist(name: str) -> None:
    text = TEXTS.get(name) or (ROOT / name).read_text(encoding="utf-8")
    modules = set(re.findall(r"python -m (experiments\.\w+)", text))
    assert not [module for module in modules if importlib.util.find_spec(module) is None]


@pytest.mark.parametrize("name", TEXTS)
def test_configs_profiles_and_overrides_in_commands_are_valid(name: str) -> None:
    for command in commands(TEXTS[name]):
        if not re.match(r"(make |python -m experiments\.(train|evaluate|sweep|ablation_gate))", command):
            continue
        profile = re.search(r"(?:--profile |PROFILE=)([a-z0-9_]+)", command)
        overrides = re.findall(
            r"(?:^|[ '\"])((?!PROFILE|RUN|OVERRIDES|TESTS|CONFIG|PORT|DATA|TASKS|RANKS)[a-zA-Z_.]+=(?:\[.*?\](?=')|[^\s'\"…]+))", command
        )
        if profile or overrides:
            load_config("mini", folder=CONFIGS, profile=profile[1] if profile else None, overrides=overrides)


def test_the_two_commands_come_first() -> None:
    first = next(block for block in re.findall(r"```bash\n(.*?)```", TEXTS["README.md"], flags=re.DOTALL))
    assert [line.split()[:2] for line in first.splitlines()] == [["make", "train"], ["make", "test"]]


def test_every_command_and_yaml_is_explained() -> None:
    text = TEXTS["experiments/README.md"]
    runnable = [path.stem for path in (ROOT / "experiments").glob("*.py") if '__name__ == "__main__"' in path.read_text(encoding="utf-8")]
    assert len(runnable) >= 8
    assert not [name for name in runnable if f"`python -m experiments.{name}" not in text]
    assert not [path for path in CONFIGS.rglob("*.yaml") if f"({path.relative_to(ROOT / 'experiments')})" not in text]


def test_every_target_of_the_makefile_can_be_shown() -> None:
    for target in sorted(MAKEFILE_TARGETS - {"help", "install", "clean", "train-stage"}):
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_names_in_contributing_are_in_the_code() -> None:
    sources = "\n".join(path.read_text(encoding="utf-8") for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))
    words = {word for span in commands(TEXTS["CONTRIBUTING.md"]) for word in re.findall(r"\b(?:[A-Z]\w+|_?[a-z]+(?:_[a-z]+)+)\b", span)}
    unknown = {word for word in words if not re.search(rf"\b{word}\b", sources) and word not in MAKEFILE_TARGETS}
    assert unknown <= {"NAME", "FOLDER", "TESTS", "load_NAME", "reward_NAME", "DATA_CARD", "README", "CHANGELOG"}


def python_block(name: str, **replacements: Path) -> str:
    code: str = next(block for block in re.findall(r"```python\n(.*?)```", TEXTS[name], flags=re.DOTALL))
    for old, new in replacements.items():
        places = {
            "bundle": "runs/mini/5_gate_refit/bundle",
            "picture": "datamodules/sources/example/red_square.png",
            "backbone": "experiments/backbones/tiny_qwen3_vl",
        }
        wanted = places[old]
        assert wanted in code
        code = code.replace(wanted, str(new))
    return code


@pytest.mark.slow
def test_the_documents_python_runs_in_a_process_of_its_own(tiny_model: DualLoRAModel, tiny_backbone_path: Path, tmp_path: Path) -> None:
    bundle, picture = tmp_path / "bundle", tmp_path / "picture.png"
    save_bundle(tiny_model, bundle, provenance={}, backbone_path=tiny_backbone_path)
    Image.new("RGB", (64, 48), (200, 30, 30)).save(picture)
    use = python_block("README.md", bundle=bundle, picture=picture)
    load = python_block("experiments/backbones/tiny_qwen3_vl/README.md", backbone=tiny_backbone_path)
    done = subprocess.run([sys.executable, "-c", f"{use}\n{load}"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"tensor\(\[\[[^\]]+, [^\]]+, [^\]]+\]\]\)\n", done.stdout)


@pytest.mark.parametrize("library", ["mteb", "sentence_transformers"])
def test_other_libraries_lines_are_those_that_their_tests_run(library: str) -> None:
    tree = ast.parse((ROOT / "twn_lightning" / "integrations" / f"{library}.py").read_text(encoding="utf-8"))
    lines = re.findall(r"^    (.*)$", str(ast.get_docstring(tree, clean=False)), flags=re.MULTILINE)
    assert "```python\n" + "\n".join(lines) + "\n```" in re.sub(r"\n\n+", "\n", TEXTS["README.md"])


@pytest.mark.slow
def test_the_commands_of_twn_run_one_after_the_other(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photos").mkdir()
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (48, 32), colour).save(tmp_path / "photos" / f"{number}.png")
    lines = [command for command in commands(TEXTS["README.md"]) if re.match(r"twn (embed|index|search|explain|info|export) [^…]*$", command)]
    assert {line.split()[1] for line in lines} == {"embed", "index", "search", "explain", "info", "export"}
    monkeypatch.chdir(tmp_path)
    for line in lines:
        words = shlex.split(line.replace("runs/mini/5_gate_refit/bundle", str(tiny_bundle)).replace("datamodules/sources/example", "photos"))
        assert twn(words[1:]) == 0, line
    assert {path.name for path in tmp_path.iterdir()} == {"photos", "vectors", "index", "my-model", "plain"}


def test_the_results_are_those_of_the_records() -> None:
    if not list((ROOT / "docs" / "results" / "records").glob("*.json")):
        pytest.skip("no records are kept here")
    readme_results.main(["--check"])
