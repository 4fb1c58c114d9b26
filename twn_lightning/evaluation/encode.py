"""Encoding many items in one pass that serves every think mode."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from PIL import Image

from twn_lightning.batches import ImageSource, Inputs, Item
from twn_lightning.distributed import gather_objects, rank, world_size
from twn_lightning.errors import DataError
from twn_lightning.evaluation.encode_batches import prompt_batches
from twn_lightning.evaluation.encoded import EncodedItems, ThinkMode, joined_rows, nothing_encoded
from twn_lightning.evaluation.shards import dealt, gathered, own_windows
from twn_lightning.evaluation.store import Shelf, VectorStore
from twn_lightning.evaluation.store_digests import item_digest
from twn_lightning.media import BROKEN_PICTURE
from twn_lightning.models.outputs import Decoding
from twn_lightning.models.thought_writers import ThoughtWriter

if TYPE_CHECKING:
    from twn_lightning.models.dual_lora import DualLoRAModel

__all__ = ["AUTOCAST", "EncodedItems", "KnownItems", "ProgressCallback", "ThinkMode", "autocasting", "encode_items", "evaluating"]

ProgressCallback: TypeAlias = Callable[[int, int], None]
"""Called with how many items are done and how many there are, after every batch."""

KnownItems: TypeAlias = dict[tuple[ThinkMode, bytes], tuple[EncodedItems, int]]
"""Think mode and content of an item → the batch it was encoded in, and its row there."""

AUTOCAST: Mapping[str, torch.dtype | None] = {"32-true": None, "16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
"""Lightning's name of a precision → the type in which the matrix products of a pass run, None for that of the weights. Adapters, which are loaded
in float32, so run in 16 bits as they did while they were trained."""


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
    autocast: torch.dtype | None = None,
    writer: ThoughtWriter | None = None,
    unreadable: dict[int, str] | None = None,
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
        keep_states: Keep what the gate read; with ``known``, in every pass or in none. Not with a store.
        autocast: Type of the matrix products, see `AUTOCAST`; None: that of the weights.
        writer: Of the thoughts; the model itself by default.
        unreadable: Gets the numbers of items that cannot be opened, and why; their rows are zero. None: the first of them is an error.
        progress: Told after each batch.

    Raises:
        DataError: There is no item, or one cannot be opened and ``unreadable`` is None.
    """
    if not items:
        raise DataError("There is nothing to encode: the list of items is empty.")
    assert not (keep_states and store is not None), "states are not kept in a store"
    assert generator is None or (store is None and not over_ranks), "batches that are left out or shared would not draw from it"
    decoding = decoding or Decoding()
    device = torch.device(device if device is not None else model.device)
    known = {} if known is None else known
    names = _names(items, by_content=store is not None, over_ranks=over_ranks, may_fail=unreadable is not None)
    faults: dict[tuple[ThinkMode, bytes], str] = {(think, name.digest): name.fault for name in names if name.fault}
    keys = [(think, name.digest) for name in names]
    new: dict[tuple[ThinkMode, bytes], int] = {}
    for number, key in enumerate(keys):
        if key not in known and key not in faults:
            new.setdefault(key, number)
    order = sorted(new, key=lambda key: names[new[key]].length, reverse=True)
    windows = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    shelf = None if store is None else store.shelf(think, decoding)
    found = faults if unreadable is not None else None
    state_width = model.gate.width if keep_states else None
    work = _Pass(model, think, decoding, device, generator, max_batch_tokens, keep_states, autocast, writer, found)
    own: KnownItems = {}
    own_numbers = own_windows(len(windows), over_ranks=over_ranks)
    with evaluating(model):
        for number in own_numbers:
            own |= _encode_window(work, windows[number], [new[key] for key in windows[number]], items, shelf)
            if progress is not None:
                progress(len(items) - max(0, len(order) - (number + 1) * batch_size), len(items))
    if over_ranks and world_size() > 1 and windows:
        for share in gather_objects(faults):
            faults |= share
        windows = [[key for key in window if key not in faults] for window in windows]
        rows = _stacked([own[key] for number in own_numbers for key in windows[number]], think, width=model.hidden_size, state_width=state_width)
        everything = gathered(rows, [len(window) for window in windows], device=device)
        own = {key: (everything, row) for row, key in enumerate(key for window in windows for key in window)}
    known |= own
    readable = [number for number, key in enumerate(keys) if key not in faults]
    places = [known[keys[number]] for number in readable]
    seconds = sum(part.seconds / len(part) for part, _ in {keys[number]: known[keys[number]] for number in readable}.values())
    rows = dataclasses.replace(_stacked(places, think, width=model.hidden_size, state_width=state_width), seconds=seconds)
    if unreadable is None or not faults:
        return rows
    unreadable.update({number: faults[key] for number, key in enumerate(keys) if key in faults})
    return _spread(rows, readable, num_rows=len(items))


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


def autocasting(device: torch.device | str, autocast: torch.dtype | None) -> AbstractContextManager[object]:
    """Runs matrix products on a device in a type; None: in that of the weights."""
    return nullcontext() if autocast is None else torch.autocast(torch.device(device).type, dtype=autocast)


