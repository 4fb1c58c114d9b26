"""How fast training goes and how much memory it takes."""

from __future__ import annotations

import resource
import sys
import time

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.sinks import StepClock, log_metrics
from twn_lightning.batches import GateBatch, PairBatch
from twn_lightning.distributed import world_size


class Throughput(Callback):
    """Logs "throughput/pairs_per_second", "throughput/tokens_per_second" and "throughput/peak_memory_gib".

    Prompt tokens (padding left out) and reference thoughts are counted on the device, so that no step waits for it; they are read once an
    interval. Rates are of all ranks together, on the assumption that ranks have like shares. Time spent in other callbacks counts.

    Args:
        every_n_steps: Optimiser steps an interval.
    """

    def __init__(self, every_n_steps: int = 20) -> None:
        self._clock = StepClock(every_n_steps)
        self._started = 0.0
        self._num_pairs = 0
        self._num_tokens: Tensor | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._clock.start(trainer.global_step)
        self._reset()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: PairBatch | GateBatch, batch_idx: int) -> None:
        """Counts the batch; logs at the end of an interval."""
        self._num_pairs += len(batch)
        if isinstance(batch, PairBatch):
            tokens = _num_tokens(batch)
            self._num_tokens = tokens if self._num_tokens is None else self._num_tokens + tokens
        if not self._clock.is_due(trainer.global_step):
            return
        tokens_seen = 0 if self._num_tokens is None else int(self._num_tokens)
        seconds = max(time.perf_counter() - self._started, 1e-9)
        metrics = {"throughput/pairs_per_second": self._num_pairs * world_size() / seconds, "throughput/peak_memory_gib": peak_memory_gib()}
        if self._num_tokens is not None:
            metrics["throughput/tokens_per_second"] = tokens_seen * world_size() / seconds
        log_metrics(trainer, metrics)
        self._reset()

    def _reset(self) -> None:
        self._started = time.perf_counter()
        self._num_pairs = 0
        self._num_tokens = None


def peak_memory_gib() -> float:
    """Most memory in use so far, in GiB: of the GPU if there is one, else resident memory of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _num_tokens(batch: PairBatch) -> Tensor:
    masks = [batch.query.attention_mask, batch.positive.attention_mask]
    masks += [] if batch.negative is None else [batch.negative.attention_mask]
    masks += [thoughts.mask for thoughts in (batch.query_thoughts, batch.positive_thoughts) if thoughts is not None]
    return torch.stack([mask.sum() for mask in masks]).sum()
