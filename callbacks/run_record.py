"""What was run, with what, on what, and how it ended, in one file."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from twn_lightning.distributed import world_size
from twn_lightning.errors import CheckpointError
from twn_lightning.files import replacing

PACKAGES = ("torch", "torchvision", "lightning", "transformers", "peft", "tokenizers", "safetensors", "numpy", "pillow", "av", "mlflow", "deepspeed")


class RunRecord(Callback):
    """Writes ``run.json`` when a stage starts and again when it ends, is interrupted or fails.

    Args:
        path: The file; its folder is made if need be.
        config: The resolved settings, as plain values.
        seeds: Name to seed.
        commit: Of the code, "" if unknown.
        extra: Whatever else identifies the run (digest of the data, bundle it began with), as plain values.
        packages: Whose versions are recorded, where installed.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        config: Mapping[str, Any],
        seeds: Mapping[str, int],
        commit: str = "",
        extra: Mapping[str, Any] | None = None,
        packages: Sequence[str] = PACKAGES,
    ) -> None:
        self.path = Path(path)
        self.record: dict[str, Any] = {
            "status": "created",
            "config": dict(config),
            "seeds": dict(seeds),
            "commit": commit,
            **dict(extra or {}),
            "versions": versions(packages),
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
        }
        self._started = 0.0
        self._seconds_before = 0.0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes that the stage is running."""
        self._started = time.perf_counter()
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in pl_module.parameters()]
        self.record |= {
            "status": "running",
            "stage": getattr(pl_module, "stage", type(pl_module).__name__),
            "started": _now(),
            "device": device_name(pl_module.device),
            "ranks": world_size(),
            "precision": str(trainer.precision),
            "parameters": sum(size for size, _ in sizes),
            "trainable_parameters": sum(size for size, trains in sizes if trains),
        }
        self._write(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes that the stage is done, with the last metrics; also of a resumed run that has nothing left to train."""
        self._finish(trainer, "finished")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Writes how the stage ended instead."""
        if isinstance(exception, KeyboardInterrupt):
            self._finish(trainer, "interrupted")
        else:
            self._finish(trainer, "failed", error=f"{type(exception).__name__}: {exception}")

    def state_dict(self) -> dict[str, Any]:
        """Time spent so far, so that a resumed run can add to it."""
        return {"seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes the time spent before the interruption up."""
        self._seconds_before = float(state_dict["seconds"])

    def _seconds(self) -> float:
        return self._seconds_before + (time.perf_counter() - self._started if self._started else 0.0)

    def _finish(self, trainer: Trainer, status: str, *, error: str = "") -> None:
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.record |= {
            "status": status,
            "ended": _now(),
            "seconds": round(self._seconds(), 3),
            "resumed_after_seconds": round(self._seconds_before, 3),
            "steps": trainer.global_step,
            "metrics": {name: value if math.isfinite(value) else None for name, value in sorted(values.items())},
        }
        if error:
            self.record["error"] = error
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if not trainer.is_global_zero:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self.path) as temporary:
                temporary.write_text(json.dumps(self.record, indent=1, default=str) + "\n", encoding="utf-8")
        except OSError as error:
            raise CheckpointError(
                f"The run's record {self.path} cannot be written: {error.strerror or error}. Choose another output folder."
            ) from error


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Installed version of each package; those that are not installed are left out."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def device_name(device: torch.device) -> str:
    """What the device is called: the GPU's name, or the kind of processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.processor() or platform.machine()})"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
