"""Encoding many items in one pass that serves every think mode."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from PIL import Image

from twn_lightning.batches import ImageSource, Inputs, Item
from twn_lightning.distributed import rank, world_size
from twn_lightning.errors import DataError
from twn_lightning.evaluation.encode_batches import prompt_batches
from twn_lightning.evaluation.encoded import EncodedItems, ThinkMode, joined_rows, nothing_encoded
from twn_lightning.evaluation.shards import dealt, gathered, own_windows
from twn_lightning.evaluation.store import Shelf, VectorStore
from twn_lightning.evaluation.store_digests import item_digest
from twn_lightning.models.outputs import Decoding

if TYPE_CHECKING:
    from twn_lightning.models.dual_lora import DualLoRAModel

__all__ = ["EncodedItems", "KnownItems", "ProgressCallback", "ThinkMode", "encode_items", "evaluating"]

ProgressCallback: TypeAlias = Callable[[int, int], None]
"""Called with how many items are done and how many there are, after every batch."""

KnownItems: TypeAlias = dict[tuple[ThinkMode, bytes], tuple[EncodedItems, int]]
"""Think mode and content of an item → the batch it was encoded in, and its row there."""


def encode_items(  # noqa: PLR0913 -- every argument but three has a default
    model: DualLoRAModel,
    items: Sequence[Item],
    *,
    batch_size: int,
    max_batch_tokens: int | None = None,
    think: ThinkMode = "always",
    decoding: Decoding | None = None,
    device: torch.device | str | None = None,
    generator: torch.Generator | None = None,
    known: KnownItems | None = None,
    store: VectorStore | None = None,
    over_ranks: bool = False,
    keep_states: bool = False,
    progress: ProgressCallback | None = None,
) -> EncodedItems:
    """Encodes items in batches of similar length; one prefill serves the discriminative vector, the gate and the thought.

    Equal items are encoded once. The sequence may open its items as they are asked for: each is looked at once to be named and measured, and once
    more in its batch, and never are more than a batch of them kept.

    Args:
        model: Is put in evaluation mode for the pass, and back afterwards.
        items: At least one.
        batch_size: Items encoded together, at most.
        max_batch_tokens: Prompt tokens encoded together, padding included, at most; a single longer prompt goes alone. None for no limit.
        think: ``always`` computes what every mode needs; ``never`` writes no thought; ``auto`` writes those the model's own gate asks for.
        decoding: How thoughts are written; greedy by default.
        device: Where to encode; the model's own by default.
        generator: For sampled decoding; None seeds one for each batch by what is in it, so that the same batch has the same thoughts.
        known: Items that this model encoded before with this decoding; they are not encoded again, and those encoded now are added.
        store: Vectors of this model on disk; what is there is not encoded again, and what is encoded is stored, batch by batch.
        over_ranks: Shares the batches out among the ranks, all of which must call this with equal arguments; each gets all rows. False: this
            process encodes everything.
        keep_states: Keep what the gate read; with ``known``, in every pass or in none. Not with a store or over ranks.
        progress: Told after each batch.

    Raises:
        DataError: There is no item, or one cannot be opened.
    """
    if not items:
        raise DataError("There is nothing to encode: the list of items is empty.")
    assert not (keep_states and (store is not None or over_ranks)), "states are not kept in a store, nor sent between ranks"
    assert generator is None or (store is None and not over_ranks), "batches that are left out or shared would not draw from it"
    decoding = decoding or Decoding()
    device = torch.device(device if device is not None else model.device)
    known = {} if known is None else known
    names = _names(items, by_content=store is not None, over_ranks=over_ranks)
    keys = [(think, digest) for digest, _ in names]
    new: dict[tuple[ThinkMode, bytes], int] = {}
    for number, key in enumerate(keys):
        if key not in known:
            new.setdefault(key, number)
    order = sorted(new, key=lambda key: names[new[key]][1], reverse=True)
    windows = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    shelf = None if store is None else store.shelf(think, decoding)
    work = _Pass(model, think, decoding, device, generator, max_batch_tokens, keep_states)
    own: KnownItems = {}
    own_numbers = own_windows(len(windows), over_ranks=over_ranks)
    with evaluating(model):
        for number in own_numbers:
            own |= _encode_window(work, windows[number], [new[key] for key in windows[number]], items, shelf)
            if progress is not None:
                progress(len(items) - max(0, len(order) - (number + 1) * batch_size), len(items))
    if over_ranks and world_size() > 1 and windows:
        rows = _stacked([own[key] for number in own_numbers for key in windows[number]], think, width=model.hidden_size)
        everything = gathered(rows, [len(window) for window in windows], device=device)
        own = {key: (everything, row) for row, key in enumerate(order)}
    known |= own
    places = [known[key] for key in keys]
    seconds = sum(part.seconds / len(part) for part, _ in dict(zip(keys, places, strict=True)).values())
    return dataclasses.replace(_stacked(places, think, width=model.hidden_size, keep_states=keep_states), seconds=seconds)


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


@dataclass(frozen=True)
class _Pass:
    """What is the same for all batches of a pass; see `encode_items`."""

    model: DualLoRAModel
    think: ThinkMode
    decoding: Decoding
    device: torch.device
    generator: torch.Generator | None
    max_batch_tokens: int | None
    keep_states: bool


def _names(items: Sequence[Item], *, by_content: bool, over_ranks: bool) -> list[tuple[bytes, tuple[bool, int, int, int]]]:
    """Digest and length of each item; each rank looks at its share of them."""
    first, step = (rank(), world_size()) if over_ranks else (0, 1)
    own = []
    for number in range(first, len(items), step):
        item = items[number]  # may be opened here, and is let go
        own.append((item_digest(item, by_content=by_content), _length(item)))
    return dealt(own, num_values=len(items), over_ranks=over_ranks)


def _encode_window(
    work: _Pass, keys: Sequence[tuple[ThinkMode, bytes]], numbers: Sequence[int], items: Sequence[Item], shelf: Shelf | None
) -> KnownItems:
    """The rows of a window: those of the shelf, and the others encoded.

    Args:
        work: How.
        keys: Of the window's items.
        numbers: Their places among the items.
        items: All.
        shelf: Is read, and gets what is encoded.
    """
    found = {} if shelf is None else shelf.take([digest for _, digest in keys])
    rows: KnownItems = {key: found[key[1]] for key in keys if key[1] in found}
    missing = [(key, number) for key, number in zip(keys, numbers, strict=True) if key not in rows]
    if missing:
        digests = [digest for (_, digest), _ in missing]
        part = _encode(work, (items[number] for _, number in missing), digests)
        if shelf is not None:
            shelf.put(digests, part)
        rows |= {key: (part, row) for row, (key, _) in enumerate(missing)}
    return rows


def _encode(work: _Pass, items: Iterable[Item], digests: Sequence[bytes]) -> EncodedItems:
    started = time.perf_counter()
    generator = work.generator
    if generator is None and work.decoding.temperature > 0.0:
        seed = hashlib.blake2b(b"".join(digests), digest_size=7).digest()
        generator = torch.Generator(work.device).manual_seed(int.from_bytes(seed, "big"))
    batches = prompt_batches(work.model.processor, items, max_tokens=work.max_batch_tokens)
    rows = joined_rows([_encode_batch(work, batch.to(work.device), generator) for batch in batches])
    return dataclasses.replace(rows, seconds=time.perf_counter() - started)


def _encode_batch(work: _Pass, inputs: Inputs, generator: torch.Generator | None) -> EncodedItems:
    encoded = work.model.encode(inputs, think=work.think, decoding=work.decoding, generator=generator)
    thinks = encoded.thinks.cpu()
    texts = [""] * len(inputs)
    if encoded.thoughts is not None:
        for row, text in zip(thinks.nonzero().flatten().tolist(), work.model.processor.decode(encoded.thoughts), strict=True):
            texts[row] = text
    return EncodedItems(
        discriminative=encoded.discriminative.float().cpu(),
        generative=None if work.think == "never" else encoded.generative.float().cpu(),
        gate_probability=encoded.gate_probability.float().cpu(),
        num_reasoning_tokens=encoded.num_reasoning_tokens.cpu(),
        thoughts=tuple(texts),
        seconds=0.0,
        thought=thinks,
        state=encoded.state.float().cpu() if work.keep_states else None,
    )


def _stacked(places: Sequence[tuple[EncodedItems, int]], think: ThinkMode, *, width: int, keep_states: bool = False) -> EncodedItems:
    """One row after the other, each from the batch it was encoded in."""
    if not places:
        return nothing_encoded(width=width, with_generative=think != "never")
    return EncodedItems(
        discriminative=torch.stack([part.discriminative[row] for part, row in places]),
        generative=None if think == "never" else torch.stack([part.generative[row] for part, row in places if part.generative is not None]),
        gate_probability=torch.stack([part.gate_probability[row] for part, row in places]),
        num_reasoning_tokens=torch.stack([part.num_reasoning_tokens[row] for part, row in places]),
        thoughts=tuple(part.thoughts[row] for part, row in places),
        seconds=sum(part.seconds / len(part) for part, _ in places),
        thought=torch.stack([part.thought[row] for part, row in places]),
        state=torch.stack([part.state[row] for part, row in places if part.state is not None]) if keep_states else None,
    )


def _length(item: Item) -> tuple[bool, int, int, int]:
    """What makes prompts long, the dearest first: a clip, the number of pictures, their area, words."""
    return item.video is not None, len(item.images), sum(map(_area, item.images)), len(item.instruction) + len(item.text)


def _area(picture: ImageSource) -> int:
    """Pixels of a picture; of a file by its header."""
    if isinstance(picture, Image.Image):
        return picture.width * picture.height
    try:
        with Image.open(picture) as opened:
            return opened.width * opened.height
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return 0  # its batch says what is wrong with it
