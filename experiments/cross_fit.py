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
from twn_lightning.distributed import world_size
from twn_lightning.errors import ConfigError
from twn_lightning.evaluation.encode import EncodedItems
from twn_lightning.evaluation.routing import gate_probability
from twn_lightning.evaluation.task_labels import query_subjects, subject_folds
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.gate import RoutingGate
from twn_lightning.stages.gate import GateStage


def judged(encoded: Sequence[EncodedTask], gate: RoutingGate) -> list[EncodedTask]:
    """The tasks with a gate's probabilities in place of those they were encoded with.

    Args:
        encoded: With states.
        gate: On any device.
    """

    def judge(items: EncodedItems) -> EncodedItems:
        return dataclasses.replace(items, gate_probability=gate_probability(gate, _states(items)))

    return [dataclasses.replace(each, queries=judge(each.queries), candidates=judge(each.candidates)) for each in encoded]


def judged_out_of_fold(config: RunConfig, model: DualLoRAModel, encoded: Sequence[EncodedTask], examples: GateBatch) -> list[EncodedTask]:
    """The tasks with what gates that know nothing of an input's subject say of it (cross-fitting).

    So a threshold can be chosen on all inputs, though the model's own gate learns from all of them too.

    Args:
        config: The run's settings.
        model: See `fold_gates`.
        encoded: With states.
        examples: What the model's gate learns from: of these tasks, with their folds.

    Raises:
        ConfigError: See `fold_gates`.
    """
    gates = fold_gates(config, model, examples)
    folds = subject_folds([each.task for each in encoded], num_folds=config.stages.gate.folds)

    def judge(items: EncodedItems, name: str, subjects: Sequence[str]) -> EncodedItems:
        fold = torch.tensor([folds[name, subject] for subject in subjects])
        return dataclasses.replace(items, gate_probability=_by_fold(gates, _states(items), fold))

    return [
        dataclasses.replace(
            each,
            queries=judge(each.queries, each.task.name, query_subjects(each.task)),
            candidates=judge(each.candidates, each.task.name, list(each.task.candidates)),
        )
        for each in encoded
    ]


def out_of_fold_probability(config: RunConfig, model: DualLoRAModel, examples: GateBatch) -> Tensor:
    """What gates that know nothing of an example's subject say of it, ``(N,)``; arguments and errors as in `fold_gates`."""
    return _by_fold(fold_gates(config, model, examples), examples.state, examples.fold)


def fold_gates(config: RunConfig, model: DualLoRAModel, examples: GateBatch) -> list[RoutingGate]:
    """For each of the ``stages.gate.folds`` folds a fresh gate after stage 3's steps on the examples of the other folds.

    Args:
        config: The run's settings.
        model: Says what a gate is made of; its own is left as it is.
        examples: With their folds.

    Raises:
        ConfigError: The examples are about so few subjects that a gate would have nothing to learn from.
    """
    assert examples.fold is not None, "gate_examples gives them"
    gates = []
    for number in range(config.stages.gate.folds):
        others = (examples.fold != number).nonzero().flatten()
        if len(others) < 2:
            raise ConfigError(
                f"Without fold {number + 1} of {config.stages.gate.folds}, {len(others)} of the gate's {len(examples)} examples are left to learn "
                "from: they are about too few subjects. Choose more tasks (stages.gate.labels=tasks) or more pairs (stages.gate.num_pairs)."
            )
        gates.append(_fitted_gate(config, model, GateBatch(state=examples.state[others], gain=examples.gain[others]), seed=config.seed + number))
    return gates


def _states(items: EncodedItems) -> Tensor:
    assert items.state is not None, "encode with keep_states=True"
    return items.state


def _by_fold(gates: Sequence[RoutingGate], state: Tensor, fold: Tensor | None) -> Tensor:
    assert fold is not None
    return torch.stack([gate_probability(gate, state) for gate in gates]).gather(0, fold[None]).squeeze(0)


def _fitted_gate(config: RunConfig, model: DualLoRAModel, examples: GateBatch, *, seed: int) -> RoutingGate:
    """A fresh gate on the CPU after as many steps, of as many examples, as the ranks take together in stage 3."""
    third = config.stages.gate
    batch_size = third.batch_size * config.trainer.accumulate * world_size()
    alone = dataclasses.replace(third, batch_size=batch_size, optim=dataclasses.replace(third.optim, optimizer="adamw"))
    config = dataclasses.replace(config, stages=dataclasses.replace(config.stages, gate=alone))
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
                if config.trainer.clip:
                    torch.nn.utils.clip_grad_norm_(gate.parameters(), config.trainer.clip)
                optimizer.step()
                scheduler.step()
    finally:
        model.gate = own
    return gate
