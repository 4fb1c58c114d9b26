"""Opening the files of a bundle, ours or the published ones: adapter settings, tensors, the gate and the queries under other names.

What the shapes tell is understood; what they don't is named. Nothing is unpickled.
"""

from __future__ import annotations

import dataclasses
import pickle  # noqa: TID251 - for the name of the error that weights_only raises; nothing is unpickled
import re
from collections.abc import Mapping
from pathlib import Path

import torch

import twn_lightning.models  # noqa: F401  (first: it prepares the import of torchvision, on which peft depends)

# isort: split
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from twn_lightning.errors import CheckpointError
from twn_lightning.models.adapters import LoraSpec

_READ = {"r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "init_lora_weights"}
"""Settings of an adapter that are used, or that its tensors' names tell again."""
_OF_TRAINING = {
    "peft_version",
    "base_model_name_or_path",
    "revision",
    "inference_mode",
    "task_type",
    "auto_mapping",
    "runtime_config",
    "megatron_core",
}
"""Settings that say nothing of what the adapter computes."""
_STARTS = (True, False, "gaussian", "orthogonal", "eva")
"""Ways of drawing an adapter's first weights that leave the backbone's as they are."""


def read_spec(folder: Path) -> LoraSpec:
    """Rank, scale and targets of the adapter in a PEFT folder.

    Raises:
        CheckpointError: It is none, or does more than a plain LoRA adapter.
    """
    if (folder / "adapter_model.bin").is_file() and not (folder / "adapter_model.safetensors").is_file():
        raise CheckpointError(f"{folder} holds pickled weights (adapter_model.bin), which are not read: save the adapter as safetensors.")
    try:
        config = LoraConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder} is no folder of a PEFT adapter: {error}") from error
    if not isinstance(config, LoraConfig):
        raise CheckpointError(f"{folder} holds a {type(config).__name__}; only LoRA adapters are read.")
    plain = LoraConfig(peft_type=config.peft_type)
    names = [field.name for field in dataclasses.fields(LoraConfig) if field.name not in _READ | _OF_TRAINING]
    more = [name for name in names if (getattr(config, name) or None) != (getattr(plain, name) or None)]
    more += [] if config.init_lora_weights in _STARTS else ["init_lora_weights"]
    if more:
        said = ", ".join(f"{name}={getattr(config, name)!r}" for name in more)
        raise CheckpointError(f"The adapter in {folder} has {said}, which is more than a plain LoRA adapter: merge it, or train it again without.")
    targets = config.target_modules
    if not targets:
        raise CheckpointError(f"{folder / 'adapter_config.json'} names no target_modules: say which projections the adapter is for.")
    names = list(_names(targets)) if isinstance(targets, str) else sorted(targets)
    return LoraSpec(rank=config.r, alpha=config.lora_alpha, dropout=config.lora_dropout, target_modules=tuple(names))


