"""What a user of a trained model sees."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import twn_lightning
from twn_lightning.batches import Inputs, Item
from twn_lightning.checkpoints import save_bundle
from twn_lightning.encoder import Encoder, EncoderInput, Think
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.evaluation import store
from twn_lightning.models.backbones import load_processor
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.outputs import Decoding
from twn_lightning.models.prefix import Prefix

MakeItems = Callable[[int], list[Item]]


@pytest.fixture
def encoder(tiny_model: DualLoRAModel) -> Encoder:
    return Encoder(tiny_model, decoding=Decoding(max_new_tokens=6))


def counted_prompts(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets the prompts of each batch that the encoder reads from now on."""
    computed: list[int] = []
    prefill = encoder.model.prefill

    def counting(inputs: Inputs) -> Prefix:
        computed.append(len(inputs))
        return prefill(inputs)

    monkeypatch.setattr(encoder.model, "prefill", counting)
    return computed


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
    loaded = Encoder.from_pretrained(tmp_path / "bundle", decoding=Decoding(max_new_tokens=6), merge=False)
    items = make_items(5)
    assert torch.equal(loaded.encode(items, think="always"), encoder.encode(items, think="always"))


def test_arguments_out_of_range_are_refused(encoder: Encoder) -> None:
    with pytest.raises(ConfigError, match="think is 'sometimes'"):
        encoder.encode("x", think="sometimes")  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="batch_size is 0"):
        encoder.encode("x", batch_size=0)
    with pytest.raises(ConfigError, match="batch_size is 2.5"):
        encoder.encode("x", batch_size=2.5)  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="budget is '10'"):
        encoder.encode("x", budget="10")  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="instruction is 3"):
        encoder.encode("x", instruction=3)  # type: ignore[call-overload]
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


def test_thoughts_are_written_as_the_bundle_says(tiny_model: DualLoRAModel, tmp_path: Path, tiny_backbone_path: Path) -> None:
    tiny_model.decoding = Decoding(max_new_tokens=3)
    save_bundle(tiny_model, tmp_path / "bundle", provenance={}, backbone_path=tiny_backbone_path)
    encoder = Encoder.from_pretrained(tmp_path / "bundle")
    assert encoder.decoding == Decoding(max_new_tokens=3)
    assert encoder.encode(["one", "two"], think="always", return_thoughts=True).num_reasoning_tokens.max() == 3


def test_a_merged_model_gives_the_same_vectors(tiny_bundle: Path, make_items: MakeItems) -> None:
    items, decoding = make_items(6), Decoding(max_new_tokens=6)
    plain, merged = (Encoder.from_pretrained(tiny_bundle, decoding=decoding, merge=merge) for merge in (False, True))
    assert merged.model.is_merged
    modes: tuple[Think, ...] = ("never", "always")
    for think in modes:
        expected, encoding = (encoder.encode(items, think=think, return_thoughts=True) for encoder in (plain, merged))
        assert (encoding.vectors - expected.vectors).abs().max() <= 1e-5
        assert encoding.thoughts == expected.thoughts
    with pytest.raises(AssertionError, match="for inference"):
        merged.model.set_trainable("embedding")


