"""Every recipe trains, on its family's true structure shrunk and on data in the originals' forms; stopped and resumed, it ends the same."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor

from callbacks.adapter_checkpoint import AdapterCheckpoint
from experiments.build import build_data, build_model, build_stage, build_trainer
from experiments.gating import gate_examples
from experiments.recipe_estimates import architecture
from experiments.runs import CONFIGS, STEPS, Step, num_steps
from experiments.shapes import make_backbone
from tests.support.training_files import make, sources
from twn_lightning.batches import GateBatch
from twn_lightning.configs.load import load_config
from twn_lightning.configs.run import RunConfig, SourceConfig
from twn_lightning.models.adapters import part_of
from twn_lightning.models.dual_lora import DualLoRAModel

RECIPES = sorted(path.stem for path in CONFIGS.glob("*.yaml") if path.stem not in ("mini", "ablation"))
NUM_STEPS, STOP = 4, 2


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make(tmp_path_factory.mktemp("data"), rows=8)


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("backbones")


def small(name: str, made: dict[str, Path], backbones: Path) -> RunConfig:
    """The recipe as it is, but for what it takes: a shrunk backbone, four steps of small batches, short thoughts, and the data that are there."""
    recipe = load_config(name, folder=CONFIGS, profile="cpu")
    shape = architecture(recipe)
    folder = backbones / shape
    if not folder.exists():
        make_backbone(folder, shape, shrink=True)
    listed = [{**entry, "stages": own[0].stages} for key, entry in sources(made).items() if (own := counterparts(recipe, key, entry["kind"]))]
    sections = ("contrastive", "cot_sft", "gate", "grpo")
    kept = [section for section in sections if getattr(recipe.stages, section).steps]
    return load_config(
        name,
        folder=CONFIGS,
        profile="cpu",
        overrides=[
            *(f"backbone.path={folder}", f"data.root={made['media']}", f"data.sources={json.dumps(listed)}", "trainer.progress_bar=false"),
            *(f"stages.{section}.steps={NUM_STEPS}" for section in kept),
            *(f"stages.{section}.optim.warmup_steps=1" for section in kept),
            *("stages.contrastive.batch_size=3", "stages.cot_sft.batch_size=2", "stages.grpo.batch_size=2", "stages.grpo.group_size=2"),
            *("stages.gate.batch_size=4", "stages.gate.num_pairs=6", "stages.gate.label_batch_size=3", "stages.gate.dead_zone=0"),
            *("decoding.max_new_tokens=3", "stages.grpo.max_new_tokens=3", "stages.grpo.length_target=2"),
        ],
    )


def counterparts(recipe: RunConfig, key: str, kind: str) -> list[SourceConfig]:
    """The recipe's sources that a file made for the test stands for."""
    return [source for source in recipe.data.sources if source.kind == kind and ("grpo" in source.stages) == key.endswith("_rl")]


def state(model: DualLoRAModel) -> dict[str, Tensor]:
    """What stages train."""
    return {name: value.detach().clone() for name, value in model.named_parameters() if part_of(name) not in ("backbone", "reference")}


def go_back(model: DualLoRAModel, start: dict[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in start.items():
            parameters[name].copy_(value)


def train(config: RunConfig, step: Step, model: DualLoRAModel, folder: Path, *, steps: int, examples: GateBatch | None, resume: bool = False) -> None:
    data = build_data(config, step, model.processor, examples)
    stage = build_stage(config, step, model)
    trainer = build_trainer(config, steps=steps, logger=DummyLogger(), callbacks=[AdapterCheckpoint(folder, every_n_steps=STOP)], folder=folder)
    trainer.fit(stage, data, ckpt_path=folder / "last.ckpt" if resume else None, weights_only=True)
    assert trainer.global_step == steps
    model.drop_reference()


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_each_stage_of_a_recipe_ends_the_same_when_stopped_and_resumed(name: str, made: dict[str, Path], backbones: Path, tmp_path: Path) -> None:
    config = small(name, made, backbones)
    model = build_model(config)
    for number, step in enumerate(STEPS[:4]):
        if not num_steps(config, step):
            continue
        start, examples = state(model), gate_examples(config, model, tmp_path) if step.section == "gate" else None
        train(config, step, model, tmp_path / f"{number}_stopped", steps=STOP, examples=examples)
        go_back(model, start)
        train(config, step, model, tmp_path / f"{number}_stopped", steps=NUM_STEPS, examples=examples, resume=True)
        resumed = state(model)
        go_back(model, start)
        train(config, step, model, tmp_path / f"{number}_whole", steps=NUM_STEPS, examples=examples)
        whole = state(model)
        assert {key for key in whole if not torch.equal(whole[key], resumed[key])} == set()
        learned = {part_of(key) for key in whole if not torch.equal(whole[key], start[key])}
        assert learned, f"{step.title} changed nothing"
        assert learned <= set(_parts(config, step))


def _parts(config: RunConfig, step: Step) -> tuple[str, ...]:
    if step.section in ("gate", "grpo"):
        return {"gate": ("gate",), "grpo": ("reasoning",)}[step.section]
    if config.model.adapters == "shared":
        return ("reasoning",)
    return ("embedding", "queries", *(("reasoning",) if step.section == "cot_sft" else ()))


def test_only_sizes_are_changed(made: dict[str, Path], tmp_path: Path) -> None:
    """What makes a recipe its own is tested as it stands."""
    config, recipe = small("ume_r1_2b", made, tmp_path), load_config("ume_r1_2b", folder=CONFIGS, profile="cpu")
    assert config.model == recipe.model
    assert config.stages.grpo.rewards == recipe.stages.grpo.rewards
    assert dataclasses.replace(config.backbone, path=recipe.backbone.path) == recipe.backbone
