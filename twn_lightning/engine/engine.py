"""The adaptive engine: every prompt is read once, in full batches; those whose gate says so go on to think, in full batches of their own."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from twn_lightning.batches import Inputs, Item, Thoughts
from twn_lightning.engine.memory import TooLargeError, noticing_memory
from twn_lightning.engine.prompts import grouped, ordered_by_length, prompts_ahead
from twn_lightning.engine.table import Table
from twn_lightning.engine.thinking import ThinkingDesk, Written, seed_of
from twn_lightning.evaluation.encoded import ThinkMode
from twn_lightning.models.outputs import Decoding
from twn_lightning.models.pieces import piece_of, rows_by_length
from twn_lightning.models.prefix import Prefix

if TYPE_CHECKING:
    from twn_lightning.models.dual_lora import DualLoRAModel

log = logging.getLogger(__name__)

Progress = Callable[[int], None]
"""Called with how many more inputs are done."""


@dataclass(frozen=True)
class Limits:
    """How much runs together. None of it changes a vector by more than rounding.

    Attributes:
        max_rows: Prompts read together, at most.
        max_tokens: Of those, padding included, at most; a single longer prompt is read alone. None for no limit.
        max_prompt_tokens: A longer prompt's text is cut.
        max_thinking_rows: Thoughts written together, at most.
        max_thinking_tokens: Columns of their caches, at most, thoughts included. None for no limit.
    """

    max_rows: int
    max_tokens: int | None
    max_prompt_tokens: int
    max_thinking_rows: int
    max_thinking_tokens: int | None

    @classmethod
    def automatic(cls, device: torch.device, *, max_prompt_tokens: int) -> Limits:
        """What suits a device: caches shape the CPU's, arithmetic an accelerator's."""
        if device.type == "cpu":
            return cls(64, 4096, max_prompt_tokens, 64, 16384)
        return cls(512, 16384, max_prompt_tokens, 128, 65536)

    @classmethod
    def of_rows(cls, rows: int, *, max_prompt_tokens: int) -> Limits:
        """So many rows at a time, whatever their length."""
        return cls(rows, None, max_prompt_tokens, rows, None)


def encode_adaptively(
    model: DualLoRAModel,
    items: Mapping[int, Item],
    table: Table,
    *,
    think: ThinkMode,
    threshold: float,
    decoding: Decoding,
    limits: Limits,
    progress: Progress | None = None,
) -> None:
    """Encodes inputs of whatever number, length and kind.

    Args:
        model: In evaluation mode; not used by anything else meanwhile.
        items: By their rows of the table.
        table: Gets the rows, and why some stay empty.
        think: "auto" lets the gate decide for each input.
        threshold: Probability from which an input thinks, for "auto".
        decoding: How thoughts are written; a sampled thought depends on its prompt alone.
        limits: How much runs together.
        progress: Told when inputs are done.

    Raises:
        DataError: An input cannot be read, and the table stops at errors.
        TooLargeError: A single thought does not fit into memory.
    """
    run = _Run(model, table, think=think, threshold=threshold, decoding=decoding, limits=limits, progress=progress or (lambda done: None))
    groups = grouped(ordered_by_length(items, model.processor), max_rows=limits.max_rows, max_tokens=limits.max_tokens)
    ahead = prompts_ahead(model.processor, items, groups, max_prompt_tokens=limits.max_prompt_tokens)
    with torch.no_grad(), _precision(model), contextlib.closing(ahead):  # no file is read any more when an error stops the work
        for prompts in ahead:
            run.fail(prompts.errors)
            table.truncated.update(prompts.truncated)
            if prompts.inputs is not None:
                run.read(prompts.numbers, prompts.inputs)
        run.finish()


class _Run:
    """The state of one call; see `encode_adaptively`."""

    def __init__(
        self, model: DualLoRAModel, table: Table, *, think: ThinkMode, threshold: float, decoding: Decoding, limits: Limits, progress: Progress
    ) -> None:
        self._model = model
        self._table = table
        self._think = think
        self._threshold = threshold
        self._decoding = decoding
        self._max_tokens = limits.max_tokens
        self._progress = progress
        self._desk = ThinkingDesk(
            model, decoding, max_rows=limits.max_thinking_rows, max_tokens=limits.max_thinking_tokens, on_written=self._embed_written
        )

    def fail(self, errors: Mapping[int, str]) -> None:
        """Notes inputs that have no vector."""
        self._table.fail(errors)
        self._progress(len(errors))

    def read(self, numbers: Sequence[int], inputs: Inputs) -> None:
        """Discriminative vectors and gate of a batch; thoughts of those that think when there are enough of them."""
        for rows in rows_by_length(inputs, max_tokens=self._max_tokens):
            whole = len(rows) == len(inputs)
            self._read_piece(numbers if whole else [numbers[row] for row in rows.tolist()], inputs if whole else piece_of(inputs, rows))
            self._desk.advance(to_the_end=False)

    def finish(self) -> None:
        """The thoughts that are still being written."""
        self._desk.advance(to_the_end=True)

    def _read_piece(self, numbers: Sequence[int], inputs: Inputs) -> None:
        try:
            with noticing_memory():
                self._read_rows(numbers, inputs.to(self._model.device))
        except TooLargeError as error:
            if len(numbers) == 1:
                columns = inputs.input_ids.shape[1]
                self.fail(
                    {numbers[0]: f"Its prompt of {columns} tokens does not fit into memory ({error}): make it shorter, or its pictures smaller."}
                )
                return
            half = (len(numbers) + 1) // 2
            self._max_tokens = half * inputs.input_ids.shape[1]
            log.warning("A batch of %d prompts does not fit into memory: going on with %d tokens at a time.", len(numbers), self._max_tokens)
            for part in torch.split(torch.arange(len(numbers)), half):
                self._read_piece([numbers[row] for row in part.tolist()], piece_of(inputs, part))

    def _read_rows(self, numbers: Sequence[int], inputs: Inputs) -> None:
        model = self._model
        prefix = model.prefill(inputs)
        embedding = model.embed(prefix)
        probability = model.gate.probability(model.gate.reading(embedding))
        thinks = {
            "never": torch.zeros_like(probability, dtype=torch.bool),
            "always": torch.ones_like(probability, dtype=torch.bool),
            "auto": probability >= self._threshold,
        }[self._think]
        rows = thinks.nonzero().squeeze(1)
        if len(rows):  # first: a batch that does not fit leaves nothing behind
            thinking = prefix if len(rows) == len(prefix) else prefix.select(rows)
            self._let_think(thinking, [numbers[row] for row in rows.tolist()], inputs.input_ids[rows])
        self._table.read(torch.tensor(numbers), vector=embedding.vector, probability=probability, thinks=thinks)
        self._progress(len(numbers) - len(rows))

    def _let_think(self, prefix: Prefix, numbers: Sequence[int], token_ids: Tensor) -> None:
        is_sampled = self._decoding.temperature > 0.0
        seeds = [row[row != self._model.processor.pad_id].cpu().numpy().tobytes() for row in token_ids] if is_sampled else []
        if prefix.cache is not None:
            self._desk.add(prefix, numbers, seeds)
            return
        # The thought is read anew together with its prompt, which no other batch has: it is written here.
        every = torch.arange(len(prefix), device=token_ids.device)
        for rows in torch.split(every, 1 if is_sampled else len(prefix)):
            generator = torch.Generator(token_ids.device).manual_seed(seed_of(seeds[int(rows)])) if is_sampled else None
            rollout = self._model.think(prefix.select(rows), self._decoding, generator=generator)
            self._note([numbers[row] for row in rows.tolist()], rollout.thoughts, self._model.embed(rollout.prefix).vector)

    def _embed_written(self, written: Written) -> None:
        try:
            with noticing_memory():
                vector = self._model.embed(written.prefix).vector
        except TooLargeError:
            if len(written.numbers) == 1:
                raise
            every = torch.arange(len(written.numbers), device=written.prefix.attention_mask.device)
            for rows in every.tensor_split(2):
                chosen = tuple(written.numbers[row] for row in rows.tolist())
                self._embed_written(Written(chosen, written.thoughts.select(rows), written.prefix.select(rows)))
            return
        self._note(written.numbers, written.thoughts, vector)

    def _note(self, numbers: Sequence[int], thoughts: Thoughts, vector: Tensor) -> None:
        texts = self._model.processor.decode(thoughts)
        self._table.think(torch.tensor(numbers), vector=vector, num_tokens=thoughts.num_reasoning_tokens, texts=texts)
        self._progress(len(numbers))


def _precision(model: DualLoRAModel) -> AbstractContextManager[object]:
    """Adapters are kept in float32: over a backbone in less they run in its precision."""
    dtype = model.backbone.model.dtype
    return contextlib.nullcontext() if dtype == torch.float32 else torch.autocast(model.device.type, dtype=dtype)
