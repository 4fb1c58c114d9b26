"""Decoding: the log-probabilities, the cache it leaves, and what may not be written."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from twn_lightning.batches import Item
from twn_lightning.errors import ConfigError
from twn_lightning.models import generation
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.generation import pick
from twn_lightning.models.outputs import Decoding, Rollout
from twn_lightning.models.prefix import Prefix, cache_tensors

MakeItems = Callable[[int], list[Item]]


def keys_and_values(prefix: Prefix) -> list[tuple[Tensor, Tensor]]:
    assert prefix.cache is not None
    return cache_tensors(prefix.cache)


def rollout_of(model: DualLoRAModel, items: list[Item], *, max_new_tokens: int = 16, temperature: float = 1.0, seed: int = 3) -> Rollout:
    """Long enough that some rows finish and some do not."""
    prefix = model.prefill(model.processor.inputs(items))
    decoding = Decoding(max_new_tokens=max_new_tokens, temperature=temperature)
    return model.think(prefix, decoding, generator=torch.Generator().manual_seed(seed))


def favour(model: DualLoRAModel, token_id: int, amount: float) -> None:
    """Makes a token more probable everywhere by a hook on the head."""
    head = model.backbone.model.get_submodule("lm_head")

    def raise_score(_module: torch.nn.Module, _args: object, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[..., token_id] += amount
        return output

    head.register_forward_hook(raise_score)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1.7])
def test_rollout_log_probs_are_those_of_the_teacher_forced_pass(tiny_model: DualLoRAModel, make_items: MakeItems, temperature: float) -> None:
    favour(tiny_model, tiny_model.processor.think_close_id, 4.0)
    items = make_items(10)
    rollout = rollout_of(tiny_model, items, temperature=temperature)
    with torch.no_grad():
        again = tiny_model.thought_log_probs(tiny_model.processor.inputs(items), rollout.thoughts)
    assert rollout.log_probs.shape == (10, rollout.thoughts.token_ids.shape[1] - 1)
    assert (rollout.log_probs - again).abs().max() <= 2e-5
    assert (rollout.log_probs * (1 - rollout.thoughts.mask[:, 1:]) == 0).all()


def test_the_cache_after_thinking_is_the_cache_after_extending(tiny_model: DualLoRAModel, make_items: MakeItems) -> None:
    favour(tiny_model, tiny_model.processor.think_close_id, 6.0)
    items = make_items(10)
    rollout = rollout_of(tiny_model, items)
    lengths = rollout.thoughts.mask.sum(dim=1)
    assert len(set(lengths.tolist())) > 2  # ragged
    extended = tiny_model.extend(tiny_model.prefill(tiny_model.processor.inputs(items)), rollout.thoughts)
    assert torch.equal(extended.attention_mask, rollout.prefix.attention_mask)
    assert torch.equal(extended.next_position, rollout.prefix.next_position)
    tokens = extended.attention_mask[:, None, :, None]
    for layer, again in zip(keys_and_values(extended), keys_and_values(rollout.prefix), strict=True):
        for tensor, same in zip(layer, again, strict=True):
            assert ((tensor - same) * tokens).abs().max() <= 1e-4
    assert (tiny_model.embed(extended).vector - tiny_model.embed(rollout.prefix).vector).abs().max() <= 1e-5


def test_positions_after_pictures_are_right_in_every_later_pass(tiny_model: DualLoRAModel, make_items: MakeItems) -> None:
    pictures = [item for item in make_items(10) if item.images or item.video]
    expected = tiny_model.think(tiny_model.prefill(tiny_model.processor.inputs(pictures)), Decoding(max_new_tokens=6))
    prefix = tiny_model.prefill(tiny_model.processor.inputs(pictures))
    tiny_model.prefill(tiny_model.processor.inputs([Item(text="other rows between the two calls")] * len(pictures)))
    between = tiny_model.think(prefix, Decoding(max_new_tokens=6))
    assert torch.equal(expected.thoughts.token_ids, between.thoughts.token_ids)
    assert torch.equal(expected.log_probs, between.log_probs)
    inputs = tiny_model.processor.inputs(pictures)
    deltas = prefix.next_position - inputs.attention_mask.sum(dim=1)
    assert (deltas < 0).any()  # a picture takes fewer positions than tokens
    assert torch.equal(between.prefix.next_position, prefix.next_position + between.thoughts.mask.sum(dim=1))


def test_no_marker_and_no_vision_token_is_ever_written(tiny_model: DualLoRAModel, make_items: MakeItems) -> None:
    banned = tiny_model.processor.banned_ids
    for token_id in banned:
        favour(tiny_model, token_id, 100.0)
    favour(tiny_model, tiny_model.processor.vocabulary_size + 2, 100.0)  # a row of the table that no token uses
    for temperature in (0.0, 2.0):
        written = rollout_of(tiny_model, make_items(10), temperature=temperature).thoughts
        tokens = written.token_ids[:, 1:][written.mask[:, 1:].bool()]
        assert not set(tokens.tolist()) & set(banned)
        assert int(tokens.max()) < tiny_model.processor.vocabulary_size


def test_a_finished_row_stops_and_is_padded(tiny_model: DualLoRAModel, make_items: MakeItems) -> None:
    processor = tiny_model.processor
    favour(tiny_model, processor.think_close_id, 6.0)
    rollout = rollout_of(tiny_model, make_items(10))
    for tokens, mask, finished in zip(rollout.thoughts.token_ids, rollout.thoughts.mask, rollout.finished, strict=True):
        real = tokens[: int(mask.sum())]
        assert tokens[0] == processor.think_open_id
        assert (real == processor.think_close_id).sum() == int(finished)
        assert bool(real[-1] == processor.think_close_id) == bool(finished)
        assert (tokens[len(real) :] == processor.pad_id).all()
    assert rollout.finished.any()


def test_decoding_stops_when_all_rows_have(tiny_model: DualLoRAModel, make_items: MakeItems) -> None:
    favour(tiny_model, tiny_model.processor.think_close_id, 1000.0)
    rollout = rollout_of(tiny_model, make_items(4), max_new_tokens=50)
    assert rollout.thoughts.token_ids.shape[1] == 2
    assert rollout.prefix.attention_mask[:, -1].tolist() == [1] * 4  # the closing marker is in the cache


def test_what_a_row_writes_does_not_depend_on_when_finished_rows_are_left_out(
    tiny_model: DualLoRAModel, make_items: MakeItems, monkeypatch: pytest.MonkeyPatch
) -> None:
    favour(tiny_model, tiny_model.processor.think_close_id, 3.5)
    sizes: list[int] = []
    tiny_model.backbone.model.get_submodule("lm_head").register_forward_hook(lambda _module, _args, output: sizes.append(output.shape[0]))
    expected = rollout_of(tiny_model, make_items(16), max_new_tokens=40)  # longer than the room that a cache layer adds at a time
    assert sizes[0] == 16
    assert sizes[-1] <= 2  # most rows had finished, and were left out
    assert expected.thoughts.token_ids.shape[1] > 20
    for look_every in (7, 100):
        sizes.clear()
        monkeypatch.setattr(generation, "_LOOK_EVERY", {"cpu": look_every})
        rollout = rollout_of(tiny_model, make_items(16), max_new_tokens=40)
        assert (look_every < 100) == (sizes[-1] < 16)
        assert torch.equal(rollout.thoughts.token_ids, expected.thoughts.token_ids)
        assert torch.equal(rollout.thoughts.mask, expected.thoughts.mask)
        assert torch.equal(rollout.finished, expected.finished)
        assert (rollout.log_probs - expected.log_probs).abs().max() <= 1e-5
        assert (tiny_model.embed(rollout.prefix).vector - tiny_model.embed(expected.prefix).vector).abs().max() <= 1e-5


def test_sampling_repeats_with_its_seed_and_differs_with_another(tiny_model: DualLoRAModel, make_items: MakeItems) -> None:
    first, again, other = (rollout_of(tiny_model, make_items(4), seed=seed).thoughts.token_ids for seed in (5, 5, 6))
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_top_p_keeps_the_smallest_set_with_that_probability() -> None:
    log_probs = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(400, -1)
    chance = torch.arange(400, dtype=torch.float64) / 400
    drawn = {top_p: set(pick(log_probs, Decoding(temperature=1.0, top_p=top_p), chance).tolist()) for top_p in (0.4, 0.7, 0.9, 1.0)}
    assert drawn == {0.4: {0}, 0.7: {0, 1}, 0.9: {0, 1, 2}, 1.0: {0, 1, 2, 3}}


@pytest.mark.parametrize("values", [{"max_new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}])
def test_decoding_out_of_range_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="must be at least 1"):
        Decoding(**values)  # type: ignore[arg-type]
