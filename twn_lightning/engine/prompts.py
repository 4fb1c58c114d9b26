"""Prompts of many inputs: in batches of similar length, made ahead of the model, whatever is broken among them set aside."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace

from PIL import Image

from twn_lightning.batches import ImageSource, Inputs, Item
from twn_lightning.errors import DataError
from twn_lightning.media import BROKEN_PICTURE
from twn_lightning.models.backbones.base import Processor

log = logging.getLogger(__name__)

_CHARACTERS_A_TOKEN = 4
_CHARACTERS_KEPT = 32
"""Of a text that is cut, for each token that is allowed: more than any token has on the average."""
_MOST_PIXELS = 4096 * 4096
_FRAME_PIXELS = 640 * 360
"""Of a clip's file, which is not opened to find out."""


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts, and what became of the inputs that are not in it.

    Attributes:
        numbers: Of the inputs, one for each prompt.
        inputs: Their prompts; None if every input failed.
        errors: Number of an input → why it has no prompt.
        truncated: Numbers of inputs whose text was cut.
    """

    numbers: tuple[int, ...]
    inputs: Inputs | None
    errors: Mapping[int, str] = field(default_factory=dict)
    truncated: tuple[int, ...] = ()


def ordered_by_length(items: Mapping[int, Item], processor: Processor) -> list[tuple[int, int]]:
    """Number and estimated tokens of each input, the longest first.

    Args:
        items: By their numbers.
        processor: Whose limits bound a picture.
    """
    lengths = [(number, _estimated_tokens(item, processor)) for number, item in items.items()]
    return sorted(lengths, key=lambda entry: (-entry[1], entry[0]))


def grouped(lengths: Sequence[tuple[int, int]], *, max_rows: int, max_tokens: int | None) -> list[list[int]]:
    """Numbers in groups for one batch each.

    Args:
        lengths: As `ordered_by_length` gives them.
        max_rows: Of a group, at most.
        max_tokens: Estimated tokens of a group, padding included, at most; a single longer input is a group of its own. None for no limit.
    """
    groups: list[list[int]] = []
    room = 0
    for number, length in lengths:
        if not room:
            room = max_rows if max_tokens is None else max(1, min(max_rows, max_tokens // max(1, length)))
            groups.append([])
        groups[-1].append(number)
        room -= 1
    return groups


def prompts_ahead(
    processor: Processor, items: Mapping[int, Item], groups: Sequence[Sequence[int]], *, max_prompt_tokens: int, num_ahead: int = 2
) -> Generator[Prompts, None, None]:
    """Prompts of each group in order; the next ones are made, in a thread, while the model reads one.

    Args:
        processor: Makes them.
        items: By their numbers.
        groups: Of numbers.
        max_prompt_tokens: A longer prompt's text is cut at its end.
        num_ahead: Groups that are made ahead.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="twn-prompts") as pool:
        waiting: deque[Future[Prompts]] = deque()
        remaining = iter(groups)
        try:
            while True:
                while len(waiting) < num_ahead and (group := next(remaining, None)) is not None:
                    chosen = {number: items[number] for number in group}
                    waiting.append(pool.submit(make_prompts, processor, chosen, max_prompt_tokens=max_prompt_tokens))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def make_prompts(processor: Processor, items: Mapping[int, Item], *, max_prompt_tokens: int) -> Prompts:
    """Prompts of some inputs; an input that cannot be read costs the others nothing.

    Args:
        processor: Makes them.
        items: By their numbers; at least one.
        max_prompt_tokens: A longer prompt's text is cut at its end.
    """
    good = dict(items)
    errors: dict[int, str] = {}
    made = _try(processor, list(good.values()))
    if isinstance(made, DataError):
        for number, item in items.items():
            alone = made if len(items) == 1 else _try(processor, [item])
            if isinstance(alone, DataError):
                errors[number] = str(alone)
                del good[number]
        if not good:
            return Prompts((), None, errors)
        made = processor.inputs(list(good.values()))
    if made.input_ids.shape[1] <= max_prompt_tokens:
        return Prompts(tuple(good), made, errors)
    truncated: list[int] = []
    for number, length in zip(tuple(good), made.attention_mask.sum(dim=1).tolist(), strict=True):
        if length > max_prompt_tokens:
            cut = _cut(processor, good[number], max_prompt_tokens=max_prompt_tokens)
            if isinstance(cut, str):
                errors[number] = cut
                del good[number]
            else:
                good[number] = cut
                truncated.append(number)
    return Prompts(tuple(good), processor.inputs(list(good.values())) if good else None, errors, tuple(truncated))


def _try(processor: Processor, items: Sequence[Item]) -> Inputs | DataError:
    try:
        return processor.inputs(items)
    except DataError as error:
        return error
    except Exception as error:
        log.debug("an input failed", exc_info=True)
        return DataError(f"It cannot be made into a prompt ({type(error).__name__}: {error}): mend it, or leave it out.")


def _cut(processor: Processor, item: Item, *, max_prompt_tokens: int) -> Item | str:
    """The item with as much of its text as fits, or why that is not possible."""
    bare = processor.inputs([replace(item, text=".")]).input_ids.shape[1]
    text = item.text[: _CHARACTERS_KEPT * max_prompt_tokens]  # before all of a book is read several times
    length = processor.inputs([replace(item, text=text)]).input_ids.shape[1]
    while length > max_prompt_tokens:
        share = (max_prompt_tokens - bare) / max(1, length - bare)
        text = text[: int(len(text) * min(share, 0.99))].rstrip()
        if not text:
            return (
                f"The prompt has {bare} tokens without its text, and {max_prompt_tokens} are allowed: give fewer or smaller pictures, or raise "
                "max_prompt_tokens."
            )
        length = processor.inputs([replace(item, text=text)]).input_ids.shape[1]
    return replace(item, text=text)


def _estimated_tokens(item: Item, processor: Processor) -> int:
    """About how long the prompt will be; only batches depend on it, never what is read."""
    options = processor.options
    low, high = options.min_pixels or 0, options.max_pixels or _MOST_PIXELS

    def tokens(pixels: int) -> int:
        return min(max(pixels, low), high) // processor.pixels_per_token + 2

    length = (len(item.text) + len(item.instruction)) // _CHARACTERS_A_TOKEN + sum(tokens(_pixels(picture)) for picture in item.images)
    if item.video is None:
        return length
    frames = min(options.num_frames, len(item.video)) if isinstance(item.video, tuple) else options.num_frames
    frame = _pixels(item.video[0]) if isinstance(item.video, tuple) and item.video else _FRAME_PIXELS
    return length + tokens(frame) * frames // 2


def _pixels(picture: ImageSource) -> int:
    """Of a file by its header."""
    if isinstance(picture, Image.Image):
        return picture.width * picture.height
    try:
        with Image.open(picture) as opened:
            return opened.width * opened.height
    except BROKEN_PICTURE:
        return 0  # what is wrong with it is said where it is read
