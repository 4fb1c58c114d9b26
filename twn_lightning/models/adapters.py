"""Which LoRA adapter is active, decided without touching `requires_grad`.

PEFT's `set_adapter` freezes the adapter it leaves, so that after a switch between two forwards every gradient of the first is lost
without an error; and a layer that is recomputed in backward (gradient checkpointing) runs whichever adapter is active then. Here only the
layers' notion of the active adapter changes, and a checkpointed layer remembers the one of its forward.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import nn

from twn_lightning.distributed import num_elements
from twn_lightning.errors import ConfigError

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LoraSpec:
    """A LoRA adapter (Hu et al., 2021) on the language model; the vision tower never has one.

    Attributes:
        rank: Inner width of the update, at least 1.
        alpha: The update is scaled by alpha / rank.
        dropout: Probability of dropping an input of the update while training, from 0 to below 1.
        target_modules: Names of the projections; a single name with a backslash or bracket is a regular expression over full module names.
    """

    rank: int
    alpha: int
    dropout: float = 0.0
    target_modules: tuple[str, ...] = PROJECTIONS

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not 0.0 <= self.dropout < 1.0 or not self.target_modules:
            raise ConfigError(f"{self} is no adapter: rank and alpha must be positive, dropout in [0, 1), and target_modules not empty.")

    @property
    def is_regex(self) -> bool:
        """Whether `target_modules` is one regular expression."""
        return len(self.target_modules) == 1 and re.search(r"[\\(\[*]", self.target_modules[0]) is not None

    def config(self, targets: str) -> LoraConfig:
        """PEFT's settings for it.

        Args:
            targets: Regular expression of the full names of the modules to adapt.
        """
        return LoraConfig(r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, target_modules=targets)


def lora_layers(module: nn.Module) -> tuple[LoraLayer, ...]:
    """Every LoRA layer inside a module."""
    return tuple(layer for layer in module.modules() if isinstance(layer, LoraLayer))


def part_of(name: str) -> str:
    """Which part a parameter of the model belongs to: an adapter, the queries or the gate; "backbone" if to none.

    Args:
        name: In the model's `named_parameters`.
    """
    for adapter in ("reasoning", "embedding", "reference"):
        if ".lora_" in name and f".{adapter}." in name:
            return adapter
    return {"query_table": "queries", "gate": "gate"}.get(name.partition(".")[0], "backbone")


def parameter_counts(module: nn.Module, parts: Sequence[str]) -> dict[str, float]:
    """Parameters of each part, "backbone", "added" (all parts), "trainable" now, and "ratio": added / backbone; a sharded parameter counts whole.

    Args:
        module: The model.
        parts: Besides the backbone.
    """
    counts: dict[str, float] = dict.fromkeys([*parts, "backbone", "trainable"], 0)
    for name, parameter in module.named_parameters():
        part = part_of(name)
        if part != "reference":
            counts[part] += num_elements(parameter)
        counts["trainable"] += num_elements(parameter) if parameter.requires_grad else 0
    counts["added"] = sum(counts[part] for part in parts)
    counts["ratio"] = counts["added"] / counts["backbone"]
    return counts


@contextlib.contextmanager
def use_adapter(layers: nn.Module | Sequence[LoraLayer], *names: str) -> Iterator[None]:
    """Runs the body with one adapter active, then restores what was; no parameter's `requires_grad` changes.

    Args:
        layers: LoRA layers (see `lora_layers`), or a module to look for them in.
        names: The adapter; of several the sum; none for the bare backbone.
    """
    chosen = lora_layers(layers) if isinstance(layers, nn.Module) else layers
    before = [(layer._active_adapter, layer._disable_adapters) for layer in chosen]
    for layer in chosen:
        layer._active_adapter = list(names) if names else layer._active_adapter
        layer._disable_adapters = not names
    try:
        yield
    finally:
        for layer, (active, disabled) in zip(chosen, before, strict=True):
            layer._active_adapter = active
            layer._disable_adapters = disabled


@contextlib.contextmanager
def adapter_pass(
    layers: Sequence[LoraLayer], checkpointed: Sequence[nn.Module], names: Sequence[str], *, dropout: bool, recompute: bool
) -> Iterator[None]:
    """Runs the body under an adapter, with or without its dropout, and with or without recomputing layers in backward.

    Args:
        layers: LoRA layers of the model.
        checkpointed: Layers whose ``gradient_checkpointing`` flag says whether they recompute; none where the model never does.
        names: The adapter; of several the sum; none for the bare backbone.
        dropout: Whether its dropout drops.
        recompute: Whether the checkpointed layers recompute.
    """
    flags: list[tuple[nn.Module, str, bool]] = [(layer, "gradient_checkpointing", recompute) for layer in checkpointed]
    drops = [layer.lora_dropout[name] for layer in layers for name in names if name in layer.lora_dropout]
    flags += [(drop, "training", dropout) for drop in drops if isinstance(drop, nn.Dropout)]
    with use_adapter(layers, *names), _set(flags):
        yield


@contextlib.contextmanager
def _set(flags: Sequence[tuple[nn.Module, str, bool]]) -> Iterator[None]:
    """Runs the body with flags of modules set, then restores what was."""
    before = [getattr(module, flag) for module, flag, _ in flags]
    for module, flag, value in flags:
        setattr(module, flag, value)
    try:
        yield
    finally:
        for (module, flag, _), value in zip(flags, before, strict=True):
            setattr(module, flag, value)


@contextlib.contextmanager
def keeping_trainable(module: nn.Module) -> Iterator[None]:
    """Runs the body, then lets exactly those parameters require gradients that did before: PEFT changes that when adapters come or go."""
    trainable = {name for name, parameter in module.named_parameters() if parameter.requires_grad}
    yield
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in trainable)


def merged_into_base(layers: Sequence[LoraLayer], name: str) -> bool:
    """Adds an adapter to the weights under it; from then on the bare layers are what it was, and the adapter takes itself away again.

    Passes under it cost no more than the bare backbone's, and no memory is added. (W + R) - R is W only up to rounding in the weights' precision.

    Args:
        layers: LoRA layers of the model.
        name: The adapter.

    Returns:
        Whether that was done; layers other than ordinary linear ones (quantised, for instance) are left as they are, all of them.
    """
    adapted = [layer for layer in layers if name in layer.lora_A]
    if any(type(layer.get_base_layer()) is not nn.Linear for layer in adapted):
        return False
    with torch.no_grad():
        for layer in adapted:
            weight = layer.get_base_layer().weight
            weight.copy_(weight.float() + layer.get_delta_weight(name).float())
            layer.scaling[name] = -layer.scaling[name]
    return True


def active_adapter(layers: Sequence[LoraLayer]) -> str | None:
    """The adapter that is active now; None for the bare backbone (or where there are no LoRA layers)."""
    if not layers or layers[0]._disable_adapters:
        return None
    active = layers[0]._active_adapter
    return active if isinstance(active, str) else active[0]


def checkpoint_context_fn(layers: Sequence[LoraLayer]) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Contexts for torch.utils.checkpoint, taken at forward: the recompute uses the adapter of its forward, with or without dropout as there.

    Args:
        layers: LoRA layers of the checkpointed module.
    """
    drops = [drop for layer in layers for drop in layer.lora_dropout.values() if isinstance(drop, nn.Dropout)]
    return contextlib.nullcontext(), _again(layers, active_adapter(layers), [(drop, "training", drop.training) for drop in drops])


@contextlib.contextmanager
def _again(layers: Sequence[LoraLayer], name: str | None, flags: Sequence[tuple[nn.Module, str, bool]]) -> Iterator[None]:
    with use_adapter(layers, *([] if name is None else [name])), _set(flags):
        yield
