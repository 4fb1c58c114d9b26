"""What a user of a trained model sees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from twn_lightning.batches import Item
from twn_lightning.checkpoints import save_bundle
from twn_lightning.encoder import Encoder
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.outputs import Decoding

MakeItems = Callable[[int], list[Item]]


@pytest.fixture
def encoder(tiny_model: DualLoRAModel) -> Encoder:
    return Encoder(tiny_model, decoding=Decoding(max_new_tokens=6))


def test_vectors_come_in_order_whatever_the_batch_size(encoder: Encoder, make_items: MakeItems) -> None:
    items = make_items(7)
    one_by_one, together = (encoder.encode(items, think="always", batch_size=size) for size in (1, 7))
    assert one_by_one.shape == (7, 32)
    assert (one_by_one - together).abs().max() <= 1e-5
    assert (encoder.encode(items, think="always", batch_size=3) - together).abs().max() <= 1e-5


def test_a_string_is_an_item_and_one_input_gives_one_vector(encoder: Encoder) -> None:
    single = encoder.encode("a red dot", think="never")
    assert single.shape == (32,)
    assert torch.allclose(single, encoder.encode([Item(text="a red dot")], think="never")[0])


def test_thoughts_and_their_cost_belong_to_their_inputs(encoder: Encoder, make_items: MakeItems) -> None:
    items = make_items(6)
    quiet = encoder.encode(items, think="never", return_thoughts=True)
    assert quiet.thoughts == ("",) * 6
    encoder.model.gate.threshold = float(quiet.gate_probability.median())
    encoding = encoder.encode(items, return_thoughts=True, batch_size=4)
    always = encoder.encode(items, think="always", return_thoughts=True)
    for number in range(6):
        thinks = bool(encoding.gate_probability[number] >= encoder.model.gate.threshold)
        assert bool(encoding.num_reasoning_tokens[number]) == thinks
        assert encoding.thoughts[number] == (always.thoughts[number] if thinks else "")


def test_similarity_is_the_cosine(encoder: Encoder, make_items: MakeItems) -> None:
    vectors = encoder.encode(make_items(3), think="never")
    scores = encoder.similarity(vectors[0], vectors)
    assert scores.shape == (1, 3)
    assert scores[0, 0].item() == pytest.approx(1.0, abs=1e-6)
    assert scores[0, 1].item() == pytest.approx(torch.cosine_similarity(vectors[0], vectors[1], dim=0).item(), abs=1e-6)


def test_a_bundle_on_disk_is_all_it_takes(encoder: Encoder, make_items: MakeItems, tmp_path: Path, tiny_backbone_path: Path) -> None:
    save_bundle(encoder.model, tmp_path / "bundle", provenance={}, backbone_path=tiny_backbone_path)
    loaded = Encoder.from_pretrained(tmp_path / "bundle", decoding=Decoding(max_new_tokens=6))
    items = make_items(5)
    assert torch.equal(loaded.encode(items, think="always"), encoder.encode(items, think="always"))


def test_arguments_out_of_range_are_refused(encoder: Encoder) -> None:
    with pytest.raises(ConfigError, match="think is 'sometimes'"):
        encoder.encode("x", think="sometimes")  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="batch_size is 0"):
        encoder.encode("x", batch_size=0)
    with pytest.raises(DataError, match="nothing to encode"):
        encoder.encode([])


def test_a_budget_chooses_the_threshold_that_spends_it(encoder: Encoder, make_items: MakeItems) -> None:
    items = make_items(8)
    always = encoder.encode(items, think="always", return_thoughts=True)
    order = always.gate_probability.sort(descending=True)
    spent = [float(always.num_reasoning_tokens[order.indices[:number]].sum()) / 8 for number in range(9)]
    thresholds = [1.0, *((order.values[:-1] + order.values[1:]) / 2).tolist(), 0.0]
    gate = encoder.model.gate
    gate.threshold = 1.0
    gate.curve = [
        {"threshold": threshold, "quality": 0.0, "query_tokens": tokens, "candidate_tokens": 2 * tokens}
        for threshold, tokens in zip(thresholds, spent, strict=True)
    ]
    some = encoder.encode(items, budget=spent[3] + 0.01, return_thoughts=True, batch_size=3)
    assert float(some.num_reasoning_tokens.float().mean()) == pytest.approx(spent[3])
    assert gate.threshold == 1.0  # the bundle's own again
    half = encoder.encode(items, budget=2 * spent[3] + 0.01, side="document", return_thoughts=True)
    assert torch.equal(half.num_reasoning_tokens, some.num_reasoning_tokens)
    assert float(encoder.encode(items, budget=99, return_thoughts=True).num_reasoning_tokens.float().mean()) == pytest.approx(spent[8])


def test_a_budget_that_cannot_be_kept_to_is_refused(encoder: Encoder) -> None:
    with pytest.raises(ConfigError, match="the gate has no curve"):
        encoder.encode("x", budget=5)
    encoder.model.gate.curve = [{"threshold": 0.0, "quality": 0.0, "query_tokens": 8.0, "candidate_tokens": 8.0}]
    with pytest.raises(ConfigError, match=r"budget of 5 reasoning tokens; the cheapest costs 8"):
        encoder.encode("x", budget=5)
    with pytest.raises(ConfigError, match='think is "never"'):
        encoder.encode("x", think="never", budget=5)
    with pytest.raises(ConfigError, match="side is 'candidate'"):
        encoder.encode("x", budget=5, side="candidate")  # type: ignore[call-overload]
