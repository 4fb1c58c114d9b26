"""The steps that `experiments.bench_gpu` measures: the four stages, and plain LoRA contrastive training with and without GradCache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

from experiments.model_flops import ModelFlops, Side
from twn_lightning.batches import Inputs, Item, PairBatch, Thoughts
from twn_lightning.losses.info_nce import info_nce
from twn_lightning.models.adapters import lora_layers, use_adapter
from twn_lightning.models.columns import at_column, last_column
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.outputs import Decoding
from twn_lightning.rewards.mix import RewardMix
from twn_lightning.stages.base import OptimSpec, StageModule
from twn_lightning.stages.contrastive import ContrastiveStage
from twn_lightning.stages.cot_sft import CotSftStage
from twn_lightning.stages.grpo import GrpoSpec, GrpoStage

if TYPE_CHECKING:
    from PIL import Image

Interface: TypeAlias = Literal["kv", "reencode"]
TEMPERATURE = 0.02


@dataclass(frozen=True)
class Load:
    """What a step is given.

    Attributes:
        prompt_tokens: Of each query and each positive, at least.
        thought_tokens: Of each reference thought, markers included, and the most that are written.
        group_size: Thoughts of a prompt in stage 4.
        picture: Side of the picture in each query, in pixels; 0 for none.
        chunk: Rows that GradCache runs at once.
        max_prefill_tokens: Prompt tokens that stage 1 reads at once; None for all.
    """

    prompt_tokens: int = 512
    thought_tokens: int = 128
    group_size: int = 8
    picture: int = 448
    chunk: int = 8
    max_prefill_tokens: int | None = None


@dataclass(frozen=True)
class Measured:
    """What one step did.

    Attributes:
        tokens: Prompt tokens of both sides and thought tokens that it learned from or wrote, padding left out.
        flops: Operations it needed, see `experiments.model_flops`.
    """

    tokens: int
    flops: float


Run: TypeAlias = Callable[[PairBatch], Measured]


@dataclass(frozen=True)
class Variant:
    """A way to train that is measured.

    Attributes:
        title: For people.
        stage: contrastive, plain, cot_sft, labels or grpo.
        interface: Of the model meanwhile.
        has_grad_cache: Of plain: whether activations are kept for a chunk at a time.
    """

    title: str
    stage: str
    interface: Interface = "kv"
    has_grad_cache: bool = False


VARIANTS: dict[str, Variant] = {
    "stage1_kv": Variant("stage 1, kv", "contrastive"),
    "stage1_reencode": Variant("stage 1, reencode", "contrastive", "reencode"),
    "plain_grad_cache": Variant("plain LoRA, last token, GradCache", "plain", has_grad_cache=True),
    "plain": Variant("plain LoRA, last token", "plain"),
    "stage2_kv": Variant("stage 2, kv", "cot_sft"),
    "stage2_reencode": Variant("stage 2, reencode", "cot_sft", "reencode"),
    "stage3_kv": Variant("stage 3, labelling, kv", "labels"),
    "stage3_reencode": Variant("stage 3, labelling, reencode", "labels", "reencode"),
    "stage4_kv": Variant("stage 4, kv", "grpo"),
}


def make_batch(model: DualLoRAModel, batch_size: int, load: Load) -> PairBatch:
    """Pairs of equal lengths: a picture with words, and words, both with a thought; the same ones each time.

    Args:
        model: Whose processor and device.
        batch_size: Rows.
        load: Sizes.
    """
    from PIL import Image

    generator = torch.Generator().manual_seed(0)

    def picture() -> tuple[Image.Image, ...]:
        if not load.picture:
            return ()
        pixels = torch.randint(256, (load.picture, load.picture, 3), dtype=torch.uint8, generator=generator)
        return (Image.fromarray(pixels.numpy()),)

    processor = model.processor
    query = processor.inputs([Item(text=f"what is shown, number {row}", images=picture()) for row in range(batch_size)])
    positive = processor.inputs([Item(text=f"answer number {row}") for row in range(batch_size)])
    words = processor.thoughts(["a thought"] * batch_size).token_ids[:, 1:2].expand(-1, max(1, load.thought_tokens - 2))
    markers = [torch.full((batch_size, 1), token) for token in (processor.think_open_id, processor.think_close_id)]
    token_ids = torch.cat([markers[0], words, markers[1]], dim=1)
    thoughts = Thoughts(token_ids=token_ids, mask=torch.ones_like(token_ids))
    return PairBatch(
        query=lengthened(query, load.prompt_tokens),
        positive=lengthened(positive, load.prompt_tokens),
        positive_hash=torch.arange(batch_size),
        source="bench",
        keys=tuple(map(str, range(batch_size))),
        query_thoughts=thoughts,
        positive_thoughts=thoughts,
    ).to(model.device)


def lengthened(inputs: Inputs, columns: int) -> Inputs:
    """The prompts with their last token repeated until there are at least this many columns."""
    last = inputs.input_ids[:, -1:].expand(-1, max(0, columns - inputs.input_ids.shape[1]))
    return replace(
        inputs,
        input_ids=torch.cat([inputs.input_ids, last], dim=1),
        attention_mask=torch.cat([inputs.attention_mask, torch.ones_like(last)], dim=1),
        mm_token_type_ids=torch.cat([inputs.mm_token_type_ids, torch.zeros_like(last)], dim=1),
    )


def make_step(model: DualLoRAModel, variant: Variant, load: Load, *, autocast: torch.dtype | None) -> Run:
    """One step of a variant, optimiser included; the model's interface and trainable parts are changed for it.

    Args:
        model: Measured.
        variant: What it does.
        load: Sizes.
        autocast: Type of the arithmetic under autocast, as Lightning's mixed precision runs it; None for none.
    """
    model.drop_reference()
    model.interface = variant.interface
    flops = ModelFlops.of(model)
    context = _context(model, autocast)
    if variant.stage == "labels":
        return _labelling(model, variant, load, flops, context)
    if variant.stage == "plain":
        model.set_trainable("embedding")
        model.train()
        return _plain(model, variant, load, flops, context)
    stage = _stage(model, variant, load)
    stage.train()
    optimizer = _optimizer(model)

    def step(batch: PairBatch) -> Measured:
        with context():
            loss = stage.step(batch).loss
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        return _done(stage, batch, variant, load, flops)

    return step


def _stage(model: DualLoRAModel, variant: Variant, load: Load) -> StageModule[PairBatch]:
    optim = OptimSpec(learning_rate=1e-4, total_steps=1)
    stage: StageModule[PairBatch]
    if variant.stage == "contrastive":
        stage = ContrastiveStage(model, optim, temperature=TEMPERATURE, max_prefill_tokens=load.max_prefill_tokens)
    elif variant.stage == "cot_sft":
        stage = CotSftStage(model, optim, temperature=TEMPERATURE, max_prefill_tokens=load.max_prefill_tokens)
    else:
        rewards = RewardMix({"format": 0.5, "retrieval": 1.0, "rank": 0.5, "gain": 0.5, "length": 0.1})
        spec = GrpoSpec(group_size=load.group_size, length_target=load.thought_tokens // 2)
        stage = GrpoStage(model, optim, spec=spec, decoding=_decoding(load, temperature=1.0), rewards=rewards)
    return stage.to(model.device)


def _done(stage: StageModule[PairBatch], batch: PairBatch, variant: Variant, load: Load, flops: ModelFlops) -> Measured:
    query, positive = _side(batch.query), _side(batch.positive)
    prompts = sum(query.lengths) + sum(positive.lengths)
    if isinstance(stage, GrpoStage):
        assert stage.rollouts is not None
        written = stage.rollouts.thoughts.mask.sum(dim=1)
        mean = round(float(written.float().mean()))
        return Measured(prompts + int(written.sum()), flops.grpo(query, positive, mean, load.group_size, with_reference=stage.spec.kl_weight > 0))
    if variant.stage == "cot_sft":
        thought = load.thought_tokens
        return Measured(prompts + 2 * thought * len(batch), flops.cot_sft((query, positive), thought, interface=variant.interface))
    return Measured(prompts, flops.contrastive((query, positive), interface=variant.interface))


def _labelling(model: DualLoRAModel, variant: Variant, load: Load, flops: ModelFlops, context: Callable[[], AbstractContextManager[object]]) -> Run:
    model.set_trainable()
    model.eval()

    def step(batch: PairBatch) -> Measured:
        tokens, thought = 0, []
        for inputs in (batch.query, batch.positive):
            with context():
                encoded = model.encode(inputs, think="always", decoding=_decoding(load, temperature=0.0))
            assert encoded.thoughts is not None
            tokens += int(inputs.attention_mask.sum() + encoded.thoughts.mask.sum())
            thought.append(float(encoded.thoughts.mask.sum(dim=1).float().mean()))
        sides = (_side(batch.query), _side(batch.positive))
        return Measured(tokens, flops.labels(sides, round(sum(thought) / len(thought)), interface=variant.interface))

    return step


def _plain(model: DualLoRAModel, variant: Variant, load: Load, flops: ModelFlops, context: Callable[[], AbstractContextManager[object]]) -> Run:
    optimizer = _optimizer(model)

    def embed(inputs: Inputs) -> Tensor:
        with context():
            return plain_vectors(model, inputs)

    def step(batch: PairBatch) -> Measured:
        optimizer.zero_grad()
        if variant.has_grad_cache:
            grad_cache_backward(embed, (batch.query, batch.positive), contrast, chunk=load.chunk)
        else:
            torch.autograd.backward(contrast((embed(batch.query), embed(batch.positive))))
        optimizer.step()
        sides = (_side(batch.query), _side(batch.positive))
        return Measured(sum(sum(side.lengths) for side in sides), flops.plain(sides))

    return step


def plain_vectors(model: DualLoRAModel, inputs: Inputs) -> Tensor:
    """Unit vectors of the last tokens from one pass over whole sequences under the embedding adapter, ``(B, D)``, with its graph."""
    with use_adapter(lora_layers(model.backbone.model), "embedding"):
        hidden = model.backbone.decode_layers(model.backbone.prompt(inputs), inputs.attention_mask, None)
    return torch.nn.functional.normalize(at_column(hidden, last_column(inputs.attention_mask)).float(), dim=-1)


def contrast(vectors: Sequence[Tensor]) -> Tensor:
    """InfoNCE in both directions of queries and positives, row by row a pair."""
    query, positive = vectors
    column = torch.arange(len(query), device=query.device)
    return info_nce(query, positive, column, temperature=TEMPERATURE) + info_nce(positive, query, column, temperature=TEMPERATURE)


def grad_cache_backward(
    embed: Callable[[Inputs], Tensor], sides: Sequence[Inputs], loss: Callable[[Sequence[Tensor]], Tensor], *, chunk: int
) -> Tensor:
    """The gradient of a whole batch's loss with the activations of a few rows at a time (Gao et al., 2021).

    All rows are embedded without a graph; the loss's gradient by their vectors is kept; each chunk is embedded again, with a graph, and takes its
    share of it. Without dropout this is the same gradient as that of one pass.

    Args:
        embed: Vectors of prompts.
        sides: Prompts of each side.
        loss: Of the vectors of each side, a scalar.
        chunk: Rows at a time.

    Returns:
        The loss, without graph.
    """
    pieces = [[inputs.select(rows) for rows in torch.split(torch.arange(len(inputs), device=inputs.device), chunk)] for inputs in sides]
    with torch.no_grad():
        vectors = [torch.cat([embed(piece) for piece in side]) for side in pieces]
    leaves = [side.detach().requires_grad_() for side in vectors]
    value = loss(leaves)
    torch.autograd.backward(value)
    for side, leaf in zip(pieces, leaves, strict=True):
        assert leaf.grad is not None
        for piece, gradient in zip(side, torch.split(leaf.grad, chunk), strict=True):
            torch.autograd.backward(embed(piece), gradient)
    return value.detach()


def _side(inputs: Inputs) -> Side:
    lengths = inputs.attention_mask.sum(dim=1).tolist()
    grid = inputs.image_grid_thw
    return Side(lengths=lengths, patches=() if grid is None else grid.prod(dim=1).tolist())


def _optimizer(model: DualLoRAModel) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=1e-4, fused=True)


def _decoding(load: Load, *, temperature: float) -> Decoding:
    return Decoding(max_new_tokens=load.thought_tokens - 1, temperature=temperature)


def _context(model: DualLoRAModel, autocast: torch.dtype | None) -> Callable[[], AbstractContextManager[object]]:
    if autocast is None:
        return nullcontext
    return lambda: torch.autocast(model.device.type, dtype=autocast, cache_enabled=False)  # as Lightning does
