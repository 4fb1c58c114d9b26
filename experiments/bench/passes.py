"""Parts of the benchmark that train: a step of stage 1 against plain LoRA contrastive training, and the thoughts of stage 4."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from experiments.bench.cases import Case, Cases
from experiments.bench.subjects import Subject, World, long_items
from experiments.bench_steps import VARIANTS, Load, make_batch, make_step
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.outputs import Decoding
from twn_lightning.models.prefix import Prefix


def stage1(world: World) -> Cases:
    """A step of stage 1 and what it replaces, optimiser included: plain LoRA, with gradient checkpointing, with GradCache."""
    for subject in world.fresh_subjects():
        yield _stage1(subject)


def rollouts(world: World) -> Cases:
    """G thoughts of each prompt from one reading of it, against reading the prompt G times: the reading alone, and with the thoughts."""
    for subject in world.fresh_subjects():
        yield _rollouts(subject)


def _stage1(subject: Subject) -> Case:
    size = subject.size
    load = Load(prompt_tokens=size.prompt_tokens, picture=0, chunk=max(1, size.pairs // 2))
    queries, plain, checkpointed = subject.model(), subject.model(), subject.model()
    checkpointed.enable_gradient_checkpointing()
    batch = make_batch(queries, size.pairs, load)

    def prepared(model: DualLoRAModel, variant: str) -> Callable[[], object]:
        step = make_step(model, VARIANTS[variant], load, autocast=subject.autocast)
        return lambda: step(batch)

    models = {"stage1": queries, "plain": plain, "checkpointed": checkpointed, "grad_cache": plain}
    kinds = {"stage1": "stage1_kv", "plain": "plain", "checkpointed": "plain", "grad_cache": "plain_grad_cache"}
    variants = {name: prepared(models[name], kind) for name, kind in kinds.items()}
    numbers = {f"mib.{name}": peak_saved_mib(step, models[name]) for name, step in variants.items()}
    setting = f"{subject.title}; {size.pairs} pairs of prompts of {batch.query.input_ids.shape[1]} tokens"
    return Case(setting, variants, size.rounds, size.pairs, numbers)


def _rollouts(subject: Subject) -> Case:
    size, model = subject.size, subject.model()
    prompts = long_items(model.processor, tokens=size.prompt_tokens, rows=size.rollout_prompts)
    once = model.processor.inputs(prompts).to(subject.device)
    each = model.processor.inputs([item for item in prompts for _ in range(size.group_size)]).to(subject.device)
    decoding = Decoding(max_new_tokens=size.thought_tokens, temperature=1.0)

    def shared() -> Prefix:
        return model.prefill(once).repeat(size.group_size)

    def separate() -> Prefix:
        return model.prefill(each)

    def quietly(read: Callable[[], Prefix], *, thinks: bool) -> Callable[[], object]:
        def call() -> object:
            with torch.no_grad(), subject.precision():
                prefix = read()
                return model.think(prefix, decoding, generator=torch.Generator(subject.device).manual_seed(0)) if thinks else prefix

        return call

    variants = {
        "shared": quietly(shared, thinks=False),
        "separate": quietly(separate, thinks=False),
        "shared_rollout": quietly(shared, thinks=True),
        "separate_rollout": quietly(separate, thinks=True),
    }
    width, most = once.input_ids.shape[1], size.thought_tokens
    setting = f"{subject.title}; {len(prompts)} prompts of {width} tokens, G = {size.group_size}, thoughts of at most {most} tokens"
    return Case(setting, variants, size.rounds, len(each), {"group_size": float(size.group_size)})


class SavedMemory:
    """Counts what autograd keeps for the backward pass, for as long as it keeps it: each storage once, the model's own left out.

    Its `pack` and `unpack` are for `torch.autograd.graph.saved_tensors_hooks`.

    Args:
        model: Whose parameters and buffers are left out.
    """

    def __init__(self, model: nn.Module) -> None:
        self._own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
        self._holders: dict[int, int] = {}
        self._live = 0
        self.peak = 0
        """Most bytes at any time so far."""

    def pack(self, tensor: Tensor) -> tuple[Tensor, _Holder | None]:
        """What autograd keeps in the tensor's place."""
        return tensor, None if tensor.untyped_storage().data_ptr() in self._own else _Holder(self, tensor)

    @staticmethod
    def unpack(kept: tuple[Tensor, object]) -> Tensor:
        """The tensor again."""
        return kept[0]

    def change(self, pointer: int, num_bytes: int, holders: int) -> None:
        """One holder of a storage more (1) or less (-1)."""
        before = self._holders.get(pointer, 0)
        self._holders[pointer] = before + holders
        if 0 in (before, before + holders):
            self._live += holders * num_bytes
            self.peak = max(self.peak, self._live)


class _Holder:
    """Lives as long as autograd keeps a tensor."""

    def __init__(self, memory: SavedMemory, tensor: Tensor) -> None:
        self._memory, self._pointer, self._num_bytes = memory, tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        memory.change(self._pointer, self._num_bytes, 1)

    def __del__(self) -> None:
        self._memory.change(self._pointer, self._num_bytes, -1)


def peak_saved_mib(step: Callable[[], object], model: nn.Module) -> float:
    """Most MiB that are kept for a backward pass at any time of a step; see `SavedMemory`."""
    memory = SavedMemory(model)
    with torch.autograd.graph.saved_tensors_hooks(memory.pack, memory.unpack):
        step()
    return memory.peak / 2**20
