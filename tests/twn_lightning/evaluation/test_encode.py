"""Batches that keep to a number of tokens, and items that are opened as they are asked for."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from twn_lightning.batches import Inputs, Item
from twn_lightning.errors import DataError
from twn_lightning.evaluation.encode import EncodedItems, encode_items
from twn_lightning.evaluation.encode_batches import joined_prompts, prompt_batches
from twn_lightning.evaluation.evaluate import evaluate_task
from twn_lightning.evaluation.task import Query, RetrievalTask
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.outputs import Decoding

SHORT = Decoding(max_new_tokens=4)
ItemMaker = Callable[[int], list[Item]]


def num_tokens(model: DualLoRAModel, item: Item) -> int:
    return int(model.processor.inputs([item]).attention_mask.sum())


@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_made_one_by_one_are_the_batch_that_the_processor_makes(
    make_model: Callable[..., DualLoRAModel], make_items: ItemMaker, side: str
) -> None:
    processor, items = make_model().processor, make_items(6)
    object.__setattr__(processor.options, "padding_side", side)
    whole = processor.inputs(items)
    joined = joined_prompts(processor, [processor.inputs([item]) for item in items])
    for name in ("input_ids", "attention_mask", "mm_token_type_ids", "images_per_row", "videos_per_row", "image_grid_thw", "video_grid_thw"):
        assert torch.equal(getattr(joined, name), getattr(whole, name)), name
    for name in ("pixel_values", "pixel_values_videos"):
        assert torch.allclose(getattr(joined, name), getattr(whole, name), atol=1e-6), name


def test_no_batch_has_more_tokens_than_it_may_and_a_longer_prompt_goes_alone(tiny_model: DualLoRAModel, make_items: ItemMaker) -> None:
    items = [Item(text="word " * length) for length in (30, 2, 3, 2, 1, 60, 1)]
    lengths = [num_tokens(tiny_model, item) for item in items]
    limit = 3 * lengths[2]
    batches = list(prompt_batches(tiny_model.processor, iter(items), max_tokens=limit))
    assert [len(batch) for batch in batches] == [1, 3, 1, 1, 1]
    assert [batch.input_ids.numel() <= limit or len(batch) == 1 for batch in batches] == [True] * 5
    assert batches[0].input_ids.numel() == lengths[0] > limit
    assert [len(batch) for batch in prompt_batches(tiny_model.processor, items, max_tokens=None)] == [7]


@pytest.mark.parametrize(("batch_size", "max_batch_tokens"), [(1, None), (3, None), (64, None), (64, 60), (3, 100), (64, 1)])
def test_vectors_are_the_same_whatever_is_encoded_together(
    tiny_model: DualLoRAModel, make_items: ItemMaker, batch_size: int, max_batch_tokens: int | None
) -> None:
    items = [*make_items(10), Item(text="a much longer text than the others " * 3)]
    expected = encode_items(tiny_model, items, batch_size=5, decoding=SHORT)
    seen: list[int] = []
    found = encode_items(
        tiny_model,
        items,
        batch_size=batch_size,
        max_batch_tokens=max_batch_tokens,
        decoding=SHORT,
        progress=lambda done, _: seen.append(done),
    )
    assert found.generative is not None
    assert expected.generative is not None
    assert torch.allclose(found.discriminative, expected.discriminative, atol=1e-5)
    assert torch.allclose(found.generative, expected.generative, atol=1e-5)
    assert found.thoughts == expected.thoughts
    assert torch.equal(found.num_reasoning_tokens, expected.num_reasoning_tokens)
    assert seen == sorted(seen)
    assert seen[-1] == len(items)


class Shelf(Mapping[str, Item]):
    """Candidates whose pictures are made when they are asked for; it counts those that are alive."""

    def __init__(self, number: int) -> None:
        self.number, self.alive, self.most, self.opened = number, 0, 0, 0

    def __getitem__(self, key: str) -> Item:
        pixels = np.random.default_rng(int(key)).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        picture = Image.fromarray(pixels)
        self.opened += 1
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(picture, self._closed)
        return Item(images=(picture,))

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and key.isdigit() and int(key) < self.number

    def __iter__(self) -> Iterator[str]:
        return iter(map(str, range(self.number)))

    def __len__(self) -> int:
        return self.number

    def _closed(self) -> None:
        self.alive -= 1


def lazy_task(candidates: Mapping[str, Item], queries: Sequence[str] = ("3", "11")) -> RetrievalTask:
    asked = [Query(Item(text=f"picture {key}"), {key: 1.0}, None, key) for key in queries]
    return RetrievalTask("lazy", "visdoc", "OOD", "ndcg@5", "global", asked, candidates)


def test_a_task_that_opens_its_pictures_when_asked_keeps_a_batch_of_them_at_most(tiny_model: DualLoRAModel) -> None:
    shelf = Shelf(40)
    gc.collect()
    lazy = evaluate_task(tiny_model, lazy_task(shelf), modes=("never",), batch_size=4)
    assert shelf.opened == 80  # once to be named and measured, once in its batch
    assert shelf.most <= 5
    limited = evaluate_task(tiny_model, lazy_task(shelf), modes=("never",), batch_size=40, max_batch_tokens=60)
    assert shelf.most <= 5
    eager = evaluate_task(tiny_model, lazy_task(dict(Shelf(40))), modes=("never",), batch_size=4)
    assert lazy.modes == limited.modes == eager.modes


def test_items_of_a_task_are_sequences(make_items: ItemMaker) -> None:
    task = lazy_task({key: Item(text=key) for key in ("3", "11", "x")})
    assert task.query_items[1].text == "picture 11"
    assert [item.text for item in task.query_items[:1]] == ["picture 3"]
    assert [item.text for item in task.candidate_items[1:]] == ["11", "x"]


def test_sampled_thoughts_are_those_of_the_batch_whenever_it_is_encoded(tiny_model: DualLoRAModel, make_items: ItemMaker) -> None:
    sampled = Decoding(max_new_tokens=6, temperature=1.0)
    items = make_items(6)

    def thoughts(given: Sequence[Item]) -> tuple[str, ...]:
        return encode_items(tiny_model, given, batch_size=3, decoding=sampled).thoughts

    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = thoughts(items)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert thoughts(items) == first
    assert any(first != greedy for greedy in [encode_items(tiny_model, items, batch_size=3, decoding=Decoding(max_new_tokens=6)).thoughts])


def test_a_picture_that_cannot_be_opened_is_named(tiny_model: DualLoRAModel, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(DataError, match="broken.png"):
        encode_items(tiny_model, [Item(images=(broken,))], batch_size=1, think="never")


def test_a_selection_of_rows_has_its_share_of_the_time() -> None:
    rows = EncodedItems(torch.eye(4), None, torch.arange(4.0), torch.arange(4), tuple("abcd"), 8.0, torch.zeros(4, dtype=torch.bool))
    chosen = rows.select(torch.tensor([2, 0]))
    assert (chosen.thoughts, chosen.seconds, chosen.gate_probability.tolist()) == (("c", "a"), 4.0, [2.0, 0.0])
    assert isinstance(rows, EncodedItems)


def test_inputs_of_one_prompt_are_left_alone(tiny_model: DualLoRAModel) -> None:
    prompt: Inputs = tiny_model.processor.inputs([Item(text="a")])
    assert joined_prompts(tiny_model.processor, [prompt]) is prompt
