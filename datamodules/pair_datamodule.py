"""Pairs for the stages that read pairs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import lightning.pytorch as pl

from datamodules.collate import PairCollator
from datamodules.digests import text_digest
from datamodules.mixing import BatchPlan
from datamodules.pair_source import PairSource
from datamodules.row_source import RowSource
from datamodules.steps import Batches, StepLoader, StepSampler, stage_loader
from twn_lightning.batches import PairBatch
from twn_lightning.errors import ConfigError, DataError

if TYPE_CHECKING:
    from twn_lightning.models.backbones.base import Processor

_log = logging.getLogger(__name__)

_VALIDATION_SEED = 0


class PairBatches:
    """Batch i of a rank, made of several sources.

    Args:
        sources: The sources, by name.
        plan: Which rows a batch is made of.
        collator: Makes the batch of its pairs.
        rank: Which share of each batch.
        world_size: How many shares there are.
        repeat: How often each batch is given in a row.
    """

    def __init__(
        self, sources: Mapping[str, PairSource], plan: BatchPlan, collator: PairCollator, *, rank: int = 0, world_size: int = 1, repeat: int = 1
    ) -> None:
        self._sources = dict(sources)
        self._plan = plan
        self._collator = collator
        self._rank = rank
        self._world_size = world_size
        self._repeat = repeat

    def __call__(self, index: int) -> PairBatch:
        """The batch of a number.

        Of a source that skips faulty rows, the next usable row stands in also for one whose fault shows only now, such as its length in tokens.

        Raises:
            DataError: A row cannot be used.
        """
        draw = self._plan.draw(index // self._repeat, rank=self._rank, world_size=self._world_size)
        source = self._sources[draw.source]
        pairs = [source[row] for row in draw.rows]
        try:
            return self._collator(pairs)
        except DataError:
            if not (isinstance(source, RowSource) and source.on_error == "skip"):
                raise
        return self._collator([source.usable(row, lambda pair: self._collator([pair])) for row in draw.rows])


class PairDataModule(pl.LightningDataModule):
    """Same-source batches of pairs, in an order that depends on the seed alone.

    The order is the same for any number of workers and after any interruption: training goes on at ``global_step * accumulate_grad_batches``.

    Args:
        sources: What to train on; names must differ.
        processor: Turns items into prompts.
        batch_size: Pairs a batch and rank.
        num_steps: Optimiser steps of the stage.
        seed: Seed of the order, 0 or more.
        weights: Relative share of batches by source name; 1 where none is given, 0 leaves a source out.
        with_cot: Also give reference chains of thought.
        max_negatives: Hard negatives taken of each pair.
        repeat: How often each batch is given in a row (inner epochs of GRPO); each time counts as a batch.
        num_workers: Processes that load data; 0 loads in the training process.
        validation_sources: What to validate on; empty for no validation.
        num_validation_batches: Batches of a validation, spread evenly over its sources and always the same.

    Raises:
        ConfigError: A number is out of range, or a weight names no source.
        DataError: There is no source, or one has no rows, or two have one name.
    """

    def __init__(  # noqa: PLR0913 - all by keyword, and a settings object would only say them twice
        self,
        sources: Sequence[PairSource] | Mapping[str, PairSource],
        processor: Processor,
        *,
        batch_size: int,
        num_steps: int,
        seed: int,
        weights: Mapping[str, float] | None = None,
        with_cot: bool = False,
        max_negatives: int = 0,
        repeat: int = 1,
        num_workers: int = 0,
        validation_sources: Sequence[PairSource] | Mapping[str, PairSource] = (),
        num_validation_batches: int = 8,
    ) -> None:
        super().__init__()
        if repeat < 1:
            raise ConfigError(f"repeat is {repeat}, but it says how often each batch is given in a row: choose 1 or more.")
        if num_validation_batches < 1:
            raise ConfigError(f"num_validation_batches is {num_validation_batches}: choose 1 or more, or no validation_sources for no validation.")
        self._sources = by_name(sources)
        self._validation = by_name(validation_sources)
        self._plan = _plan(self._sources, weights, batch_size=batch_size, seed=seed)
        self._validation_plan = _plan(self._validation, None, batch_size=batch_size, seed=_VALIDATION_SEED) if self._validation else None
        self._collator = PairCollator(processor, with_cot=with_cot, max_negatives=max_negatives)
        self._weights = dict(weights or {})
        self._batch_size = batch_size
        self._num_steps = num_steps
        self._repeat = repeat
        self._num_workers = num_workers
        self._num_validation_batches = num_validation_batches

    @property
    def sources(self) -> Mapping[str, PairSource]:
        """The training sources, by name."""
        return self._sources

    def digest(self) -> str:
        """Hexadecimal digest of the training data and their weights."""
        parts = [f"{name}\0{self._weights.get(name, 1.0)}\0{self._sources[name].digest()}" for name in sorted(self._sources)]
        return text_digest(parts)

    def train_dataloader(self) -> StepLoader[PairBatch]:
        """The remaining batches of the stage."""
        rank, world_size = self._place()
        for name, source in self._sources.items():
            if len(source) < self._batch_size * world_size and self._weights.get(name, 1.0):
                _log.warning(
                    "Source %r has %d rows, fewer than a batch of %d on %d rank(s): rows come twice in it (they are not each other's negatives).",
                    name, len(source), self._batch_size, world_size,
                )  # fmt: skip
        order = [self.digest(), *(str(part) for part in (self._plan.seed, self._batch_size * world_size, self._repeat))]
        return stage_loader(
            PairBatches(self._sources, self._plan, self._collator, rank=rank, world_size=world_size, repeat=self._repeat),
            self.trainer,
            num_steps=self._num_steps,
            num_workers=self._num_workers,
            fingerprint=text_digest(order),
        )

    def val_dataloader(self) -> StepLoader[PairBatch] | list[object]:
        """The same few batches each time; an empty list without validation sources, which Lightning takes for no validation."""
        if self._validation_plan is None:
            warnings.filterwarnings("ignore", message="Total length of `list` across ranks is zero")  # it is meant
            return []
        rank, world_size = self._place()
        batches = Batches(
            PairBatches(self._validation, self._validation_plan, self._collator, rank=rank, world_size=world_size), self._num_validation_batches
        )
        return StepLoader(batches, StepSampler(self._num_validation_batches, lambda: 0), num_workers=self._num_workers)

    def teardown(self, stage: str) -> None:
        """Says how many rows of each source could not be used or were mended; on several ranks each speaks of the rows it asked for."""
        rank, world_size = self._place()
        for source in self._sources.values():
            if isinstance(source, RowSource):
                for sentence in source.report():
                    _log.log(logging.WARNING if source.faults() else logging.INFO, "%s%s", f"Rank {rank}: " if world_size > 1 else "", sentence)

    def _place(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)


def by_name(sources: Sequence[PairSource] | Mapping[str, PairSource]) -> dict[str, PairSource]:
    """The sources by their own names.

    Raises:
        DataError: Two have the same name.
    """
    named: dict[str, PairSource] = {}
    for source in sources.values() if isinstance(sources, Mapping) else sources:
        if source.name in named:
            raise DataError(f"Two data sources are named {source.name!r}: give one of them another name.")
        named[source.name] = source
    return named


def _plan(sources: Mapping[str, PairSource], weights: Mapping[str, float] | None, *, batch_size: int, seed: int) -> BatchPlan:
    return BatchPlan({name: len(source) for name, source in sources.items()}, weights, batch_size=batch_size, seed=seed)