def test_a_cache_gives_what_was_computed_and_computes_what_is_missing(
    tiny_bundle: Path, make_items: MakeItems, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [*make_items(6), *make_items(3)]  # three of them twice
    cold = Encoder.from_pretrained(tiny_bundle, cache=tmp_path, decoding=Decoding(max_new_tokens=6))
    without = Encoder.from_pretrained(tiny_bundle, decoding=Decoding(max_new_tokens=6)).encode(items, return_thoughts=True)
    warm = Encoder.from_pretrained(tiny_bundle, cache=tmp_path, decoding=Decoding(max_new_tokens=6))
    computed = counted_prompts(warm, monkeypatch)
    modes: tuple[Think, ...] = ("auto", "never")
    for number, think in enumerate(modes, start=1):
        first = cold.encode(items[:4], think=think, return_thoughts=True)
        again = warm.encode(items, think=think, return_thoughts=True)
        assert sum(computed) == 2 * number  # items 4 and 5; the others are there
        assert torch.equal(again.vectors[:4], first.vectors)
        assert torch.equal(again.vectors[6:9], again.vectors[:3])
        if think == "auto":
            assert (again.vectors - without.vectors).abs().max() <= 1e-5
            assert again.thoughts == without.thoughts
            assert torch.equal(again.thinks, without.thinks)


def test_a_cached_vector_that_is_no_number_is_computed_again(tiny_bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    encoder = Encoder.from_pretrained(tiny_bundle, cache=tmp_path)
    expected = encoder.encode(["one", "two"], think="never")
    (path,) = tmp_path.rglob("*.safetensors")
    tensors = load_file(path)
    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
    tensors["discriminative"][0, 3] = float("nan")
    save_file(tensors, path, metadata=metadata)
    assert torch.allclose(encoder.encode(["one", "two"], think="never"), expected, atol=1e-6)
    assert "discriminative holds a value that is NaN" in caplog.text


def test_the_first_error_stops_the_work_and_what_was_finished_before_it_is_cached(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.effect_noise((32, 32), 80).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:300])  # its header is whole: it is read in its turn
    encoder = Encoder.from_pretrained(tiny_bundle, cache=tmp_path / "cache")
    computed = counted_prompts(encoder, monkeypatch)
    first, last = "country " * 60, "a"  # the longest is read first
    with pytest.raises(DataError, match=r"Input 1: .*cut\.png: this image cannot be read"):
        encoder.encode([last, tmp_path / "cut.png", first], think="never", batch_size=1)
    assert computed == [1]
    encoder.encode(first, think="never")
    assert computed == [1]
    with pytest.warns(UserWarning, match="1 of 3 inputs were skipped"):
        encoder.encode([last, tmp_path / "cut.png", first], think="never", batch_size=1, on_error="skip")
    assert computed == [1, 1]


def test_clips_that_were_fetched_are_removed_when_the_call_ends(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with fsspec.filesystem("memory").open("/fetched.mp4", "wb") as file:
        file.write(b"no clip")
    inputs: list[EncoderInput] = ["words", {"video": "memory://fetched.mp4"}]
    with pytest.warns(UserWarning, match=r"\.mp4: this video cannot be read"):  # it was there, and opened
        encoder.encode(inputs, think="never", on_error="skip")
    assert not list(tmp_path.iterdir())
    with pytest.raises(DataError, match=r"\.mp4: this video cannot be read"):
        encoder.encode(inputs, think="never")
    assert not list(tmp_path.iterdir())


def test_a_cache_is_looked_through_once(tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many files there are, a call opens those that hold its inputs."""
    opened: list[str] = []

    def opening(path: str, framework: str) -> object:
        opened.append(path)
        return safe_open(path, framework=framework)

    monkeypatch.setattr(store, "safe_open", opening)
    encoder = Encoder.from_pretrained(tiny_bundle, cache=tmp_path)
    for number in range(4):
        encoder.encode(f"query {number}", think="never")
    assert not opened
    encoder.encode("query 2", think="never")
    assert len(opened) == 1


def test_processes_that_share_a_cache_read_what_the_others_stored_and_outlive_its_removal(
    tiny_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (Encoder.from_pretrained(tiny_bundle, cache=tmp_path / "cache") for _ in range(2))
    computed = counted_prompts(one, monkeypatch)
    one.encode("first", think="never")
    expected = other.encode(["first", "second"], think="never")
    assert torch.equal(one.encode(["first", "second"], think="never"), expected)
    assert computed == [1]
    shutil.rmtree(tmp_path / "cache")
    assert (one.encode(["first", "second"], think="never") - expected).abs().max() <= 1e-6
    assert computed == [1, 2]
    assert torch.equal(other.encode("first", think="never"), one.encode("first", think="never"))


def test_calls_of_several_threads_do_not_disturb_each_other(encoder: Encoder, make_items: MakeItems) -> None:
    items = make_items(5)
    modes: tuple[Think, ...] = ("never", "always")
    expected = [encoder.encode(items, think=think) for think in modes]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda think: encoder.encode(items, think=think), modes * 4))
    for number, result in enumerate(results):
        assert (result - expected[number % 2]).abs().max() <= 1e-6


def test_the_bundles_own_limit_of_prompts_cuts_instead_of_refusing(make_model: Callable[..., DualLoRAModel], tiny_backbone_path: Path) -> None:
    model = make_model()
    model.backbone.processor = load_processor(tiny_backbone_path, options=dataclasses.replace(model.processor.options, max_prompt_tokens=50))
    with pytest.warns(UserWarning, match="cut to fit into 50 tokens"):
        encoding = Encoder(model).encode(["country " * 80], think="never", return_thoughts=True)
    assert encoding.truncated == (0,)


def test_whatever_can_be_gone_through_is_a_list_of_inputs(encoder: Encoder) -> None:
    expected = encoder.encode(["one", "two"], think="never")
    for several in (("one", "two"), (word for word in ("one", "two")), np.array(["one", "two"])):
        assert torch.equal(encoder.encode(several, think="never"), expected)


def test_search_finds_what_was_encoded(encoder: Encoder, make_items: MakeItems) -> None:
    vectors = encoder.encode(make_items(6), think="never")
    assert encoder.search(vectors, vectors, top_k=1).indices.flatten().tolist() == list(range(6))


def test_a_device_or_type_that_is_not_there_is_named(tiny_bundle: Path) -> None:
    with pytest.raises(ConfigError, match="device is 'gpu'; choose cpu"):
        Encoder.from_pretrained(tiny_bundle, device="gpu")
    with pytest.raises(ConfigError, match="dtype is 'float8'"):
        Encoder.from_pretrained(tiny_bundle, dtype="float8")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device is 'cuda'"):
            Encoder.from_pretrained(tiny_bundle, device="cuda")


def test_lower_precision_stays_near(tiny_bundle: Path, make_items: MakeItems) -> None:
    items = make_items(5)
    full, half = (Encoder.from_pretrained(tiny_bundle, dtype=dtype).encode(items, think="never") for dtype in ("float32", "bfloat16"))
    assert half.dtype == torch.float32
    assert (full * half).sum(dim=1).min() > 0.99


def test_the_package_gives_the_encoder_and_nothing_before_it_is_asked_for() -> None:
    """In a process of its own it is asked for by tests/test_readme.py."""
    subprocess.run([sys.executable, "-c", "import sys, twn_lightning; assert 'torch' not in sys.modules"], check=True)
    assert twn_lightning.Encoder is Encoder