@dataclass(frozen=True)
class _Name:
    """What tells an item apart, and what makes its prompt long.

    Attributes:
        digest: Of its content or its path; of an item that cannot be opened, of its number.
        length: See `_length`.
        fault: Why it cannot be opened; empty if it can.
    """

    digest: bytes
    length: tuple[bool, int, int, int] = (False, 0, 0, 0)
    fault: str = ""


@dataclass(frozen=True)
class _Pass:
    """What is the same for all batches of a pass; see `encode_items`.

    Attributes:
        faults: Gets what cannot be opened; None where that is an error.
    """

    model: DualLoRAModel
    think: ThinkMode
    decoding: Decoding
    device: torch.device
    generator: torch.Generator | None
    max_batch_tokens: int | None
    keep_states: bool
    autocast: torch.dtype | None
    writer: ThoughtWriter | None
    faults: dict[tuple[ThinkMode, bytes], str] | None


def _names(items: Sequence[Item], *, by_content: bool, over_ranks: bool, may_fail: bool) -> list[_Name]:
    """A name of each item; each rank looks at its share of them."""
    first, step = (rank(), world_size()) if over_ranks else (0, 1)
    own = []
    for number in range(first, len(items), step):
        try:
            item = items[number]  # may be opened here, and is let go
            own.append(_Name(item_digest(item, by_content=by_content), _length(item)))
        except DataError as error:
            if not may_fail:
                raise
            own.append(_Name(f"unreadable {number}".encode(), fault=str(error)))
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
    try:
        part = _encode(work, items, missing)
    except DataError:
        if work.faults is None:
            raise
        missing = [(key, number) for key, number in missing if _is_readable(work, work.faults, key, items, number)]
        part = _encode(work, items, missing)
    if part is not None:
        if shelf is not None:
            shelf.put([digest for (_, digest), _ in missing], part)
        rows |= {key: (part, row) for row, (key, _) in enumerate(missing)}
    return rows


def _is_readable(work: _Pass, faults: dict[tuple[ThinkMode, bytes], str], key: tuple[ThinkMode, bytes], items: Sequence[Item], number: int) -> bool:
    """Whether a prompt can be made of an item; else why not is noted."""
    try:
        work.model.processor.inputs([items[number]])
    except DataError as error:
        faults[key] = str(error)
    return key not in faults


def _encode(work: _Pass, items: Sequence[Item], chosen: Sequence[tuple[tuple[ThinkMode, bytes], int]]) -> EncodedItems | None:
    """The rows of some items, given by key and number; None for none."""
    if not chosen:
        return None
    started = time.perf_counter()
    generator = work.generator
    if generator is None and work.decoding.temperature > 0.0:
        seed = hashlib.blake2b(b"".join(digest for (_, digest), _ in chosen), digest_size=7).digest()
        generator = torch.Generator(work.device).manual_seed(int.from_bytes(seed, "big"))
    batches = prompt_batches(work.model.processor, (items[number] for _, number in chosen), max_tokens=work.max_batch_tokens)
    rows = joined_rows([_encode_batch(work, batch.to(work.device), generator) for batch in batches])
    return dataclasses.replace(rows, seconds=time.perf_counter() - started)


def _encode_batch(work: _Pass, inputs: Inputs, generator: torch.Generator | None) -> EncodedItems:
    with autocasting(work.device, work.autocast):
        encoded = work.model.encode(inputs, think=work.think, decoding=work.decoding, generator=generator, writer=work.writer)
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


def _stacked(places: Sequence[tuple[EncodedItems, int]], think: ThinkMode, *, width: int, state_width: int | None = None) -> EncodedItems:
    """One row after the other, each from the batch it was encoded in."""
    if not places:
        return nothing_encoded(width=width, with_generative=think != "never", state_width=state_width)
    return EncodedItems(
        discriminative=torch.stack([part.discriminative[row] for part, row in places]),
        generative=None if think == "never" else torch.stack([part.generative[row] for part, row in places if part.generative is not None]),
        gate_probability=torch.stack([part.gate_probability[row] for part, row in places]),
        num_reasoning_tokens=torch.stack([part.num_reasoning_tokens[row] for part, row in places]),
        thoughts=tuple(part.thoughts[row] for part, row in places),
        seconds=sum(part.seconds / len(part) for part, _ in places),
        thought=torch.stack([part.thought[row] for part, row in places]),
        state=None if state_width is None else torch.stack([part.state[row] for part, row in places if part.state is not None]),
    )


def _spread(rows: EncodedItems, places: Sequence[int], *, num_rows: int) -> EncodedItems:
    """Rows at their places among so many; the others are zero."""
    thoughts = [""] * num_rows
    for place, thought in zip(places, rows.thoughts, strict=True):
        thoughts[place] = thought
    index = torch.tensor(places, dtype=torch.long)
    spread = {name: tensor.new_zeros(num_rows, *tensor.shape[1:]).index_copy(0, index, tensor) for name, tensor in rows.tensors().items()}
    return dataclasses.replace(rows, **spread, thoughts=tuple(thoughts))  # type: ignore[arg-type]


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
    except BROKEN_PICTURE:
        return 0  # its batch says what is wrong with it
