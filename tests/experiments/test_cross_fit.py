"""A gate is judged on what it has not seen, though it learns from everything."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.cross_fit import judged, judged_out_of_fold, label_tasks
from experiments.encoded_tasks import EncodedTask
from experiments.runs import CONFIGS
from twn_lightning.batches import Item
from twn_lightning.configs.load import load_config
from twn_lightning.configs.run import RunConfig
from twn_lightning.errors import ConfigError
from twn_lightning.evaluation.encode import EncodedItems
from twn_lightning.evaluation.task import Query, RetrievalTask
from twn_lightning.evaluation.task_labels import fold_of
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


def test_what_a_gate_can_know_is_known_out_of_fold_and_noise_is_not(config: RunConfig, tiny_model: DualLoRAModel) -> None:
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(NUM_QUERIES, tiny_model.gate.width, generator=generator)
    before = {name: value.clone() for name, value in tiny_model.gate.state_dict().items()}
    by_state, by_chance = state[:, 0] > 0, torch.rand(NUM_QUERIES, generator=generator) > 0.5
    assert auroc(judged_out_of_fold(config, tiny_model, [task_of(by_state, state)])[0].queries.gate_probability, by_state) > 0.9
    assert 0.35 < auroc(judged_out_of_fold(config, tiny_model, [task_of(by_chance, state)])[0].queries.gate_probability, by_chance) < 0.65
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.gate.state_dict().items())


def test_a_subject_changes_nothing_about_itself(config: RunConfig, tiny_model: DualLoRAModel) -> None:
    state = torch.randn(60, tiny_model.gate.width, generator=torch.Generator().manual_seed(0))
    helped = state[:, 0] > 0
    turned = helped.clone()
    turned[3::20] = ~turned[3::20]  # all that is known of the subject of query 3
    task, other = (task_of(labels, state, num_subjects=20) for labels in (helped, turned))
    found, changed = (judged_out_of_fold(config, tiny_model, [each])[0].queries.gate_probability for each in (task, other))
    fold = torch.tensor([fold_of("toy", f"c{number % 20}", num_folds=config.stages.gate.folds) for number in range(60)])
    of_its_fold = fold == fold[3]
    assert torch.equal(found[of_its_fold], changed[of_its_fold])
    assert not torch.equal(found[~of_its_fold], changed[~of_its_fold])


def test_a_fixed_gate_judges_everything_alike(tiny_model: DualLoRAModel) -> None:
    state = torch.randn(6, tiny_model.gate.width)
    (found,) = judged([task_of(torch.ones(6, dtype=torch.bool), state, num_subjects=4)], tiny_model.gate)
    assert torch.equal(found.queries.gate_probability, tiny_model.gate.probability(state).detach())
    assert len(found.candidates.gate_probability) == 4


def test_one_subject_cannot_be_judged_by_others(config: RunConfig, tiny_model: DualLoRAModel) -> None:
    task = task_of(torch.tensor([True, False]), torch.randn(2, tiny_model.gate.width), num_subjects=1)
    assert len(label_tasks(config, [task])) == 2
    with pytest.raises(ConfigError, match="without fold . of 5 there are 0 examples to learn from, of toy: choose more tasks"):
        judged_out_of_fold(config, tiny_model, [task])


def test_the_random_numbers_of_others_are_left_alone(config: RunConfig, tiny_model: DualLoRAModel) -> None:
    state = torch.randn(40, tiny_model.gate.width)
    settings: Any = dataclasses.replace(config.stages.gate, steps=1)
    short = dataclasses.replace(config, stages=dataclasses.replace(config.stages, gate=settings))
    before = torch.random.get_rng_state()
    judged_out_of_fold(short, tiny_model, [task_of(state[:, 0] > 0, state)])
    assert torch.equal(torch.random.get_rng_state(), before)
