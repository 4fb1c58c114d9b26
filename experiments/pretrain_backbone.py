"""Trains the tiny Qwen3-VL backbone that ships with the project, from scratch, on MMEB-mini's training split.

    python -m experiments.pretrain_backbone                                                   # about an hour on one core
    python -m experiments.pretrain_backbone --steps 100 --tower-steps 50 --folder runs/try    # to see it work
    python -m experiments.pretrain_backbone --start runs/try --folder runs/longer              # to go on from a backbone with fresh schedules

Needs the `mini` extra. Interrupted and started again with the same folder, it goes on. The curve is in MLflow, experiment
"pretrain"; with it, every 500 steps, the share of validation examples answered without a mistake, by kind.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads cost a tiny model most of its time

import torch

from twn_lightning.torchvision_compat import ensure_torchvision

ensure_torchvision()

import numpy as np  # noqa: E402
from lightning.pytorch import LightningModule, Trainer, seed_everything  # noqa: E402
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.optim.lr_scheduler import LambdaLR  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402
from transformers.modeling_outputs import BaseModelOutputWithPooling  # noqa: E402

from datamodules.mini.splits import Split  # noqa: E402
from experiments.pretrain_corpus import KINDS, SKILLS, WORDS_ALONE, tokenizer_corpus, visible_names  # noqa: E402
from experiments.tracking import Tracking  # noqa: E402
from twn_lightning.batches import Inputs, Thoughts  # noqa: E402
from twn_lightning.configs.run import RunConfig, TrackingConfig  # noqa: E402
from twn_lightning.models.backbones import load_backbone, load_processor  # noqa: E402
from twn_lightning.models.backbones.base import ProcessorOptions  # noqa: E402
from twn_lightning.models.backbones.tiny_qwen3_vl import create_tiny_qwen3_vl  # noqa: E402

BATCH_SIZE = 64
LEARNING_RATE = 1e-3
WARMUP_STEPS = 100
VALIDATE_EVERY = 500
OPTIONS = ProcessorOptions(num_frames=6, video_timestamps=False)


class CaptionBatch(NamedTuple):
    """Prompts and their answers, of one kind, with the names of what each part of the picture shows, ``(B, parts)``."""

    inputs: Inputs
    answers: Thoughts
    shown: Tensor
    kind: str


class CaptionBatches(Dataset[CaptionBatch]):
    """Batch i of a split is a function of the seed and i alone, so that a resumed run sees what an uninterrupted one would.

    Args:
        folder: The backbone's, for its processor.
        split: Of the data.
        seed: Of kinds and examples.
        batch_size: Examples a batch.
        tower_steps: So many first batches hold pictures only.
        kinds: The kind of each batch, a key of `SKILLS`, instead of drawing it.
    """

    def __init__(self, folder: Path, split: Split, *, seed: int, batch_size: int, tower_steps: int = 0, kinds: Sequence[str] = ()) -> None:
        self.processor = load_processor(folder, options=OPTIONS)
        self.split, self.seed, self.batch_size, self.tower_steps, self.kinds = split, seed, batch_size, tower_steps, kinds
        self.labels = {name: number for number, name in enumerate(visible_names())}

    def __getitem__(self, index: int) -> CaptionBatch:
        rng = np.random.default_rng((self.seed, index))
        kind = self.kinds[index] if self.kinds else self._kind(index, rng)
        make = SKILLS[kind] if self.kinds else KINDS[kind][1]
        examples = [make(self.split, rng) for _ in range(self.batch_size)]
        return CaptionBatch(
            inputs=self.processor.inputs([example.item for example in examples]),
            answers=self.processor.thoughts([example.answer for example in examples]),
            shown=torch.tensor([[self.labels[name] for name in example.shown] for example in examples]),
            kind=kind,
        )

    def _kind(self, index: int, rng: np.random.Generator) -> str:
        kinds = [kind for kind in KINDS if kind not in WORDS_ALONE or index >= self.tower_steps]
        shares = np.array([KINDS[kind][0] for kind in kinds])
        return str(rng.choice(kinds, p=shares / shares.sum()))


class Pretraining(LightningModule):
    """First the vision tower alone learns to name what it sees; then the whole backbone learns to answer, and goes on naming.

    A linear head on the tower's features names each part of a picture; it is thrown away at the end. Without it a tower this
    small looks at pictures for thousands of captions before it sees anything in them.
    """

    def __init__(self, folder: Path, *, num_steps: int, tower_steps: int, seed: int) -> None:
        super().__init__()
        self.causal_lm = load_backbone(folder, options=OPTIONS).model.requires_grad_(True)
        self.head = nn.Linear(self.causal_lm.config.text_config.hidden_size, len(visible_names()))
        self.folder, self.num_steps, self.tower_steps, self.seed = folder, num_steps, tower_steps, seed

    def see(self, batch: CaptionBatch) -> tuple[dict[str, BaseModelOutputWithPooling], Tensor, Tensor]:
        """The tower's output for the language model, the head's mean cross-entropy in nats, and which pictures it names rightly, ``(B,)``."""
        inputs, model = batch.inputs, self.causal_lm.model
        if inputs.pixel_values is not None and inputs.image_grid_thw is not None:
            grid, found = inputs.image_grid_thw, model.get_image_features(inputs.pixel_values, inputs.image_grid_thw, return_dict=True)
            outputs = {"image": found}
        elif inputs.pixel_values_videos is not None and inputs.video_grid_thw is not None:
            grid, found = inputs.video_grid_thw, model.get_video_features(inputs.pixel_values_videos, inputs.video_grid_thw, return_dict=True)
            outputs = {"video": found}
        else:
            nothing = torch.zeros(len(inputs), device=self.device)
            return {}, nothing.sum(), nothing.bool()
        frames, height, width = (int(side) for side in grid[0] // torch.tensor([1, 2, 2], device=grid.device))
        parts = batch.shown.shape[1]
        tokens = torch.cat(list(found.pooler_output)).view(len(inputs), frames, height, width, -1)
        if frames == parts:
            pooled = tokens.mean(dim=(2, 3))
        else:
            pooled = tokens.view(len(inputs), frames, height, parts, width // parts, -1).mean(dim=(1, 2, 4))
        scores = self.head(nn.functional.layer_norm(pooled, pooled.shape[-1:]))
        loss = nn.functional.cross_entropy(scores.flatten(0, 1), batch.shown.flatten())
        return outputs, loss, (scores.argmax(dim=-1) == batch.shown).all(dim=1)

    def answer(self, batch: CaptionBatch, seen: dict[str, BaseModelOutputWithPooling]) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy in nats of the answers' tokens, and which answers are right to the last token, ``(B,)``."""
        answers, inputs = batch.answers, batch.inputs
        output = self.causal_lm(
            input_ids=torch.cat([inputs.input_ids, answers.token_ids], dim=1),
            attention_mask=torch.cat([inputs.attention_mask, answers.mask], dim=1),
            mm_token_type_ids=torch.cat([inputs.mm_token_type_ids, torch.zeros_like(answers.token_ids)], dim=1),
            image_grid_thw=inputs.image_grid_thw,
            video_grid_thw=inputs.video_grid_thw,
            mm_encoder_outputs=seen,
            logits_to_keep=answers.token_ids.shape[1],
            use_cache=False,
        )
        logits, targets, mask = output.logits[:, :-1].float(), answers.token_ids[:, 1:], answers.mask[:, 1:].bool()
        loss = nn.functional.cross_entropy(logits[mask], targets[mask])
        return loss, ((logits.argmax(dim=-1) == targets) | ~mask).all(dim=1)

    def training_step(self, batch: CaptionBatch, batch_idx: int) -> Tensor:
        seen, tower_loss, named = self.see(batch)
        self.log(f"pretrain/named_{batch.kind}", named.float().mean())
        if self.global_step < self.tower_steps:
            self.log("pretrain/tower_loss", tower_loss.detach(), prog_bar=True)
            return tower_loss
        loss, hits = self.answer(batch, seen)
        self.log(f"pretrain/loss_{batch.kind}", loss.detach())
        self.log("pretrain/loss", loss.detach(), prog_bar=True)
        self.log(f"pretrain/exact_{batch.kind}", hits.float().mean())
        return loss + 0.5 * tower_loss

    def validation_step(self, batch: CaptionBatch, batch_idx: int) -> None:
        seen, _, named = self.see(batch)
        _, hits = self.answer(batch, seen)
        self.log(f"pretrain/val_exact_{batch.kind}", hits.float().mean(), batch_size=len(hits))
        self.log(f"pretrain/val_named_{batch.kind}", named.float().mean(), batch_size=len(hits))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        parameters = list(self.parameters())
        groups = [
            {"params": [parameter for parameter in parameters if parameter.ndim >= 2], "weight_decay": 0.05},
            {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, self._rate), "interval": "step"}}

    def train_dataloader(self) -> DataLoader[CaptionBatch]:
        batches = CaptionBatches(self.folder, "train", seed=self.seed, batch_size=BATCH_SIZE, tower_steps=self.tower_steps)
        return DataLoader(batches, batch_size=None, sampler=range(self.trainer.global_step, self.num_steps))

    def val_dataloader(self) -> DataLoader[CaptionBatch]:
        kinds = [kind for kind in SKILLS for _ in range(4)]
        batches = CaptionBatches(self.folder, "validation", seed=self.seed + 1, batch_size=BATCH_SIZE, kinds=kinds)
        return DataLoader(batches, batch_size=None, sampler=range(len(kinds)))

    def transfer_batch_to_device(self, batch: CaptionBatch, device: torch.device, dataloader_idx: int) -> CaptionBatch:
        return CaptionBatch(inputs=batch.inputs.to(device), answers=batch.answers.to(device), shown=batch.shown.to(device), kind=batch.kind)

    def _rate(self, step: int) -> float:
        since = step if step < self.tower_steps else step - self.tower_steps
        if since < WARMUP_STEPS:
            return (since + 1) / WARMUP_STEPS
        if step < self.tower_steps:
            return 1.0
        done = (since - WARMUP_STEPS) / max(1, self.num_steps - self.tower_steps - WARMUP_STEPS)
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def pretrain(folder: Path, *, num_steps: int, tower_steps: int, seed: int, start: Path | None = None, stop_after: int | None = None) -> None:
    """Trains into a folder that `from_pretrained` reads; a checkpoint beside it lets an interrupted run go on.

    Args:
        folder: Made if it does not exist.
        num_steps: Length of the schedule, in optimiser steps.
        tower_steps: How many of them train the vision tower alone.
        seed: Of weights and data.
        start: A backbone to begin with, tokenizer and all, instead of random weights.
        stop_after: Stop early at this step; the next call goes on from there.
    """
    seed_everything(seed)
    if not (folder / "config.json").exists() and start is not None:
        shutil.copytree(start, folder, ignore=shutil.ignore_patterns("README.md"), dirs_exist_ok=True)
    elif not (folder / "config.json").exists():
        create_tiny_qwen3_vl(folder, tokenizer_corpus(), seed=seed)
    module = Pretraining(folder, num_steps=num_steps, tower_steps=tower_steps, seed=seed)
    checkpoints = folder.parent / f"{folder.name}-checkpoints"
    checkpoints.mkdir(exist_ok=True)
    run = RunConfig(name=folder.name, seed=seed, output_dir=str(folder.parent), tracking=TrackingConfig(experiment="pretrain"))
    trainer = Trainer(
        accelerator="auto",
        devices=1,
        max_steps=stop_after or num_steps,
        gradient_clip_val=1.0,
        val_check_interval=VALIDATE_EVERY,
        check_val_every_n_epoch=None,
        log_every_n_steps=20,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        logger=Tracking(run, checkpoints).parent,
        callbacks=[ModelCheckpoint(dirpath=checkpoints, save_last=True, every_n_train_steps=VALIDATE_EVERY, save_top_k=0)],
    )
    last = checkpoints / "last.ckpt"
    trainer.fit(module, ckpt_path=last if last.exists() else None, weights_only=True)
    if module.global_step == num_steps:
        module.causal_lm.save_pretrained(folder)
        trainer.validate(module)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's first lines."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.pretrain_backbone", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, default=Path("runs/tiny_qwen3_vl"), help="where the backbone is written")
    parser.add_argument("--steps", type=int, default=5200, help="optimiser steps of 64 examples")
    parser.add_argument("--tower-steps", type=int, default=2500, help="how many of them train the vision tower alone")
    parser.add_argument("--start", type=Path, default=None, help="a backbone to begin with, instead of random weights")
    parser.add_argument("--seed", type=int, default=0, help="of weights and data")
    options = parser.parse_args(arguments)
    pretrain(options.folder, num_steps=options.steps, tower_steps=options.tower_steps, seed=options.seed, start=options.start)


if __name__ == "__main__":
    main()
