# ruff: noqa: E402 - the environment must be set up before these imports
"""DeepSpeed without a GPU, for tests alone: Lightning offers its strategy on CUDA only, while DeepSpeed itself runs on gloo.

`pipeline` and `resume` are what a rank does (`tests.support.ranks.run_ranks`).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("DS_ACCELERATOR", "cpu")

from twn_lightning.torchvision_compat import ensure_torchvision

ensure_torchvision()

import deepspeed.ops
import numpy as np
import torch
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, Strategy
from PIL import Image
from torch.utils.data import DataLoader

from callbacks.adapter_checkpoint import AdapterCheckpoint
from datamodules.collate import PairCollator
from datamodules.pair_datamodule import PairDataModule
from datamodules.pair_source import InMemorySource
from experiments.pipeline import fit, run_pipeline
from experiments.runs import CONFIGS
from experiments.strategy import build_strategy
from twn_lightning import distributed
from twn_lightning.batches import Item, Pair, PairBatch
from twn_lightning.configs.load import load_config
from twn_lightning.models.adapters import LoraSpec
from twn_lightning.models.backbones import load_backbone
from twn_lightning.models.backbones.base import ProcessorOptions
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.outputs import Decoding
from twn_lightning.rewards.mix import RewardMix
from twn_lightning.stages.base import OptimSpec
from twn_lightning.stages.contrastive import ContrastiveStage
from twn_lightning.stages.cot_sft import CotSftStage
from twn_lightning.stages.grpo import GrpoSpec, GrpoStage

# Without it DeepSpeed compiles an operator for shared memory when it first starts, which takes half a minute.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

STEPS, PAIRS = 4, 4
"""Optimiser steps of a whole training, and pairs of a step and rank."""
OPTIM = OptimSpec(learning_rate=5e-3, total_steps=STEPS, weight_decay=0.01, warmup_steps=1)


class CpuDeepSpeedStrategy(DeepSpeedStrategy):
    """DeepSpeed over gloo, a process a rank."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        assert isinstance(self.config, dict)
        # ZeRO-3 walks so many numbers ahead to see whether a weight is soon used again: with a tiny model through the whole step, each time.
        self.config["zero_optimization"]["stage3_max_reuse_distance"] = 0
        # Weights as small as a tiny model's would otherwise all stay whole on each rank.
        self.config["zero_optimization"]["stage3_param_persistence_threshold"] = 0

    def setup_environment(self) -> None:
        """As of the parent, which refuses everything but CUDA."""
        DDPStrategy.setup_environment(self)

    @property
    def root_device(self) -> torch.device:
        """The CPU, with the number that DeepSpeed asks for."""
        return torch.device("cpu", 0)

    def setup_distributed(self) -> None:
        """As of the parent, which looks for the numbers of GPUs."""
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def _get_process_group_backend(self) -> str:
        return "gloo"


def pipeline(overrides: Sequence[str]) -> None:
    """All stages of the smoke profile, the gate's refit and the test tasks."""
    config = load_config("mini", folder=CONFIGS, profile="smoke", overrides=list(overrides))
    run_pipeline(config, "all", make_strategy=functools.partial(build_strategy, deepspeed=CpuDeepSpeedStrategy))


class Seen(Callback):
    """The keys of the pairs of each step."""

    def __init__(self) -> None:
        self.keys: list[tuple[str, ...]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: PairBatch, batch_idx: int) -> None:
        self.keys.append(batch.keys)


def make_model(backbone: Path) -> DualLoRAModel:
    """A fresh model, the same each time."""
    torch.manual_seed(0)
    options = ProcessorOptions(num_frames=4, max_thought_tokens=48)
    spec = LoraSpec(rank=4, alpha=8)
    return DualLoRAModel(load_backbone(backbone, options=options), reasoning=spec, embedding=spec, num_queries=2)


def make_trainer(folder: Path, *callbacks: Callback, strategy: Strategy | str, num_ranks: int, max_steps: int) -> Trainer:
    """A quiet trainer that leaves its checkpoint in a folder."""
    return Trainer(
        accelerator="cpu",
        devices=num_ranks,
        strategy=strategy,
        max_steps=max_steps,
        max_epochs=1,
        gradient_clip_val=1.0,
        callbacks=[*callbacks, AdapterCheckpoint(folder, every_n_steps=2)],
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        limit_val_batches=0,
        use_distributed_sampler=False,
    )


