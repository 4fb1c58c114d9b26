"""Continuous batches of chains of thought: a row that has finished leaves, and a row that waits takes its place."""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from twn_lightning.batches import Thoughts
from twn_lightning.engine.memory import TooLargeError, noticing_memory
from twn_lightning.models.backbones.base import Prompt
from twn_lightning.models.generation import log_softmax_of_allowed, pick
from twn_lightning.models.outputs import Decoding
from twn_lightning.models.prefix import Prefix, cut_columns, joined_prefixes, mapped_cache, roomy_cache, trimmed

if TYPE_CHECKING:
    from twn_lightning.models.dual_lora import DualLoRAModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Written:
    """Rows whose thoughts are complete.

    Attributes:
        numbers: Of the inputs.
        thoughts: Theirs.
        prefix: What the queries read: prompts and thoughts.
    """

    numbers: tuple[int, ...]
    thoughts: Thoughts
    prefix: Prefix


@dataclass
class _Desk:
    """Rows that are being written together. Each row's prompt and thought are a run of columns that ends at the last one.

    Attributes:
        numbers: Of the inputs.
        prefix: Its mask and its cache grow by a column a step; its next position is that of the opening marker.
        tokens: What was written so far, from the opening marker, ``(B, most + 1)``.
        chance: Of each token to come, ``(B, most)``.
        count: Tokens after the opening marker so far, ``(B,)``.
        writing: Rows that have not finished, bool ``(B,)``.
    """

    numbers: list[int]
    prefix: Prefix
    tokens: Tensor
    chance: Tensor
    count: Tensor
    writing: Tensor

    def select(self, rows: Tensor) -> _Desk:
        """The given rows, and the columns that they use."""
        return _Desk(
            numbers=[self.numbers[row] for row in rows.tolist()],
            prefix=trimmed(self.prefix.select(rows)),
            tokens=self.tokens[rows],
            chance=self.chance[rows],
            count=self.count[rows],
            writing=self.writing[rows],
        )


