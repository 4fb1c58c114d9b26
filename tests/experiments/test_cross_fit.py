"""A gate is judged on what it has not seen, though it learns from everything."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.cross_fit import judged, judged_out_of_fold, out_of_fold_probability
from experiments.encoded_tasks import EncodedTask
from experiments.gating import gate_examples
from experiments.runs import CONFIGS
from twn_lightning.batches import GateBatch, Item
from twn_lightning.configs.load import load_config
from twn_lightning.configs.run import RunConfig
from twn_lightning.errors import ConfigError
from twn_lightning.evaluation.encode import EncodedItems
from twn_lightning.evaluation.task import Query, RetrievalTask
from twn_lightning.evaluation.task_labels import subject_folds
from twn_lightning.models.dual_lora import DualLoRAModel

NUM_QUERIES = 200


@pytest.fixture
def config(tiny_backbone_path: Path) -> RunConfig:
    gate = ["labels=tasks", "steps=60", "batch_size=64", "balanced=false", "dropout=0.0", "margin=0.0", "sides=query", "optim.learning_rate=0.01"]
    overrides = [f"backbone.path={tiny_backbone_path}", *(f"stages.gate.{setting}" for setting in gate)]
    return load_config("mini", folder=CONFIGS, profile="smoke", overrides=overrides)


def unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows, dim=1)


def encoded(vectors: Tensor, thoughts: Tensor, state: Tensor) -> EncodedItems:
    number = len(vectors)
    tokens = torch.ones(number, dtype=torch.long)
    return EncodedItems(vectors, thoughts, torch.zeros(number), tokens, ("",) * number, 0.0, torch.ones(number, dtype=torch.bool), state)


def task_of(helped: Tensor, state: Tensor, *, num_subjects: int = NUM_QUERIES) -> EncodedTask:
    """Queries whose thought helps or harms, as said; each is about a candidate of its own, as far as there are so many."""
    generator = torch.Generator().manual_seed(1)
    candidates = unit(torch.randn(num_subjects, 16, generator=generator))
    own = candidates[torch.arange(len(helped)) % num_subjects]
    away = unit(torch.randn(len(helped), 16, generator=generator))
    good, bad = unit(own + 0.1 * away), unit(own + 1.5 * away)
    queries = encoded(torch.where(helped[:, None], bad, good), torch.where(helped[:, None], good, bad), state)
    asked = [Query(Item(text=str(number)), {f"c{number % num_subjects}": 1.0}, None, str(number)) for number in range(len(helped))]
    keys = {f"c{number}": Item(text=f"candidate {number}") for number in range(num_subjects)}
    task = RetrievalTask("toy", "image", "IMG_QA", "hit@1", "global", asked, keys, "plain")
    return EncodedTask(task, queries, encoded(candidates, candidates, torch.zeros(num_subjects, state.shape[1])))


def auroc(probability: Tensor, helped: Tensor) -> float:
    return float((probability[helped][:, None] > probability[~helped][None]).float().mean())


def out_of_fold(config: RunConfig, model: DualLoRAModel, task: EncodedTask, folder: Path) -> Tensor:
    """The queries' probabilities."""
    folder.mkdir(exist_ok=True)
    return judged_out_of_fold(config, model, [task], gate_examples(config, model, folder, [task]))[0].queries.gate_probability


@pytest.mark.slow
def test_what_a_gate_can_know_is_known_out_of_fold_and_noise_is_not(config: RunConfig, tiny_model: DualLoRAModel, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(NUM_QUERIES, tiny_model.gate.width, generator=generator)
    before = {name: value.clone() for name, value in tiny_model.gate.state_dict().items()}
    by_state, by_chance = state[:, 0] > 0, torch.rand(NUM_QUERIES, generator=generator) > 0.5
    assert auroc(out_of_fold(config, tiny_model, task_of(by_state, state), tmp_path / "state"), by_state) > 0.9
    assert 0.35 < auroc(out_of_fold(config, tiny_model, task_of(by_chance, state), tmp_path / "chance"), by_chance) < 0.65
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.gate.state_dict().items())


def test_the_threshold_of_pairs_is_not_flattered_by_what_the_gate_has_learned(config: RunConfig, tiny_model: DualLoRAModel) -> None:
    generator = torch.Generator().manual_seed(0)
    state, gain = torch.randn(300, tiny_model.gate.width, generator=generator), torch.randn(300, generator=generator)
    examples = GateBatch(state=state, gain=gain, num_reasoning_tokens=torch.ones(300), fold=torch.arange(300) % config.stages.gate.folds)
    assert 0.4 < auroc(out_of_fold_probability(config, tiny_model, examples), gain > 0) < 0.6


def test_a_subject_changes_nothing_about_itself(config: RunConfig, tiny_model: DualLoRAModel, tmp_path: Path) -> None:
    state = torch.randn(60, tiny_model.gate.width, generator=torch.Generator().manual_seed(0))
    helped = state[:, 0] > 0
    turned = helped.clone()
    turned[3::20] = ~turned[3::20]  # all that is known of the subject of query 3
    task, other = (task_of(labels, state, num_subjects=20) for labels in (helped, turned))
    found, changed = (out_of_fold(config, tiny_model, each, tmp_path / name) for name, each in {"as it is": task, "turned": other}.items())
    folds = subject_folds([task.task], num_folds=config.stages.gate.folds)
    of_its_fold = torch.tensor([folds["toy", f"c{number % 20}"] == folds["toy", "c3"] for number in range(60)])
    assert 3 <= int(of_its_fold.sum()) < 60
    assert torch.equal(found[of_its_fold], changed[of_its_fold])
    assert not torch.equal(found[~of_its_fold], changed[~of_its_fold])


def test_a_fixed_gate_judges_everything_alike(tiny_model: DualLoRAModel) -> None:
    state = torch.randn(6, tiny_model.gate.width)
    (found,) = judged([task_of(torch.ones(6, dtype=torch.bool), state, num_subjects=4)], tiny_model.gate)
    assert torch.equal(found.queries.gate_probability, tiny_model.gate.probability(state).detach())
    assert len(found.candidates.gate_probability) == 4


def test_one_subject_cannot_be_judged_by_others(config: RunConfig, tiny_model: DualLoRAModel, tmp_path: Path) -> None:
    task = task_of(torch.tensor([True, False]), torch.randn(2, tiny_model.gate.width), num_subjects=1)
    with pytest.raises(ConfigError, match=r"Without fold . of 5, 0 of the gate's 2 examples are left .* Choose more tasks"):
        out_of_fold(config, tiny_model, task, tmp_path)


def test_the_random_numbers_of_others_are_left_alone(config: RunConfig, tiny_model: DualLoRAModel, tmp_path: Path) -> None:
    state = torch.randn(40, tiny_model.gate.width)
    settings: Any = dataclasses.replace(config.stages.gate, steps=1)
    short = dataclasses.replace(config, stages=dataclasses.replace(config.stages, gate=settings))
    before = torch.random.get_rng_state()
    out_of_fold(short, tiny_model, task_of(state[:, 0] > 0, state), tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)