def train(
    backbone: Path,
    folder: Path,
    *,
    strategy: Strategy | str = "auto",
    num_ranks: int = 1,
    max_steps: int = STEPS,
    checkpoint: Path | None = None,
) -> tuple[Trainer, Seen]:
    """Trains stage 1 on 8 pairs a step, however many ranks share them, and leaves its checkpoint in a folder."""
    model = make_model(backbone)
    pairs = [
        Pair(query=Item(text=f"{i} + {i + 1}"), positive=Item(text=f"{2 * i + 1}"), negatives=(Item(text="0"),) * (i % 2), key=str(i))
        for i in range(25)
    ]
    data = PairDataModule(
        [InMemorySource("sums", pairs)], model.processor, batch_size=2 * PAIRS // num_ranks, num_steps=STEPS, seed=2, max_negatives=1
    )
    seen = Seen()
    trainer = make_trainer(folder, seen, strategy=strategy, num_ranks=num_ranks, max_steps=max_steps)
    fit(trainer, ContrastiveStage(model, OPTIM, temperature=0.1, seed=1, max_prefill_tokens=120), data, checkpoint)
    assert trainer.global_step == max_steps
    return trainer, seen


def unlike_pairs() -> list[Pair]:
    """Four pairs of few words, then four with pictures, many words and hard negatives."""

    def picture(seed: int) -> Image.Image:
        return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 48, 3), dtype=np.uint8))

    words = [Pair(query=Item(text=f"{i}"), positive=Item(text=f"{i} {i}"), query_cot="3", positive_cot="7", key=str(i)) for i in range(4)]
    pictures = [
        Pair(
            query=Item(text="which country", images=(picture(i), picture(10 + i))),
            positive=Item(text=f"the flag shows a red dot on white {i}"),
            negatives=(Item(text="3 + 4"), Item(images=(picture(20 + i),))),
            query_cot="the flag shows a red dot on white, so it is Japan",
            positive_cot="its capital is Tokyo",
            key=str(i),
        )
        for i in range(4, 8)
    ]
    return words + pictures


def train_unlike(
    backbone: Path, folder: Path, own: slice, *, num_ranks: int = 1, make_strategy: Callable[[], Strategy | str] = lambda: "auto"
) -> None:
    """Two steps of stages 1, 2 and 4 on this rank's share of `unlike_pairs`; each stage from the same model."""
    spec, rewards = GrpoSpec(group_size=3, score_temperature=0.1, length_target=2), RewardMix({"rank": 1.0, "length": 0.5})
    max_tokens = 50 if num_ranks > 1 else None
    for stage in (
        ContrastiveStage(make_model(backbone), OPTIM, temperature=0.1, max_prefill_tokens=max_tokens),
        CotSftStage(make_model(backbone), OPTIM, temperature=0.1, max_prefill_tokens=max_tokens),
        GrpoStage(make_model(backbone), OPTIM, spec=spec, decoding=Decoding(max_new_tokens=9, temperature=1.0), rewards=rewards),
    ):
        batch = PairCollator(stage.model.processor, with_cot=True, max_negatives=2)(unlike_pairs()[own])
        trainer = make_trainer(folder / stage.stage, strategy=make_strategy(), num_ranks=num_ranks, max_steps=2)
        trainer.fit(stage, DataLoader([batch] * 2, batch_size=None))  # type: ignore[arg-type]


def resume(folder: Path, backbone: Path, zero: int) -> None:
    """Trains whole; half and resumed; on batches that have nothing in common; and, with ZeRO-2, on from ``plain/last.ckpt`` of a single process."""

    def zero_strategy() -> CpuDeepSpeedStrategy:
        return CpuDeepSpeedStrategy(stage=zero, exclude_frozen_parameters=True, logging_batch_size_per_gpu=1)

    run = functools.partial(train, backbone, num_ranks=2)
    run(folder / "whole", strategy=zero_strategy())
    run(folder / "half", strategy=zero_strategy(), max_steps=2)
    run(folder / "resumed", strategy=zero_strategy(), checkpoint=folder / "half" / "last.ckpt")
    own = slice(4 * distributed.rank(), 4 * distributed.rank() + 4)
    train_unlike(backbone, folder / "unlike", own, num_ranks=2, make_strategy=zero_strategy)
    if zero == 2:
        run(folder / "from_plain", strategy=zero_strategy(), checkpoint=folder / "plain" / "last.ckpt")
