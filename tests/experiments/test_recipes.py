"""The shipped recipes: their first line is their command, their estimates follow from their settings, and what they name exists."""

import dataclasses
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import get_type_hints

import pytest

from datamodules.mmeb.profiles import PROFILES
from datamodules.sources import SOURCES, has_option
from datamodules.sources.mmeb_train import CONFIGS as MMEB_TRAIN
from experiments import recipe_estimates
from experiments.command_line import FAILED
from experiments.recipe_estimates import architecture, estimates
from experiments.runs import CONFIGS
from experiments.train import main
from twn_lightning.configs.load import load_config
from twn_lightning.configs.run import RunConfig
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.models.backbones.shapes import ARCHITECTURES

ROOT = CONFIGS.parents[1]
RECIPES = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem not in ("mini", "ablation"))
TWN = [name for name in RECIPES if re.fullmatch(r"qwen3_vl_\w+b", name) and "embedding" not in name]


@cache
def recipe(name: str) -> RunConfig:
    return load_config(name, folder=CONFIGS, overrides=["data.root=/data"])


def header(name: str) -> list[str]:
    lines = (CONFIGS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return lines[: next(place for place, line in enumerate(lines) if not line.startswith("#"))]


def test_the_recipes_are_there() -> None:
    assert set(RECIPES) >= {"qwen3_vl_2b", "qwen3_vl_4b", "qwen3_vl_8b", "qwen3_vl_30b_a3b", "vlm2vec_v2_2b", "ume_r1_2b", "qwen3_vl_embedding_2b"}


@pytest.mark.parametrize("name", RECIPES)
def test_the_first_line_is_the_make_command_and_the_second_what_it_runs(name: str) -> None:
    make, command = header(name)[0].removeprefix("# "), header(name)[1].removeprefix("# which is: ")
    shown = subprocess.run([*shlex.split(make.replace("make ", "make -n ", 1))], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    ran = next(line for line in shown.splitlines() if "-m experiments.train all" in line)
    assert ran.partition(" -m ")[2].split() == command.removeprefix("python -m ").split()
    words = shlex.split(command.removeprefix("python -m experiments.train all "))
    given = dict(zip(words[:-1:2], words[1:-1:2], strict=True))
    assert load_config(given["--config"], folder=CONFIGS, profile=given["--profile"], overrides=[words[-1], f"name={given['--run']}"]).name == name


@pytest.mark.parametrize("name", RECIPES)
def test_the_estimates_follow_from_the_settings(name: str) -> None:
    lines = estimates(recipe(name))
    assert all("estimated, not run" in line for line in lines if not line.startswith("#   "))
    assert [line for line in header(name) if line.startswith("#   ") or "estimated" in line] == lines


def test_the_command_rewrites_the_heads_that_its_check_names(tmp_path: Path) -> None:
    for name in ("qwen3_vl_2b", "qwen3_vl_30b_a3b", "mini"):
        shutil.copy(CONFIGS / f"{name}.yaml", tmp_path)
    changed = tmp_path / "qwen3_vl_2b.yaml"
    whole = changed.read_text(encoding="utf-8")
    changed.write_text(whole.replace("GiB\n", "TiB\n"), encoding="utf-8")
    with pytest.raises(DataError, match=r"head of \S*qwen3_vl_2b\.yaml are not those .*run 'python -m experiments.recipe_estimates'"):
        recipe_estimates.main(["--check", "--configs", str(tmp_path)])
    assert changed.read_text(encoding="utf-8") != whole
    recipe_estimates.main(["--configs", str(tmp_path)])
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (CONFIGS / path.name).read_bytes()
    with pytest.raises(DataError, match="no recipe with estimates at its head"):
        recipe_estimates.main(["--configs", str(tmp_path / "nowhere")])


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_fits_the_gpus_that_it_asks_for(name: str) -> None:
    def gib(*words: str) -> float:
        lines = [line for line in estimates(recipe(name)) if "GiB" in line and any(word in line for word in words)]
        return sum(float(re.findall(r"= ([\d.]+) GiB", line)[-1]) for line in lines)

    largest = max(gib(f"stage {number}:") for number in (1, 2, 4))
    assert largest > 0
    assert gib("weights", "adapters") + largest < 64.0  # leaves a fifth of 80 GB for passes without a graph and for fragments


@pytest.mark.parametrize("name", RECIPES)
def test_sources_and_options_exist(name: str) -> None:
    for source in recipe(name).data.sources:
        schema = get_type_hints(SOURCES[source.kind])["options"]
        assert set(source.options) <= {field.name for field in dataclasses.fields(schema)}
        assert str(source.options["path"]).startswith("/data/")
        if source.kind == "mmeb_train":
            assert source.options["config"] in MMEB_TRAIN


@pytest.mark.parametrize("name", RECIPES)
def test_all_of_mmeb_train_is_read(name: str) -> None:
    options = [source.options for source in recipe(name).data.sources]
    if name in TWN:
        assert {Path(option["path"]).stem for option in options} == {"rl", *(f"MMEB_{config}" for config in MMEB_TRAIN)}
    elif name != "ume_r1_2b":
        assert {option["config"] for option in options if "config" in option} == set(MMEB_TRAIN)


@pytest.mark.parametrize("name", RECIPES)
def test_backbone_and_evaluation_profile_are_known(name: str) -> None:
    assert architecture(recipe(name)) in ARCHITECTURES
    assert recipe(name).evaluation.profile in PROFILES
    assert f'"hf download {recipe(name).backbone.path} --local-dir {recipe(name).backbone.path}"' in (CONFIGS / f"{name}.yaml").read_text()


@pytest.mark.parametrize("name", RECIPES)
def test_each_stage_has_sources_and_thoughts_where_it_learns_to_write(name: str) -> None:
    config = recipe(name)
    for stage in (field.name for field in dataclasses.fields(config.stages) if getattr(config.stages, field.name).steps):
        own = [source for source in config.data.sources if source.is_for(stage)]
        assert own, stage
        assert stage != "cot_sft" or all(has_option(source.kind, "with_cot") for source in own)


@pytest.mark.parametrize("name", TWN)
def test_the_recipes_of_all_four_stages_share_what_is_said_to_be_our_default(name: str) -> None:
    config = recipe(name)
    assert all(stage.steps for stage in (config.stages.contrastive, config.stages.cot_sft, config.stages.gate, config.stages.grpo))
    assert (config.model.num_queries, config.model.interface, config.stages.contrastive.temperature) == (16, "kv", 0.02)
    assert (config.model.reasoning.rank, config.model.reasoning.alpha, config.model.embedding.rank, config.model.embedding.alpha) == (64, 128, 32, 64)


@pytest.mark.parametrize("profile", ["zero2", "zero3", "ddp", "single_gpu"])
def test_a_gpu_profile_keeps_a_recipes_weights_in_bfloat16(profile: str) -> None:
    on_gpu = load_config("qwen3_vl_4b", folder=CONFIGS, profile=profile)
    assert (on_gpu.backbone.dtype, on_gpu.trainer.precision, on_gpu.backbone.gradient_checkpointing) == ("bfloat16", "bf16-mixed", True)
    assert on_gpu.trainer.num_workers > 0


def test_the_cpu_s_profile_takes_a_recipe_s_weights_in_float32() -> None:
    on_cpu = load_config("qwen3_vl_4b", folder=CONFIGS, profile="cpu")
    assert (on_cpu.backbone.dtype, on_cpu.trainer.precision) == ("float32", "32-true")


@pytest.fixture
def backbone(tmp_path: Path) -> str:
    folder = tmp_path / "backbone"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return f"backbone.path={folder}"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.suite=mmeb_v2", "data.root=/data"], "stage 1.*data.suite is mmeb_v2.*data.sources names no source: name one, as in data.sources="),
        (["data.suite=none", "data.sources=[{options: {path: /}, weight: 0}]"], "names no source for it of a weight above 0"),
        (["data.suite=none", "data.sources=[{options: {path: /}, stages: [grpo]}]"], "names no source for it"),
    ],
)
def test_training_without_pairs_is_refused(overrides: list[str], words: str, backbone: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        main(["stage1", backbone, f"output_dir={tmp_path}/runs", *overrides])
    assert not (tmp_path / "runs").exists()


def test_the_refusal_comes_before_torch(backbone: str) -> None:
    code = (
        "import sys\nfrom experiments.command_line import run_command\nfrom experiments.train import main\n"
        f"assert run_command(main, ['all', {backbone!r}, 'data.suite=mmeb_v2', 'data.root=/data']) == {FAILED}\n"
        "heavy = {'torch', 'lightning', 'transformers', 'numpy'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "data.sources" in done.stderr
