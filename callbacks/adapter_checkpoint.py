"""Checkpoints of what a stage trains: the last one to resume from, and the best ones."""

from __future__ import annotations

import logging
import os
import shutil
import time
import uuid
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.sinks import StepClock
from twn_lightning.distributed import full_parameters, world_size
from twn_lightning.errors import CheckpointError, ConfigError
from twn_lightning.stages.base import StageModule
from twn_lightning.trainables import Trainables, beside, read_trainables

log = logging.getLogger(__name__)

LAST = "last.ckpt"


class AdapterCheckpoint(Callback):
    """Saves trainable parameters, optimiser, schedule, loops and data position; a file is either whole or not there.

    ``last.ckpt`` is written every so many steps, every so many seconds, at the end, and when training is interrupted or fails.
    ``step=<n>.ckpt`` are the best by a metric, compared at each periodic save and at the end, if the metric (of rank 0) has a new value.
    Put this callback behind those that log the metric. Under DeepSpeed a checkpoint is a folder with every rank's share, which only as many ranks
    can go on from; beside it lies the small ``last.trainables.safetensors`` (`Trainables`) for everything else.

    Args:
        folder: Where the files go; made if need be.
        every_n_steps: Optimiser steps between two saves; 0 for none.
        every_n_seconds: Also save when this much time has passed since the last save; None for not.
        monitor: Name of the metric that ranks the best; None keeps only the last.
        mode: Whether a larger or a smaller value is better.
        top_k: How many of the best are kept.

    Raises:
        ConfigError: A number is out of range.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        every_n_steps: int = 50,
        every_n_seconds: float | None = None,
        monitor: str | None = None,
        mode: Literal["max", "min"] = "max",
        top_k: int = 1,
    ) -> None:
        if every_n_steps < 0 or top_k < 0 or (every_n_seconds is not None and every_n_seconds <= 0):
            raise ConfigError(
                f"every_n_steps ({every_n_steps}) and top_k ({top_k}) are counts, and every_n_seconds ({every_n_seconds}) is a time above 0."
            )
        if mode not in ("max", "min"):
            raise ConfigError(f"mode is {mode!r}, but it says whether the largest (max) or the smallest (min) {monitor} is best.")
        self.folder = Path(folder)
        self.every_n_seconds = every_n_seconds
        self.monitor = monitor
        self.mode = mode
        self.top_k = top_k
        self.best: dict[str, float] = {}
        """File name of each kept best checkpoint to its value, best first."""
        self._clock = StepClock(every_n_steps)
        self._saved_at = 0.0
        self._saved_step = -1
        self._seen: float | None = None

    @property
    def last_path(self) -> Path:
        """The checkpoint to resume from; it exists once something was saved."""
        return self.folder / LAST

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds out before training whether the folder can be written.

        Raises:
            CheckpointError: It cannot.
        """
        if stage == "fit" and trainer.is_global_zero:
            ensure_writable(self.folder)
            for left_over in self.folder.glob(".*.part"):  # of a process that was killed while it saved
                _remove(left_over)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clocks."""
        self._clock.start(trainer.global_step)
        self._saved_at = time.monotonic()
        self._saved_step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int) -> None:
        """Saves if it is time to."""
        if trainer.global_step == self._saved_step:
            return
        if self._clock.is_due(trainer.global_step):
            self._save_best(trainer)
            self.save_last(trainer)
        elif self._is_late(trainer):
            self.save_last(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the end."""
        if self._save_best(trainer) or trainer.global_step != self._saved_step:
            self.save_last(trainer)
        if self.monitor is not None and self._seen is None:
            log.warning(
                "Nothing logged %r, so no best checkpoint was kept. Logged were: %s.", self.monitor, ", ".join(sorted(trainer.callback_metrics))
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Saves what an interruption would lose; not after a failure on one of several ranks, which the others would wait for."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.global_step == self._saved_step or self._saved_step < 0:
            return
        if world_size() > 1:  # ranks are stopped at different points, and to save takes all of them
            log.warning("Training ended on one of several ranks; %s stays as it was saved at step %d.", self.last_path, self._saved_step)
        elif not _is_finite(pl_module):
            log.warning("Parameters are not finite; %s stays as it was saved at step %d.", self.last_path, self._saved_step)
        else:
            self.save_last(trainer)

    def save_last(self, trainer: Trainer) -> None:
        """Replaces ``last.ckpt``; all ranks must call it."""
        try:
            self._save(trainer, self.last_path)
        except KeyboardInterrupt:
            raise  # not saved: `on_exception` does it again
        except BaseException:
            self._saved_step = trainer.global_step  # a disk that is full is full for `on_exception`, too
            raise
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        """Which checkpoints are the best, for a resumed run."""
        return {"best": dict(self.best), "seen": self._seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the best checkpoints that are still there."""
        self.best = {name: value for name, value in state_dict["best"].items() if (self.folder / name).exists()}
        self._seen = state_dict["seen"]

    def _is_late(self, trainer: Trainer) -> bool:
        if self.every_n_seconds is None:
            return False
        return trainer.strategy.reduce_boolean_decision(time.monotonic() - self._saved_at >= self.every_n_seconds, all=False)

    def _save_best(self, trainer: Trainer) -> bool:
        """Whether there was a new value."""
        if self.monitor is None or self.top_k == 0:
            return False
        own = trainer.callback_metrics.get(self.monitor)
        value: float | None = trainer.strategy.broadcast(None if own is None else float(own))  # ranks must agree on whether to save
        if value is None or value == self._seen:
            return False  # an equal value is most often the same measurement, and if not, it is no better
        self._seen = value
        name = f"step={trainer.global_step:06d}.ckpt"
        ranked = sorted([*self.best.items(), (name, self._seen)], key=lambda pair: pair[1], reverse=self.mode == "max")
        self.best = dict(ranked[: self.top_k])
        if name in self.best:
            self._save(trainer, self.folder / name)
        for dropped, _ in ranked[self.top_k :]:
            if dropped != name and trainer.is_global_zero:
                _remove(self.folder / dropped)
                _remove(beside(self.folder / dropped))
        return True

    def _save(self, trainer: Trainer, path: Path) -> None:
        # The name must be the same on all ranks, and no reader takes it for a checkpoint.
        temporary = path.with_name(f".{path.name}.{trainer.strategy.broadcast(uuid.uuid4().hex[:8])}.part")
        try:
            trainer.save_checkpoint(temporary, weights_only=False)  # the optimiser as well
            small = _trainables(trainer) if isinstance(trainer.strategy, DeepSpeedStrategy) else None
            if trainer.is_global_zero:
                replace_checkpoint(temporary, path)
                if small is not None:
                    small.save(beside(path))
        except OSError as error:
            raise CheckpointError(
                f"The checkpoint {path} cannot be written: {error}. Make room or choose another folder; an earlier {path.name} is untouched."
            ) from error
        finally:
            if trainer.is_global_zero:
                _remove(temporary)


def _sharding(trainer: Trainer) -> str:
    """How the trainer cuts its checkpoints; empty for one file."""
    strategy = trainer.strategy
    if not isinstance(strategy, DeepSpeedStrategy):
        return ""
    assert isinstance(strategy.config, dict)
    return f"ZeRO-{strategy.config['zero_optimization']['stage']} on {trainer.world_size} ranks"


def _trainables(trainer: Trainer) -> Trainables:
    """What is trained, gathered from all ranks, which must all call this."""
    stage = trainer.lightning_module
    assert isinstance(stage, StageModule)
    return Trainables(
        stage=stage.stage,
        global_step=trainer.global_step,
        sharding=_sharding(trainer),
        tensors=full_parameters(stage.model),
        loops=trainer.fit_loop.state_dict(),
        callbacks={callback.state_key: state for callback in trainer.callbacks if (state := callback.state_dict())},  # type: ignore[attr-defined]
    )


def can_resume(trainer: Trainer, checkpoint: Path) -> bool:
    """Whether the trainer can go on from all of a checkpoint; if it is cut in another way than the trainer's own, says what is lost.

    Args:
        trainer: Has not begun yet.
        checkpoint: A file, or the folder of a sharded one.

    Raises:
        CheckpointError: Nothing says how the folder is cut.
    """
    theirs, own = read_trainables(checkpoint).sharding if checkpoint.is_dir() else "", _sharding(trainer)
    if theirs != own:
        log.warning(
            "%s is of %s, and training goes on with %s: parameters, step, schedule and the place in the data are taken over; the optimiser's moments "
            "start anew. The order of the data stays the same if batch size times ranks does.",
            checkpoint, theirs or "one file", own or "one file",
        )  # fmt: skip
    return theirs == own


def resume_from(trainer: Trainer, stage: StageModule[Any], trainables: Trainables) -> None:
    """Lets a stage go on from trained parameters alone; the optimiser's moments start anew.

    Args:
        trainer: Has not begun yet; gets the loops' and callbacks' state.
        stage: Its model, still whole, gets the parameters.
        trainables: Of the same stage.

    Raises:
        CheckpointError: They are of another stage or model.
    """
    if trainables.stage != stage.stage:
        raise CheckpointError(
            f"The checkpoint is of the stage {trainables.stage!r} and cannot resume {stage.stage!r}: give the folder of that stage."
        )
    trainables.put_into(stage.model)
    trainer.fit_loop.load_state_dict(dict(trainables.loops))
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if callback.state_key in trainables.callbacks:
            callback.load_state_dict(trainables.callbacks[callback.state_key])


def ensure_writable(folder: Path) -> None:
    """Makes a folder and writes to it for a test.

    Raises:
        CheckpointError: Naming the folder, what the system says, and the way out.
    """
    probe = folder / f".probe-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise CheckpointError(
            f"Checkpoints cannot be written to {folder}: {error.strerror or error}. Choose another output folder, or make this one writable."
        ) from error


def replace_checkpoint(temporary: Path, path: Path) -> None:
    """Renames in one step. A sharded checkpoint is a folder and can only take an absent one's place, so the old one steps aside first."""
    if temporary.is_dir() and path.exists():
        old = path.with_name(f".{path.name}.old")
        _remove(old)
        path.rename(old)
        temporary.rename(path)
        _remove(old)
        return
    if temporary.is_file():
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
    temporary.replace(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _is_finite(module: LightningModule) -> bool:
    return all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters() if parameter.requires_grad)
