"""Training does not hold on to what it has used: resident memory is flat once the first steps have warmed up."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from experiments.build import build_callbacks, build_data, build_model, build_stage, build_trainer
from experiments.runs import CONFIGS, STEPS
from tests.support.memory import STATM, resident_bytes
from twn_lightning.configs.load import load_config

EXAMPLE = Path(__file__).parents[2] / "datamodules" / "sources" / "example" / "shapes.jsonl"
EVERY = 10
BOUND = 2048
"""Bytes a step. What a step could keep by mistake is its batch or its loss with the graph behind it: tens of KiB even here. The allocator's own
unrest, about 100 KiB up and down, stays below over 60 steps or more."""


def slope(samples: list[int]) -> float:
    """Growth a step: the median over pairs half of the series apart, which a single jump of the allocator does not move."""
    half = len(samples) // 2
    rises = sorted((samples[place + half] - samples[place]) / (half * EVERY) for place in range(half))
    return rises[len(rises) // 2]


class Resident(Callback):
    """Resident memory, every so many batches."""

    def __init__(self, leak: Callable[[], object] | None = None) -> None:
        self.samples: list[int] = []
        self.leak = leak
        self.kept: list[object] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int) -> None:
        if self.leak is not None:
            self.kept.append(self.leak())
        if batch_idx % EVERY == EVERY - 1:
            self.samples.append(resident_bytes())


def growth(number: int, num_steps: int, backbone: Path, folder: Path, *, leak: Callable[[], object] | None = None) -> float:
    """Bytes a step over the last three quarters of a stage's training, with the callbacks and settings of a run.

    Args:
        number: Which of `STEPS`.
        num_steps: Optimiser steps.
        backbone: Folder of the backbone.
        folder: Where the step writes.
        leak: Gives what is kept of each step on purpose.
    """
    step = STEPS[number]
    overrides = [
        *(f"backbone.path={backbone}", "backbone.max_thought_tokens=256", "backbone.num_frames=4", "trainer.progress_bar=false"),
        *("data.suite=none", f"data.sources=[{{options: {{path: {EXAMPLE}}}}}]"),  # decoded anew each time; the mini suite keeps what it has drawn
        *(f"stages.{step.section}.steps={num_steps}", "data.validation_batches=0", "stages.contrastive.max_negatives=1"),
        *("stages.contrastive.batch_size=2", "stages.cot_sft.batch_size=2"),
        *("callbacks.checkpoint_every=10", "callbacks.rollout_samples_every=10", "callbacks.throughput_every=10", "trainer.log_every=5"),
    ]
    config = load_config("mini", folder=CONFIGS, profile="smoke", overrides=overrides)
    model = build_model(config)
    data = build_data(config, step, model.processor, None)
    resident = Resident(leak)
    callbacks = [*build_callbacks(config, step, folder, data, {"commit": "none"}), resident]
    logger = CSVLogger(str(folder), flush_logs_every_n_steps=10)
    trainer = build_trainer(config, steps=num_steps, logger=logger, callbacks=callbacks, folder=folder)
    trainer.fit(build_stage(config, step, model), data)
    assert len(resident.samples) == num_steps // EVERY
    return slope(resident.samples[len(resident.samples) // 4 :])


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.skipif(not STATM.exists(), reason="resident memory is read from /proc")
@pytest.mark.parametrize(("number", "num_steps"), [(0, 500), (1, 160), (3, 160)], ids=["contrastive", "cot_sft", "grpo"])
def test_memory_does_not_grow_with_steps(number: int, num_steps: int, tiny_backbone_path: Path, tmp_path: Path) -> None:
    assert growth(number, num_steps, tiny_backbone_path, tmp_path) < BOUND


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.skipif(not STATM.exists(), reason="resident memory is read from /proc")
def test_a_step_that_kept_its_vectors_would_show(tiny_backbone_path: Path, tmp_path: Path) -> None:
    found = growth(0, 120, tiny_backbone_path, tmp_path, leak=lambda: torch.ones(4, 512))
    assert found > BOUND
