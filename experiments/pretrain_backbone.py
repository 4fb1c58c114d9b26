"""Trains the tiny Qwen3-VL backbone that ships with the project, from scratch, on MMEB-mini's training split.

    python -m experiments.pretrain_backbone                                  # 6,000 steps; an hour or two on two cores
    python -m experiments.pretrain_backbone --steps 100 --folder runs/try    # to see it work

Needs the `mini` extra. Interrupted and started again with the same folder, it goes on. The curve is in MLflow, experiment
"pretrain"; with it, every 500 steps, the share of validation examples answered without a mistake, by kind.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads cost a tiny model most of its time

import torch  # noqa: E402

from twn_lightning.torchvision_compat import ensure_torchvision  # noqa: E402

ensure_torchvision()

import numpy as np  # noqa: E402
from lightning.pytorch import LightningModule, Trainer, seed_everything  # noqa: E402
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402

from datamodules.mini.splits import Split  # noqa: E402
from experiments.pretrain_corpus import KINDS, tokenizer_corpus  # noqa: E402
from twn_lightning.batches import Inputs, Thoughts  # noqa: E402
from twn_lightning.models.backbones import load_backbone, load_processor  # noqa: E402
from twn_lightning.models.backbones.base import ProcessorOptions  # noqa: E402
from twn_lightning.models.backbones.tiny_qwen3_vl import create_tiny_qwen3_vl  # noqa: E402

log = logging.getLogger(__name__)

BATCH_SIZE = 64
LEARNING_RATE = 2e-3
WARMUP_STEPS = 200
VALIDATE_EVERY = 500
OPTIONS = ProcessorOptions(num_frames=4, video_timestamps=False)


class CaptionBatch(NamedTuple):
    """Prompts and their answers, of one kind."""

    inputs: Inputs
    answers: Thoughts
    kind: str


class CaptionBatches(Dataset[CaptionBatch]):
    """Batch i of a split is a function of the seed and i alone, so that a resumed run sees what an uninterrupted one would."""

    def __init__(self, folder: Path, split: Split, *, seed: int, kinds: Sequence[str] = (), batch_size: int = BATCH_SIZE) -> None:
        self.processor = load_processor(folder, options=OPTIONS)
        self.split, self.seed, self.kinds, self.batch_size = split, seed, kinds, batch_size

    def __getitem__(self, index: int) -> CaptionBatch:
        rng = np.random.default_rng((self.seed, index))
        shares = np.array([share for share, _ in KINDS.values()])
        kind = self.kinds[index] if self.kinds else str(rng.choice(list(KINDS), p=shares / shares.sum()))
        examples = [KINDS[kind][1](self.split, rng) for _ in range(self.batch_size)]
        return CaptionBatch(
            inputs=self.processor.inputs([item for item, _ in examples]),
            answers=self.processor.thoughts([answer for _, answer in examples]),
            kind=kind,
        )


class Pretraining(LightningModule):
    """Next-token prediction of the answers, all parameters of the backbone trained."""

    def __init__(self, folder: Path, *, num_steps: int, seed: int) -> None:
        super().__init__()
        self.causal_lm = load_backbone(folder, options=OPTIONS).model.requires_grad_(True)
        self.folder, self.num_steps, self.seed = folder, num_steps, seed

    def loss_and_hits(self, batch: CaptionBatch) -> tuple[Tensor, Tensor]:
        """Mean cross-entropy in nats of the answers' tokens, and which answers are right to the last token, ``(B,)``."""
        answers, inputs = batch.answers, batch.inputs
        width = answers.token_ids.shape[1]
        output = self.causal_lm(
            input_ids=torch.cat([inputs.input_ids, answers.token_ids], dim=1),
            attention_mask=torch.cat([inputs.attention_mask, answers.mask], dim=1),
            mm_token_type_ids=torch.cat([inputs.mm_token_type_ids, torch.zeros_like(answers.token_ids)], dim=1),
            pixel_values=inputs.pixel_values,
            image_grid_thw=inputs.image_grid_thw,
            pixel_values_videos=inputs.pixel_values_videos,
            video_grid_thw=inputs.video_grid_thw,
            logits_to_keep=width,
            use_cache=False,
        )
        logits, targets, mask = output.logits[:, :-1].float(), answers.token_ids[:, 1:], answers.mask[:, 1:].bool()
        loss = torch.nn.functional.cross_entropy(logits[mask], targets[mask])
        hits = ((logits.argmax(dim=-1) == targets) | ~mask).all(dim=1)
        return loss, hits

    def training_step(self, batch: CaptionBatch, batch_idx: int) -> Tensor:
        loss, hits = self.loss_and_hits(batch)
        self.log(f"pretrain/loss_{batch.kind}", loss.detach())
        self.log("pretrain/loss", loss.detach(), prog_bar=True)
        self.log(f"pretrain/exact_{batch.kind}", hits.float().mean())
        return loss

    def validation_step(self, batch: CaptionBatch, batch_idx: int) -> None:
        _, hits = self.loss_and_hits(batch)
        self.log(f"pretrain/val_exact_{batch.kind}", hits.float().mean(), batch_size=len(hits), add_dataloader_idx=False)

    def configure_optimizers(self) -> dict[str, object]:
        decayed = [parameter for parameter in self.causal_lm.parameters() if parameter.ndim >= 2]
        plain = [parameter for parameter in self.causal_lm.parameters() if parameter.ndim < 2]
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.98))
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def train_dataloader(self) -> DataLoader[CaptionBatch]:
        batches = CaptionBatches(self.folder, "train", seed=self.seed)
        return DataLoader(batches, batch_size=None, sampler=range(self.trainer.global_step, self.num_steps))

    def val_dataloader(self) -> DataLoader[CaptionBatch]:
        kinds = [kind for kind in KINDS for _ in range(2)]
        batches = CaptionBatches(self.folder, "validation", seed=self.seed + 1, kinds=kinds)
        return DataLoader(batches, batch_size=None, sampler=range(len(kinds)))

    def transfer_batch_to_device(self, batch: CaptionBatch, device: torch.device, dataloader_idx: int) -> CaptionBatch:
        return CaptionBatch(inputs=batch.inputs.to(device), answers=batch.answers.to(device), kind=batch.kind)

    def _rate(self, step: int) -> float:
        if step < WARMUP_STEPS:
            return (step + 1) / WARMUP_STEPS
        done = (step - WARMUP_STEPS) / max(1, self.num_steps - WARMUP_STEPS)
        return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def pretrain(folder: Path, *, num_steps: int, seed: int) -> None:
    """Trains into a folder that `from_pretrained` reads; a checkpoint beside it lets an interrupted run go on."""
    from experiments.tracking import make_logger

    seed_everything(seed)
    if not (folder / "config.json").exists():
        create_tiny_qwen3_vl(folder, tokenizer_corpus(), seed=seed)
    module = Pretraining(folder, num_steps=num_steps, seed=seed)
    checkpoints = folder.parent / f"{folder.name}-checkpoints"
    trainer = Trainer(
        accelerator="auto",
        devices=1,
        max_steps=num_steps,
        gradient_clip_val=1.0,
        val_check_interval=VALIDATE_EVERY,
        check_val_every_n_epoch=None,
        log_every_n_steps=20,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        logger=make_logger("pretrain", folder.name),
        callbacks=[ModelCheckpoint(dirpath=checkpoints, save_last=True, every_n_train_steps=VALIDATE_EVERY, save_top_k=0)],
    )
    last = checkpoints / "last.ckpt"
    trainer.fit(module, ckpt_path=last if last.exists() else None, weights_only=True)
    module.causal_lm.save_pretrained(folder)
    trainer.validate(module)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's first lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/tiny_qwen3_vl"), help="where the backbone is written")
    parser.add_argument("--steps", type=int, default=6000, help="optimiser steps of 64 examples")
    parser.add_argument("--seed", type=int, default=0, help="of weights and data")
    options = parser.parse_args(arguments)
    pretrain(options.folder, num_steps=options.steps, seed=options.seed)


if __name__ == "__main__":
    main()
