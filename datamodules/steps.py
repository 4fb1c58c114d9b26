"""Loaders whose batch number i is always the same batch: whoever loads it, and however often training was interrupted before."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import lightning.pytorch as pl
from torch.utils.data import DataLoader, Dataset, DistributedSampler, get_worker_info

from twn_lightning.errors import ConfigError, TwnError

_log = logging.getLogger(__name__)

BatchT = TypeVar("BatchT")


@dataclass(frozen=True)
class _Failure:
    """What a loading process sends in place of a batch that it cannot make."""

    error: TwnError


class Batches(Dataset[BatchT], Generic[BatchT]):
    """Whole batches by number, so that the process that loads a batch does not matter.

    Args:
        make: Gives a batch; called in the loading processes.
        length: How many there are.
    """

    def __init__(self, make: Callable[[int], BatchT], length: int) -> None:
        self._make = make
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> BatchT:
        if get_worker_info() is None:
            return self._make(index)
        try:
            return self._make(index)
        except TwnError as error:
            return _Failure(error)  # type: ignore[return-value]  # `StepLoader` raises it; torch would wrap it into another traceback


class StepSampler(DistributedSampler[object]):
    """Batch numbers from where training stands to the end of the epoch.

    Its length is that of the whole epoch: Lightning counts the batches that were seen before an interruption towards it. It is a `DistributedSampler`
    because Lightning replaces any other on several ranks; the ranks' shares are cut where the rows of a batch are drawn.

    Args:
        length: Batches an epoch.
        start: Number of the first batch, asked when an iteration begins.
    """

    def __init__(self, length: int, start: Callable[[], int]) -> None:
        super().__init__(range(length), num_replicas=1, rank=0, shuffle=False)  # type: ignore[arg-type]
        self._length = length
        self._start = start

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[int]:
        start = self._start()
        return iter(range(start, (start // self._length + 1) * self._length))


class StepLoader(DataLoader[BatchT]):
    """A loader that Lightning recognises as resumable, and that notices when it goes on with other data.

    Args:
        batches: The batches.
        sampler: Their numbers.
        num_workers: Processes that make batches; 0 makes them in the training process. The order does not depend on it.
        fingerprint: Stands for the data and their order; saved in checkpoints.
    """

    def __init__(self, batches: Batches[BatchT], sampler: StepSampler, *, num_workers: int = 0, fingerprint: str = "") -> None:
        super().__init__(batches, batch_size=None, sampler=sampler, num_workers=num_workers)
        self._fingerprint = fingerprint

    def __iter__(self) -> Iterator[BatchT]:  # type: ignore[override]
        """The batches.

        Raises:
            TwnError: A batch cannot be made, in whichever process.
        """
        batches = super().__iter__()
        return batches if not self.num_workers else _unless_failed(batches)

    def state_dict(self) -> dict[str, str]:
        """What the order depends on. Where it stands follows from the trainer's step."""
        return {"fingerprint": self._fingerprint}

    def load_state_dict(self, state: dict[str, str]) -> None:
        """Warns if the checkpoint was trained on other data or in another order."""
        if state.get("fingerprint", "") != self._fingerprint:
            _log.warning(
                "Training goes on with other data than the checkpoint was made with (sources, weights, batch size, ranks or seed have changed): "
                "the order of batches is a new one from here."
            )


def _unless_failed(batches: Iterator[BatchT]) -> Iterator[BatchT]:
    for batch in batches:
        if isinstance(batch, _Failure):
            raise batch.error
        yield batch


def stage_loader(
    make: Callable[[int], BatchT], trainer: pl.Trainer | None, *, num_steps: int, num_workers: int, fingerprint: str
) -> StepLoader[BatchT]:
    """The training loader of a stage; goes on where the trainer's checkpoint ends.

    Args:
        make: Gives the batch of a number.
        trainer: Whose step says where to begin, and how many batches an optimiser step takes; None begins at 0, with one.
        num_steps: Optimiser steps of the stage.
        num_workers: Processes that make batches.
        fingerprint: Stands for the data and their order.

    Raises:
        ConfigError: A number is out of range.
    """
    if num_steps < 1:
        raise ConfigError(f"num_steps is {num_steps}, but it counts optimiser steps: choose 1 or more.")
    if num_workers < 0:
        raise ConfigError(f"num_workers is {num_workers}, but it counts processes: choose 0 to load in the training process.")
    accumulate = trainer.accumulate_grad_batches if trainer is not None else 1
    length = num_steps * accumulate

    def start() -> int:
        return trainer.global_step * accumulate if trainer is not None else 0

    if trainer is not None:
        _rewind_to_last_step(trainer, start() % length, length)
    return StepLoader(Batches(make, length), StepSampler(length, start), num_workers=num_workers, fingerprint=fingerprint)


def _rewind_to_last_step(trainer: pl.Trainer, done: int, length: int) -> None:
    """Lets Lightning count the epoch's batches from the last optimiser step.

    An interruption between two optimiser steps loses the gradients accumulated so far. Lightning would count the batches behind them as done,
    and the next steps would take other batches together than an uninterrupted run.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress
    state = progress.state_dict()
    total: dict[str, int] = state["total"]
    current: dict[str, int] = state["current"]
    saved_in_batch_end = total["ready"] == total["started"] == total["processed"] == total["completed"] + 1  # Lightning itself adds that batch
    counted = current["processed"] if saved_in_batch_end else current["completed"]
    if counted % length == done:
        return
    before = total["ready"] - current["ready"]
    progress.load_state_dict(
        {"total": dict.fromkeys(total, before + done), "current": dict.fromkeys(current, done), "is_last_batch": False},
    )
