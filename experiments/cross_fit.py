"""What a gate says of inputs it has not learned from, though it learns from all of them: each fold is judged by a gate fitted on the others."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from experiments.build import build_gate_data, build_stage
from experiments.encoded_tasks import EncodedTask
from experiments.runs import STEPS
from twn_lightning.batches import GateBatch
from twn_lightning.configs.run import RunConfig
from twn_lightning.errors import ConfigError
from twn_lightning.evaluation.encode import EncodedItems, evaluating
from twn_lightning.evaluation.self_label import GateExamples, concatenate_examples
from twn_lightning.evaluation.task_labels import fold_of, label_task, query_subjects
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.gate import RoutingGate
from twn_lightning.stages.gate import GateStage


def label_tasks(config: RunConfig, encoded: Sequence[EncodedTask]) -> GateExamples:
    """The gate's examples from validation tasks (`label_task`), one task after the other.

    Args:
        config: The run's settings.
        encoded: At least one task, with states.
    """
    gate = config.stages.gate
    parts = [label_task(each.task, each.queries, each.candidates, temperature=gate.temperature, sides=gate.sides) for each in encoded]
    return concatenate_examples(parts)


def judged(encoded: Sequence[EncodedTask], gate: RoutingGate) -> list[EncodedTask]:
    """The tasks with a gate's probabilities in place of those they were encoded with.

    Args:
        encoded: With states.
        gate: On any device.
    """
    return [
        dataclasses.replace(each, queries=_judged_items(each.queries, [gate]), candidates=_judged_items(each.candidates, [gate])) for each in encoded
    ]


def judged_out_of_fold(config: RunConfig, model: DualLoRAModel, encoded: Sequence[EncodedTask]) -> list[EncodedTask]:
    """The tasks with what gates that know nothing of an input's subject say of it (cross-fitting).

    Subjects are dealt to ``stages.gate.folds`` folds (`fold_of`). For each fold a fresh gate learns from the examples of the other folds, by the
    settings and steps of stage 3, and judges the fold's queries and candidates. So a threshold can be chosen on all of them, though the model's own
    gate learns from all of them too.

    Args:
        config: The run's settings.
        model: Says what a gate is made of; its own is left as it is.
        encoded: With states.

    Raises:
        ConfigError: The tasks are about so few subjects that a gate would have nothing to learn from.
    """
    num_folds = config.stages.gate.folds
    examples = label_tasks(config, encoded)
    fold = _folds(examples.source, examples.subject, num_folds)
    gates = []
    for number in range(num_folds):
        others = (fold != number).nonzero().flatten()
        if len(others) < 2:
            raise ConfigError(
                f"stages.gate.labels is tasks, but without fold {number + 1} of {num_folds} there are {len(others)} examples to learn from, of "
                f"{', '.join(each.task.name for each in encoded)}: choose more tasks, or set stages.gate.labels=pairs."
            )
        gates.append(_fitted_gate(config, model, GateBatch(state=examples.state[others], gain=examples.gain[others]), seed=config.seed + number))

    found = []
    for each in encoded:
        asked, offered = (
            _folds([each.task.name] * len(subjects), subjects, num_folds) for subjects in (query_subjects(each.task), list(each.task.candidates))
        )
        queries, candidates = _judged_items(each.queries, gates, asked), _judged_items(each.candidates, gates, offered)
        found.append(dataclasses.replace(each, queries=queries, candidates=candidates))
    return found


def _folds(sources: Sequence[str], subjects: Sequence[str], num_folds: int) -> Tensor:
    return torch.tensor([fold_of(*name, num_folds=num_folds) for name in zip(sources, subjects, strict=True)], dtype=torch.long)


def _judged_items(items: EncodedItems, gates: Sequence[RoutingGate], number: Tensor | None = None) -> EncodedItems:
    """Items with the probabilities of the gate of their number ``(N,)``, by default the first."""
    assert items.state is not None, "encode with keep_states=True"
    by_gate = torch.stack([_probability(gate, items.state) for gate in gates])
    number = torch.zeros(len(items), dtype=torch.long) if number is None else number
    return dataclasses.replace(items, gate_probability=by_gate.gather(0, number[None]).squeeze(0))


def _probability(gate: RoutingGate, state: Tensor) -> Tensor:
    with evaluating(gate):
        return gate.probability(state.to(next(gate.parameters()).device)).cpu()


def _fitted_gate(config: RunConfig, model: DualLoRAModel, examples: GateBatch, *, seed: int) -> RoutingGate:
    """A fresh gate after stage 3's steps on the examples, on the CPU."""
    own, gate = model.gate, copy.deepcopy(model.gate).cpu()
    data = build_gate_data(config, examples)
    model.gate = gate
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            gate.reset_parameters()
            stage = build_stage(config, STEPS[2], model)
            assert isinstance(stage, GateStage)
            optimizer = stage.configure_optimizers()["optimizer"]
            scheduler = LambdaLR(optimizer, stage.optim.factor)
            for batch in data.train_dataloader():
                optimizer.zero_grad()
                torch.autograd.backward(stage.step(batch).loss)
                optimizer.step()
                scheduler.step()
    finally:
        model.gate = own
    return gate