class ThinkingDesk:
    """Writes thoughts for rows that come in whatever portions, in batches that stay as full as what waits allows.

    Only for the interface "kv", where a thought's cache is what the queries read.

    Args:
        model: In evaluation mode.
        decoding: How tokens are chosen. A sampled token depends on its row's prompt alone, not on the batch.
        max_rows: Rows written together, at most.
        max_tokens: Columns of all of them together, at most; a single longer row is written alone. None for no limit.
        on_written: Gets finished rows.
    """

    def __init__(
        self, model: DualLoRAModel, decoding: Decoding, *, max_rows: int, max_tokens: int | None, on_written: Callable[[Written], None]
    ) -> None:
        self._model = model
        self._decoding = decoding
        self._max_rows = max_rows
        self._max_tokens = max_tokens
        self._on_written = on_written
        self._waiting: deque[_Desk] = deque()
        self._desk: _Desk | None = None

    def add(self, prefix: Prefix, numbers: Sequence[int], seeds: Sequence[bytes]) -> None:
        """Rows that want to think.

        Args:
            prefix: Prompts without thoughts, with a cache.
            numbers: Of the inputs.
            seeds: What each row's chance comes from.
        """
        most = self._decoding.max_new_tokens
        device = prefix.attention_mask.device
        tokens = torch.full((len(prefix), most + 1), self._model.processor.pad_id, device=device)
        tokens[:, 0] = self._model.processor.think_open_id
        chance = torch.zeros(len(prefix), most, dtype=torch.float64)
        if self._decoding.temperature:
            for row, seed in enumerate(seeds):
                chance[row].uniform_(generator=torch.Generator().manual_seed(seed_of(seed)))
        count = torch.zeros(len(prefix), dtype=torch.long, device=device)
        self._waiting.append(_Desk(list(numbers), prefix, tokens, chance.to(device), count, torch.ones_like(count, dtype=torch.bool)))

    def advance(self, *, to_the_end: bool) -> None:
        """Writes.

        Args:
            to_the_end: Until every row has finished. False: only while rows wait that could not all be written at once.
        """
        while self._desk is not None or self._waiting:
            if not (to_the_end or self._is_full()):
                return
            self._seat()
            try:
                with noticing_memory():
                    self._write()
            except TooLargeError as error:
                self._shrink(error)
            else:
                self._let_go()

    def _is_full(self) -> bool:
        """Whether there are as many rows, or as many columns, as may be written at once."""
        desks = [*self._waiting, *([] if self._desk is None else [self._desk])]
        rows = sum(len(desk.numbers) for desk in desks)
        columns = sum(desk.prefix.attention_mask.numel() for desk in desks) + rows * self._decoding.max_new_tokens
        return rows >= self._max_rows or (self._max_tokens is not None and columns >= self._max_tokens)

    def _seat(self) -> None:
        """Fills the free places."""
        seated = [] if self._desk is None else [self._desk]
        rows = sum(len(desk.numbers) for desk in seated)
        width = max((desk.prefix.attention_mask.shape[1] for desk in seated), default=0)
        while self._waiting and rows < self._max_rows:
            first = self._waiting[0]
            wider = max(width, first.prefix.attention_mask.shape[1] + self._decoding.max_new_tokens + 1)
            places = self._max_rows - rows
            if self._max_tokens is not None:
                places = min(places, self._max_tokens // wider - rows)
            if places < 1 and rows:
                break
            places = max(1, places)
            self._waiting.popleft()
            if places < len(first.numbers):
                every = torch.arange(len(first.numbers), device=first.tokens.device)
                self._waiting.appendleft(first.select(every[places:]))
                first = first.select(every[:places])
            seated.append(first)
            rows, width = rows + len(first.numbers), wider
        self._desk = _joined(seated)

    def _write(self) -> None:
        """Token by token, until enough rows have finished that it pays to let others take their places."""
        desk, decoding, backbone = self._desk, self._decoding, self._model.backbone
        assert desk is not None
        assert desk.prefix.cache is not None
        rows = torch.arange(len(desk.numbers), device=desk.tokens.device)
        close, most = self._model.processor.think_close_id, decoding.max_new_tokens
        cache, mask, first_position = roomy_cache(desk.prefix.cache), desk.prefix.attention_mask, desk.prefix.next_position
        look_every = 1 if rows.device.type == "cpu" else 8
        enough = max(1, len(rows) // 4)
        step = 0
        try:
            with self._model.reasoning_pass():
                while True:
                    step += 1
                    token, position = desk.tokens[rows, desk.count], first_position + desk.count
                    grown = torch.cat([mask, desk.writing[:, None].to(mask.dtype)], dim=1)
                    column = Prompt(backbone.embed_tokens(token[:, None]), position[None, :, None].expand(3, -1, -1), next_position=position + 1)
                    hidden = backbone.decode_layers(column, grown, cache)[:, 0]
                    scores = log_softmax_of_allowed(backbone.logits(hidden), self._model.banned)
                    chosen = pick(scores, decoding, desk.chance[rows, desk.count.clamp(max=most - 1)])
                    writing = desk.writing & (token != close) & (desk.count < most)
                    mask, desk.writing, desk.count = grown, writing, desk.count + writing
                    desk.tokens[rows, desk.count] = torch.where(writing, chosen, desk.tokens[rows, desk.count])
                    if step % look_every == 0 and len(rows) - int(writing.sum()) >= enough:
                        break
        finally:  # memory may have run out in some layer of a step: what the steps before it have written is whole
            cut_columns(cache, mask.shape[1])
            desk.prefix = replace(desk.prefix, attention_mask=mask, cache=mapped_cache(cache, lambda tensor: tensor))

    def _let_go(self) -> None:
        """Gives the rows that have finished away and keeps the others."""
        desk = self._desk
        assert desk is not None
        finished, writing = (~desk.writing).nonzero().squeeze(1), desk.writing.nonzero().squeeze(1)
        done = desk.select(finished)
        self._desk = desk.select(writing) if len(writing) else None
        length = done.count + 1
        kept = torch.arange(int(length.max()), device=length.device)[None, :] < length[:, None]
        token_ids = done.tokens[:, : kept.shape[1]].masked_fill(~kept, self._model.processor.pad_id)
        thoughts = Thoughts(token_ids, kept.long())
        prefix = replace(done.prefix, next_position=done.prefix.next_position + length, thoughts=thoughts)
        self._on_written(Written(tuple(done.numbers), thoughts, prefix))

    def _shrink(self, error: TooLargeError) -> None:
        """Lets half of the rows wait until the others have finished.

        Raises:
            TooLargeError: A single row is too much.
        """
        desk = self._desk
        assert desk is not None
        if len(desk.numbers) == 1:
            raise error
        self._max_rows = len(desk.numbers) // 2
        log.warning("Writing %d thoughts at once does not fit into memory: going on with %d.", len(desk.numbers), self._max_rows)
        every = torch.arange(len(desk.numbers), device=desk.tokens.device)
        self._waiting.appendleft(desk.select(every[self._max_rows :]))
        self._desk = desk.select(every[: self._max_rows])


def seed_of(content: bytes) -> int:
    """A generator's seed that depends on content alone."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=7).digest(), "big")


def _joined(desks: Sequence[_Desk]) -> _Desk:
    if len(desks) == 1:
        return desks[0]
    return _Desk(
        numbers=[number for desk in desks for number in desk.numbers],
        prefix=joined_prefixes([desk.prefix for desk in desks]),
        tokens=torch.cat([desk.tokens for desk in desks]),
        chance=torch.cat([desk.chance for desk in desks]),
        count=torch.cat([desk.count for desk in desks]),
        writing=torch.cat([desk.writing for desk in desks]),
    )
