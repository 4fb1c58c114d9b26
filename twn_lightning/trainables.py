"""What a stage trains, in one small file of tensors: the part of a checkpoint that any number of processes can go on from."""

from __future__ import annotations

import dataclasses
import json
import pickle  # noqa: TID251 - for the name of the error that weights_only raises; nothing is unpickled
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from twn_lightning.errors import CheckpointError
from twn_lightning.files import replacing

SUFFIX = ".trainables.safetensors"
_PREFIX = "model."


@dataclass(frozen=True)
class Trainables:
    """A stage's trained parameters at a step.

    Attributes:
        stage: Whose parameters, "contrastive" and so on.
        global_step: Optimiser steps done.
        sharding: How the checkpoint beside it is cut, such as "ZeRO-2 on 4 ranks"; empty for one file.
        tensors: float32, by the names of `DualLoRAModel.named_parameters`.
        loops: State of the trainer's loops, as JSON can hold it; empty where it is not known.
        callbacks: State of the callbacks by their keys, likewise.
    """

    stage: str
    global_step: int
    sharding: str
    tensors: Mapping[str, Tensor]
    loops: Mapping[str, Any] = field(default_factory=dict)
    callbacks: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: Path) -> None:
        """Writes the file in one step, so that there is the old or the new one.

        Raises:
            OSError: It cannot be written.
        """
        rest = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self) if entry.name != "tensors"}
        metadata = {name: json.dumps(value) for name, value in rest.items()}
        try:
            with replacing(path) as temporary:
                save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, str(temporary), metadata=metadata)
        except SafetensorError as error:
            raise OSError(str(error)) from error

    def put_into(self, model: nn.Module) -> None:
        """Copies the tensors into a model.

        Args:
            model: Of the shape it was trained with, its parameters whole.

        Raises:
            CheckpointError: The model has no such parameters.
        """
        own = dict(model.named_parameters())
        wrong = [name for name, tensor in self.tensors.items() if name not in own or own[name].shape != tensor.shape]
        if wrong:
            raise CheckpointError(
                f"The parameters of stage {self.stage} do not fit the model: {wrong[0]} ({len(wrong)} in all) is missing in it or has another shape. "
                "Use the model settings it was trained with."
            )
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                own[name].copy_(tensor)


def beside(checkpoint: Path) -> Path:
    """Where the trained parameters lie beside a checkpoint: ``last.trainables.safetensors`` beside ``last.ckpt``."""
    return checkpoint.with_name(checkpoint.name.removesuffix(".ckpt") + SUFFIX)


def read_trainables(path: Path) -> Trainables:
    """Trained parameters from their own file, from a checkpoint of one file, or from the file beside a sharded checkpoint.

    Args:
        path: Any of the three.

    Raises:
        CheckpointError: There is none, or it cannot be read.
    """
    if path.is_dir():
        path = beside(path)
    if not path.is_file():
        raise CheckpointError(
            f"There are no trained parameters at {path}. Give a checkpoint ({SUFFIX[1:]}, a .ckpt file, or the folder of a sharded one)."
        )
    return _read_file(path) if path.name.endswith(SUFFIX) else _read_checkpoint(path)


def _read_file(path: Path) -> Trainables:
    try:
        with safe_open(str(path), framework="pt") as file:
            rest = {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
            return Trainables(tensors={name: file.get_tensor(name) for name in file.keys()}, **rest)  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Take another checkpoint, or train the stage again.") from error


def _read_checkpoint(path: Path) -> Trainables:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, LookupError) as error:
        raise CheckpointError(f"{path} is no checkpoint: {error}. Only tensors are read, never pickled objects.") from error
    if not isinstance(content, dict) or "stage" not in content or "state_dict" not in content:
        raise CheckpointError(f"{path} is no checkpoint of a stage: it names no stage.")
    return trainables_of(content)


def trainables_of(checkpoint: Mapping[str, Any]) -> Trainables:
    """What a Lightning checkpoint of a stage holds of them.

    Args:
        checkpoint: With ``state_dict`` by the names of the LightningModule.
    """
    return Trainables(
        stage=checkpoint["stage"],
        global_step=checkpoint["global_step"],
        sharding="",
        tensors={name.removeprefix(_PREFIX): tensor.float() for name, tensor in checkpoint["state_dict"].items()},
        loops=checkpoint.get("loops", {}).get("fit_loop", {}),
        callbacks=checkpoint.get("callbacks", {}),
    )
