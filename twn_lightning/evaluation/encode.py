"""Encoding many items in one pass that serves every think mode."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

from twn_lightning.batches import ImageSource, Item
from twn_lightning.errors import DataError
from twn_lightning.models.outputs import Decoding

if TYPE_CHECKING:
    from twn_lightning.models.dual_lora import DualLoRAModel

ThinkMode: TypeAlias = Literal["never", "always", "auto"]

ProgressCallback: TypeAlias = Callable[[int, int], None]
"""Called with how many items are done and how many there are, after every batch."""


@dataclass(frozen=True)
class EncodedItems:
    """Vectors of items, in the items' order, on the CPU.

    Attributes:
        discriminative: Unit rows without reasoning, float32 ``(N, D)``.
        generative: Unit rows after reasoning (rows that did not think: the discriminative ones), ``(N, D)``; None if nothing was to think.
        gate_probability: That thinking helps, ``(N,)``.
        num_reasoning_tokens: Tokens written, ``(N,)``.
        thoughts: What was written, without markers; empty for rows that did not think.
        seconds: Wall-clock time it took to encode them, that of items already known included.
        thought: Which rows thought in this pass, bool ``(N,)``.
        state: What the gate read, ``(N, G)``, if it was to be kept.
    """

    discriminative: Tensor
    generative: Tensor | None
    gate_probability: Tensor
    num_reasoning_tokens: Tensor
    thoughts: tuple[str, ...]
    seconds: float
    thought: Tensor
    state: Tensor | None = None

    def __len__(self) -> int:
        return int(self.discriminative.shape[0])

    def thinks(self, mode: ThinkMode, *, threshold: float) -> Tensor:
        """Which rows use their generative vector in a mode, bool ``(N,)``; none where this pass wrote no thoughts.

        Args:
            mode: ``auto``: those whose gate probability is at least the threshold.
            threshold: 0 to 1.
        """
        if self.generative is None or mode == "never":
            return torch.zeros(len(self), dtype=torch.bool)
        if mode == "always":
            return self.thought
        return self.thought & (self.gate_probability >= threshold)

    def vectors(self, thinks: Tensor) -> Tensor:
        """Generative vectors of the rows that think, discriminative ones of the others, ``(N, D)``."""
        if self.generative is None:
            return self.discriminative
        return torch.where(thinks[:, None], self.generative, self.discriminative)

    def reasoning_tokens(self, thinks: Tensor) -> int:
        """Tokens written for the rows that think."""
        return int(self.num_reasoning_tokens[thinks].sum())


KnownItems: TypeAlias = dict[tuple[ThinkMode, bytes], tuple[EncodedItems, int]]
"""Think mode and content of an item → the batch it was encoded in, and its row there."""


def encode_items(  # noqa: PLR0913 -- every argument but three has a default
    model: DualLoRAModel,
    items: Sequence[Item],
    *,
    batch_size: int,
    think: ThinkMode = "always",
    decoding: Decoding | None = None,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
    known: KnownItems | None = None,
    keep_states: bool = False,
    progress: ProgressCallback | None = None,
) -> EncodedItems:
    """Encodes items in batches of similar length; one prefill serves the discriminative vector, the gate and the thought.

    Equal items are encoded once.

    Args:
        model: Is put in evaluation mode for the pass, and back afterwards.
        items: At least one.
        batch_size: Items encoded together.
        think: ``always`` computes what every mode needs; ``never`` writes no thought; ``auto`` writes those the model's own gate asks for.
        decoding: How thoughts are written; greedy by default.
        device: Where to encode; the model's own by default.
        generator: For sampled decoding.
        known: Items that this model encoded before with this decoding; they are not encoded again, and those encoded now are added.
        keep_states: Keep what the gate read; with ``known``, in every pass or in none.
        progress: Told after each batch.

    Raises:
        DataError: There is no item.
    """
    if not items:
        raise DataError("There is nothing to encode: the list of items is empty.")
    decoding = decoding or Decoding()
    device = device if device is not None else next(model.parameters()).device
    known = {} if known is None else known
    keys = [(think, _digest(item)) for item in items]
    new = {key: item for key, item in zip(keys, items, strict=True) if key not in known}
    order = sorted(new, key=lambda key: _length(new[key]), reverse=True)
    with evaluating(model):
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            part = _encode_batch(model, [new[key] for key in batch], think, decoding, device, generator)
            part = part if keep_states else dataclasses.replace(part, state=None)
            known.update({key: (part, row) for row, key in enumerate(batch)})
            if progress is not None:
                progress(len(items) - len(order) + start + len(batch), len(items))
    rows = [known[key] for key in keys]
    return EncodedItems(
        discriminative=torch.stack([part.discriminative[row] for part, row in rows]),
        generative=None if think == "never" else torch.stack([part.generative[row] for part, row in rows if part.generative is not None]),
        gate_probability=torch.stack([part.gate_probability[row] for part, row in rows]),
        num_reasoning_tokens=torch.stack([part.num_reasoning_tokens[row] for part, row in rows]),
        thoughts=tuple(part.thoughts[row] for part, row in rows),
        seconds=sum(part.seconds / len(part) for part, _ in dict(zip(keys, rows, strict=True)).values()),
        thought=torch.stack([part.thought[row] for part, row in rows]),
        state=torch.stack([part.state[row] for part, row in rows if part.state is not None]) if keep_states else None,
    )


@contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside; each submodule's own mode again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def _encode_batch(
    model: DualLoRAModel, items: Sequence[Item], think: ThinkMode, decoding: Decoding, device: torch.device | str, generator: torch.Generator | None
) -> EncodedItems:
    started = time.perf_counter()
    inputs = model.processor.inputs(items).to(device)
    encoded = model.encode(inputs, think=think, decoding=decoding, generator=generator)
    thinks = encoded.thinks.cpu()
    texts = [""] * len(items)
    if encoded.thoughts is not None:
        for row, text in zip(thinks.nonzero().flatten().tolist(), model.processor.decode(encoded.thoughts), strict=True):
            texts[row] = text
    return EncodedItems(
        discriminative=encoded.discriminative.float().cpu(),
        generative=None if think == "never" else encoded.generative.float().cpu(),
        gate_probability=encoded.gate_probability.float().cpu(),
        num_reasoning_tokens=encoded.num_reasoning_tokens.cpu(),
        thoughts=tuple(texts),
        seconds=time.perf_counter() - started,
        thought=thinks,
        state=encoded.state.float().cpu(),
    )


def _length(item: Item) -> tuple[bool, int, int]:
    return item.video is not None, len(item.images), len(item.instruction) + len(item.text)


def _digest(item: Item) -> bytes:
    """Names everything an item shows: words, decoded pictures by their pixels, and files by their path."""

    def content(medium: ImageSource) -> bytes:
        return str(medium).encode() if isinstance(medium, Path) else f"{medium.mode}{medium.size}".encode() + medium.tobytes()

    frames = item.video if isinstance(item.video, tuple) else () if item.video is None else (item.video,)
    parts = [repr((item.text, item.instruction, len(item.images), type(item.video))).encode(), *map(content, item.images), *map(content, frames)]
    return hashlib.blake2b(b"".join(hashlib.blake2b(part, digest_size=16).digest() for part in parts), digest_size=16).digest()
