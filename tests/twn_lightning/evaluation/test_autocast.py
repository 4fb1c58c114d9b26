"""Encoding and labelling in the precision that a run trains with: 16 bits in the passes, float32 in what is made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args, get_type_hints

import pytest
import torch

from twn_lightning.batches import Item, PairBatch
from twn_lightning.configs.run import TrainerConfig
from twn_lightning.evaluation.encode import AUTOCAST, encode_items
from twn_lightning.evaluation.evaluate import evaluate_task
from twn_lightning.evaluation.self_label import self_label
from twn_lightning.evaluation.task import Query, RetrievalTask
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.outputs import Decoding

SHORT = Decoding(max_new_tokens=4)
ItemMaker = Callable[[int], list[Item]]


def test_every_precision_of_the_trainer_is_known() -> None:
    assert set(AUTOCAST) == set(get_args(get_type_hints(TrainerConfig)["precision"]))


def test_bfloat16_changes_vectors_slightly_and_leaves_them_float32_unit_rows(tiny_model: DualLoRAModel, make_items: ItemMaker) -> None:
    items = make_items(5)
    exact = encode_items(tiny_model, items, batch_size=3, think="never")
    rounded = encode_items(tiny_model, items, batch_size=3, think="never", autocast=AUTOCAST["bf16-mixed"])
    assert rounded.discriminative.dtype == torch.float32
    assert torch.allclose(rounded.discriminative.norm(dim=1), torch.ones(5), atol=1e-5)
    difference = (exact.discriminative - rounded.discriminative).abs().max()
    assert 1e-4 < float(difference) < 0.2  # eight bits of mantissa through three layers
    assert not torch.is_autocast_enabled("cpu")
    assert torch.equal(
        encode_items(tiny_model, items, batch_size=3, think="never", autocast=AUTOCAST["32-true"]).discriminative, exact.discriminative
    )


def test_the_passes_run_in_the_type_that_was_asked_for(tiny_model: DualLoRAModel, make_items: ItemMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[bool, torch.dtype]] = set()
    decode_layers = tiny_model.backbone.decode_layers

    def watched(*arguments: object) -> torch.Tensor:
        seen.add((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return decode_layers(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(tiny_model.backbone, "decode_layers", watched)
    queries = [Query(item, {"0": 1.0}, None, str(number)) for number, item in enumerate(make_items(3))]
    task = RetrievalTask("toy", "image", "IMG_RET", "hit@1", "global", queries, {str(number): Item(text=str(number)) for number in range(3)})
    result = evaluate_task(tiny_model, task, batch_size=4, decoding=SHORT, autocast=torch.bfloat16)
    assert seen == {(True, torch.bfloat16)}
    assert all(0.0 <= figures.score <= 100.0 for figures in result.modes.values())


def test_labels_come_from_passes_in_bfloat16_and_gains_in_float32(tiny_model: DualLoRAModel, make_items: ItemMaker) -> None:
    processor, items = tiny_model.processor, make_items(4)
    batch = PairBatch(processor.inputs(items), processor.inputs(items[::-1]), torch.arange(4), "toy", tuple("abcd"))
    exact = self_label(tiny_model, [batch], decoding=SHORT, temperature=1.0)
    rounded = self_label(tiny_model, [batch], decoding=SHORT, temperature=1.0, autocast=torch.bfloat16)
    assert rounded.gain.dtype == rounded.state.dtype == torch.float32
    assert not torch.equal(exact.state, rounded.state)
    assert torch.allclose(exact.state, rounded.state, atol=0.5, rtol=0.1)
    assert bool((rounded.gain.bfloat16().float() != rounded.gain).any())  # not rounded to 16 bits themselves
