"""Thinking as it is done without this project: generate a thought for every input, then encode prompt and thought anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from experiments.bench.subjects import Subject
from twn_lightning.batches import Inputs, Item, Thoughts
from twn_lightning.engine.prompts import grouped, ordered_by_length, prompts_ahead
from twn_lightning.models.columns import at_column, last_column

_LONGEST = 1 << 20


@dataclass(frozen=True)
class Generated:
    """What the baseline gives.

    Attributes:
        vectors: Unit rows in the order of the inputs, float32 on the CPU, ``(N, D)``.
        thoughts: Of each input.
    """

    vectors: Tensor
    thoughts: tuple[str, ...]


class GenerateThenReencode:
    """transformers' ``generate`` on the reasoning adapter's weights, then a second pass over prompt and thought, pictures and all (as UME-R1).

    It has every chance: the adapter is merged into the weights, so that no pass computes it; batches are sorted by length, their prompts are made
    ahead in a thread, padded left; ``generate`` keeps its KV cache and writes greedily until every row of a batch has closed its thought. The
    vector is the last token's state, without the queries that the encoder runs.

    Args:
        subject: Whose weights, decoding and device.
        batch_size: Rows.
    """

    def __init__(self, subject: Subject, *, batch_size: int) -> None:
        model = subject.model()
        self._processor = model.processor
        self._decoding = subject.decoding
        self._banned = model.banned
        self._device = subject.device
        self._batch_size = batch_size
        self._model = model.peft.merge_and_unload(adapter_names=["reasoning"])

    @torch.no_grad()
    def encode(self, items: Sequence[Item]) -> Generated:
        """Vectors after a thought of each item."""
        numbered = dict(enumerate(items))
        groups = grouped(ordered_by_length(numbered, self._processor), max_rows=self._batch_size, max_tokens=None)
        vectors: dict[int, Tensor] = {}
        thoughts: dict[int, str] = {}
        for prompts in prompts_ahead(self._processor, numbered, groups, max_prompt_tokens=_LONGEST):
            assert prompts.inputs is not None
            inputs = prompts.inputs.to(self._device)
            written = self._generate(inputs)
            vectors.update(zip(prompts.numbers, self._reencode(inputs, written).float().cpu(), strict=True))
            thoughts.update(zip(prompts.numbers, self._processor.decode(written), strict=True))
        return Generated(torch.stack([vectors[number] for number in numbered]), tuple(thoughts[number] for number in numbered))

    def _generate(self, inputs: Inputs) -> Thoughts:
        opened = torch.full((len(inputs), 1), self._processor.think_open_id, device=self._device)
        columns = _columns(inputs, opened, torch.ones_like(opened))
        close = self._processor.think_close_id
        written: Tensor = self._model.generate(
            **columns,
            max_new_tokens=self._decoding.max_new_tokens,
            do_sample=False,
            eos_token_id=close,
            pad_token_id=self._processor.pad_id,
            logits_processor=[lambda token_ids, scores: scores.masked_fill(self._banned, -torch.inf)],
        )[:, columns["input_ids"].shape[1] :]
        is_close = (written == close).long()
        mask = (is_close.cumsum(dim=1) - is_close == 0).long()
        return Thoughts(torch.cat([opened, written], dim=1), torch.cat([torch.ones_like(opened), mask], dim=1))

    def _reencode(self, inputs: Inputs, thoughts: Thoughts) -> Tensor:
        columns = _columns(inputs, thoughts.token_ids, thoughts.mask)
        hidden = self._model.model(**columns, use_cache=False).last_hidden_state
        return functional.normalize(at_column(hidden, last_column(columns["attention_mask"])).float(), dim=-1)


def _columns(inputs: Inputs, token_ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Arguments of transformers' forward for prompts with text behind them."""
    media = ("pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")
    found = {name: value for name in media if (value := getattr(inputs, name)) is not None}
    return {
        "input_ids": torch.cat([inputs.input_ids, token_ids], dim=1),
        "attention_mask": torch.cat([inputs.attention_mask, mask], dim=1),
        "mm_token_type_ids": torch.cat([inputs.mm_token_type_ids, torch.zeros_like(token_ids)], dim=1),
        **found,
    }