def _names(regex: str) -> tuple[str, ...]:
    """The projections in a pattern of `Backbone.lora_targets`; any other pattern as it is."""
    found = re.search(r"\\\.\(\?:([\w|]+)\)$", regex)
    return tuple(found.group(1).split("|")) if found else (regex,)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file.

    Raises:
        CheckpointError: It cannot be read.
    """
    try:
        return load_file(str(path))
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}. Write the bundle again, or copy it again.") from error


def read_queries(path: Path) -> Tensor:
    """The queries, float32 ``(K, H)``, whatever their name; a leading axis of length 1 is left out.

    Raises:
        CheckpointError: It is no file of one such tensor.
    """
    tensors = list(_read_tensors(path).values())
    first = tensors[0] if tensors else torch.empty(0)
    if len(tensors) != 1 or not (first.dim() == 2 or (first.dim() == 3 and first.shape[0] == 1)):
        shapes = [tuple(tensor.shape) for tensor in tensors]
        raise CheckpointError(f"{path} must hold one tensor (queries, width) or (1, queries, width); it holds shapes {shapes}.")
    return first.detach().reshape(-1, first.shape[-1]).float()


def read_gate(path: Path) -> dict[str, Tensor]:
    """The gate's two layers as "0.weight", "0.bias", "2.weight", "2.bias", float32, whatever their names; layers without biases have biases of 0.

    The file does not tell what lies between the layers: they are run as `RoutingGate` does, on normalised states, with a GELU between.

    Raises:
        CheckpointError: It holds something else than two layers that end in one number.
    """
    tensors = {key: tensor.detach().float() for key, tensor in _read_tensors(path).items()}
    layers = sorted({key.rpartition(".")[0] for key in tensors}, key=_natural)
    weights = [tensors.get(f"{layer}.weight" if layer else "weight", torch.empty(0)) for layer in layers]
    known = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    if len(weights) == 2 and weights[0].shape[:1] == (1,) and weights[1].shape[:1] != (1,):
        layers, weights = layers[::-1], weights[::-1]  # named against their order
    fits = len(weights) == 2 and all(weight.dim() == 2 for weight in weights) and tuple(weights[1].shape) == (1, weights[0].shape[0])
    num_biases = sum(f"{layer}.bias" in tensors for layer in layers)
    if not fits or not set(tensors) <= known or num_biases == 1:
        held = ", ".join(f"{key} {tuple(tensor.shape)}" for key, tensor in sorted(tensors.items())) or "nothing"
        raise CheckpointError(
            f"{path} must hold weight and bias of two layers (width → hidden → 1); it holds {held}. Copy it again; or, where there is no "
            "twn_config.json, pass fallback=BundleDefaults(gate='fresh'): an untrained gate, for think='never' or 'always'."
        )
    gate = {}
    for number, layer, weight in zip((0, 2), layers, weights, strict=True):
        gate[f"{number}.weight"] = weight
        gate[f"{number}.bias"] = tensors.get(f"{layer}.bias", torch.zeros(weight.shape[0]))
    return gate


def check_keys(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], where: Path) -> None:
    """Whether tensors have exactly the names and shapes that the model has for them.

    Raises:
        CheckpointError: They have not; one of the differences is named.
    """
    missing, foreign = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    if missing or foreign:
        parts = [f"lacks {missing[0]} ({len(missing)} in all)"] if missing else []
        parts += [f"holds {foreign[0]}, which the model does not have ({len(foreign)} in all)"] if foreign else []
        raise CheckpointError(f"{where} {' and '.join(parts)}. It is damaged, or made for another model.")
    for key, tensor in expected.items():
        if found[key].shape != tensor.shape:
            raise CheckpointError(
                f"{key} in {where} has the shape {tuple(found[key].shape)}, the model's {tuple(tensor.shape)}: it was made for another model."
            )


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        what = f"it holds a pickled {found.group(1)}" if found else "it cannot be unpacked"
        raise CheckpointError(
            f"{path} is not a file of tensors: {what}. Only tensors are read, never pickled objects: save the state_dict."
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError) as error:  # whatever the bytes led it to
        raise CheckpointError(f"{path} is not a file of tensors: {error}. Copy it again.") from error
    if isinstance(loaded, Mapping) and len(loaded) == 1 and isinstance(inner := next(iter(loaded.values())), Mapping):
        loaded = inner  # {"state_dict": {…}}
    tensors = {"": loaded} if isinstance(loaded, Tensor) else loaded
    if not isinstance(tensors, Mapping):
        raise CheckpointError(f"{path} holds something else than named tensors: a {type(loaded).__name__}.")
    others = [f"{key} ({type(value).__name__})" for key, value in tensors.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(f"{path} holds something else than named tensors: {', '.join(others)}.")
    return {str(key): tensor for key, tensor in tensors.items()}


def _natural(name: str) -> tuple[tuple[int, int | str], ...]:
    pieces = re.findall(r"\d+|\D+", name)
    return tuple((0, int(piece)) if piece.isdecimal() else (1, piece) for piece in pieces)
