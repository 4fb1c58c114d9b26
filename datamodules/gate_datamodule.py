"""Self-labelled examples for the stage that trains the gate."""

from __future__ import annotations

import hashlib
import logging
import warnings

import lightning.pytorch as pl
import torch
from torch import Tensor

from datamodules.digests import text_digest
from datamodules.mixing import BatchPlan
from datamodules.steps import Batches, StepLoader, StepSampler, stage_loader
from twn_lightning.batches import GateBatch
from twn_lightning.errors import ConfigError, DataError

_log = logging.getLogger(__name__)

MIN_EXAMPLES = 2
"""One to train on, one to validate on."""


class GateBatches:
    """Batch i of a rank, half of it inputs that thinking helps, half inputs that it does not help.

    Where all examples are of one class, batches are drawn from that class alone.

    Args:
        examples: All examples, on the CPU.
        margin: Thinking helps where the gain is above this many nats; None draws from all examples alike.
        batch_size: Examples a batch and rank.
        seed: Seed of the order.
        rank: Which share of each batch.
        world_size: How many shares there are.
    """

    def __init__(self, examples: GateBatch, *, margin: float | None, batch_size: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self._examples = examples
        self._rank = rank
        self._world_size = world_size
        helps = torch.ones_like(examples.gain, dtype=torch.bool) if margin is None else examples.gain > margin
        classes = {name: mask.nonzero().flatten() for name, mask in (("helps", helps), ("does not help", ~helps))}
        self._rows = {name: rows for name, rows in classes.items() if len(rows)}
        sizes = [batch_size] if len(self._rows) == 1 else [batch_size - batch_size // 2, batch_size // 2]
        self._plans = {
            name: BatchPlan({name: len(rows)}, batch_size=size, seed=seed) for (name, rows), size in zip(self._rows.items(), sizes, strict=True)
        }

    def __call__(self, index: int) -> GateBatch:
        """The batch of a number."""
        drawn = [self._rows[name][list(plan.draw(index, rank=self._rank, world_size=self._world_size).rows)] for name, plan in self._plans.items()]
        rows = torch.cat(drawn)
        return GateBatch(state=self._examples.state[rows], gain=self._examples.gain[rows])


class GateDataModule(pl.LightningDataModule):
    """Class-balanced batches of gate examples in a seeded, resumable order, and a held-out share of them as they are.

    Args:
        state: What the gate reads, ``(N, H)``.
        gain: u_gen - u_disc in nats, ``(N,)``.
        batch_size: Examples a batch and rank, 2 or more.
        num_steps: Optimiser steps of the stage.
        seed: Seed of the split and of the order, 0 or more.
        dead_zone: Examples whose gain is closer than this to 0, in nats, are dropped and counted.
        margin: Thinking helps where the gain is above this many nats.
        validation_fraction: Share of each class that is held out, from 0 to less than 1.
        balanced: Half of each batch is of each class; False draws from all examples alike.

    Raises:
        ConfigError: A number is out of range.
        DataError: The tensors do not fit together, hold NaN, or nothing is left outside the dead zone.
    """

    def __init__(  # noqa: PLR0913 - the examples, and numbers by keyword
        self,
        state: Tensor,
        gain: Tensor,
        *,
        batch_size: int,
        num_steps: int,
        seed: int,
        dead_zone: float = 0.0,
        margin: float = 0.0,
        validation_fraction: float = 0.1,
        balanced: bool = True,
    ) -> None:
        super().__init__()
        _check_numbers(batch_size, seed, dead_zone, validation_fraction)
        _check_examples(state, gain)
        kept = gain.abs() >= dead_zone
        self.num_dropped = int((~kept).sum())
        self._margin = margin
        self._balanced = balanced
        self._batch_size = batch_size
        self._num_steps = num_steps
        self._seed = seed
        examples = GateBatch(state=state[kept].detach().cpu(), gain=gain[kept].detach().cpu())
        if len(examples) < MIN_EXAMPLES:
            raise DataError(
                f"{self.num_dropped} of {len(gain)} gate examples have a gain closer to 0 than dead_zone={dead_zone} nats, "
                f"which leaves {len(examples)}: label more pairs, or choose a smaller dead zone."
            )
        held_out = _held_out(examples.gain > margin, validation_fraction, seed)
        self.train = GateBatch(state=examples.state[~held_out], gain=examples.gain[~held_out])
        self.validation = GateBatch(state=examples.state[held_out], gain=examples.gain[held_out])
        self._num_given, self._dead_zone = len(gain), dead_zone

    def setup(self, stage: str) -> None:
        """Says what there is to learn from."""
        _log.info(
            "Gate examples: %d given, %d dropped (gain within %g nats of 0), %d to train on (thinking helps %d), %d held out.",
            self._num_given, self.num_dropped, self._dead_zone, len(self.train), self.num_helped, len(self.validation),
        )  # fmt: skip
        if self.num_helped in (0, len(self.train)):
            verdict = "no" if not self.num_helped else "every"
            _log.warning(
                "Thinking helps %s gate example: batches cannot be balanced, and the gate can only learn to answer the same always.", verdict
            )

    @property
    def num_helped(self) -> int:
        """Training examples that thinking helps."""
        return int((self.train.gain > self._margin).sum())

    def digest(self) -> str:
        """Hexadecimal digest of the training examples."""
        content = torch.cat([self.train.state.float(), self.train.gain.float()[:, None]], dim=1)
        return hashlib.blake2b(content.contiguous().numpy().tobytes(), digest_size=16).hexdigest()

    def train_dataloader(self) -> StepLoader[GateBatch]:
        """The remaining batches of the stage."""
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)
        margin = self._margin if self._balanced else None
        make = GateBatches(self.train, margin=margin, batch_size=self._batch_size, seed=self._seed, rank=rank, world_size=world_size)
        order = [self.digest(), *(str(part) for part in (self._seed, self._batch_size * world_size, margin))]
        return stage_loader(make, self.trainer, num_steps=self._num_steps, num_workers=0, fingerprint=text_digest(order))

    def val_dataloader(self) -> StepLoader[GateBatch] | list[object]:
        """The held-out examples as one batch, unbalanced, the same on every rank; an empty list (no validation) if none are held out."""
        if not len(self.validation):
            warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")  # it is meant
            return []
        return StepLoader(Batches(lambda _: self.validation, 1), StepSampler(1, lambda: 0))


def _check_numbers(batch_size: int, seed: int, dead_zone: float, validation_fraction: float) -> None:
    if batch_size < 2:
        raise ConfigError(f"batch_size is {batch_size}: a balanced batch needs one example of each class, 2 or more.")
    if seed < 0:
        raise ConfigError(f"seed is {seed}, but generators take no negative seed: choose 0 or more.")
    if not dead_zone >= 0:
        raise ConfigError(f"dead_zone is {dead_zone}, but it is a distance from 0 in nats: choose 0 (drop nothing) or more.")
    if not 0 <= validation_fraction < 1:
        raise ConfigError(f"validation_fraction is {validation_fraction}, but it is the held-out share: choose 0 or more, and less than 1.")


def _check_examples(state: Tensor, gain: Tensor) -> None:
    if state.ndim != 2 or gain.shape != state.shape[:1]:
        raise DataError(
            f"Gate examples have states of shape {tuple(state.shape)} and gains of shape {tuple(gain.shape)}: (N, H) and (N,) are needed."
        )
    broken = int((~(torch.isfinite(gain) & torch.isfinite(state).all(dim=1))).sum())
    if broken:
        raise DataError(f"{broken} of {len(gain)} gate examples hold NaN or infinity: the model that made them is broken; check its stage 2 losses.")


def _held_out(helps: Tensor, fraction: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(helps), dtype=torch.bool)
    for rows in (helps.nonzero().flatten(), (~helps).nonzero().flatten()):
        held_out[rows[torch.randperm(len(rows), generator=generator)[: min(round(fraction * len(rows)), max(0, len(rows) - 1))]]] = True
    return held_out
