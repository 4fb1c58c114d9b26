"""The engine gives what one item at a time gives, however much runs together and whatever fails."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.support.odd_pictures import unknown_dds
from twn_lightning.batches import Inputs, Item
from twn_lightning.encoder import Encoder, Encoding
from twn_lightning.engine.engine import Limits
from twn_lightning.engine.memory import TooLargeError, noticing_memory
from twn_lightning.errors import DataError
from twn_lightning.models.backbones.base import Prompt
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.outputs import Decoding
from twn_lightning.models.prefix import Prefix

MakeItems = Callable[[int], list[Item]]
MakeModel = Callable[..., DualLoRAModel]
NUM_ITEMS = 14


def alone(model: DualLoRAModel, items: Sequence[Item], *, threshold: float, decoding: Decoding) -> tuple[Tensor, list[str]]:
    """One item at a time through the model's own pass, as slow as can be."""
    model.gate.threshold = threshold
    vectors, texts = [], []
    for item in items:
        encoded = model.encode(model.processor.inputs([item]), think="auto", decoding=decoding)
        vectors.append(encoded.vector[0])
        texts.append("" if encoded.thoughts is None else model.processor.decode(encoded.thoughts)[0])
    return torch.stack(vectors), texts


def encode(model: DualLoRAModel, items: Sequence[Item], limits: Limits, *, decoding: Decoding | None = None, on_error: str = "raise") -> Encoding:
    encoder = Encoder(model, decoding=decoding or Decoding(max_new_tokens=9))
    encoder._limits = lambda batch_size: limits  # type: ignore[method-assign]
    encoding = encoder.encode(items, return_thoughts=True, on_error=on_error)  # type: ignore[call-overload]
    assert isinstance(encoding, Encoding)
    return encoding


def half_think(model: DualLoRAModel, items: Sequence[Item]) -> float:
    """A threshold that half of the items reach."""
    probability = Encoder(model).encode(items, think="never", return_thoughts=True).gate_probability
    low, high = probability.sort().values[len(items) // 2 - 1 : len(items) // 2 + 1].tolist()
    return float(low + high) / 2  # not at an item's own probability, which rounding moves


LIMITS = {
    "one": Limits.of_rows(1, max_prompt_tokens=500),
    "seven": Limits.of_rows(7, max_prompt_tokens=500),
    "all": Limits.of_rows(64, max_prompt_tokens=500),
    "tokens": Limits(max_rows=16, max_tokens=150, max_prompt_tokens=500, max_thinking_rows=5, max_thinking_tokens=200),
    "automatic": Limits.automatic(torch.device("cpu"), max_prompt_tokens=500),
}


@pytest.mark.parametrize(
    "settings", [{}, {"interface": "reencode"}, {"embedding": None, "detach": False, "num_queries": 0}], ids=["kv", "reencode", "shared"]
)
@pytest.mark.slow
def test_whatever_runs_together_the_vectors_are_those_of_each_item_alone(
    make_model: MakeModel, make_items: MakeItems, settings: dict[str, object]
) -> None:
    model, items = make_model(**settings), make_items(NUM_ITEMS)
    model.gate.threshold = threshold = half_think(model, items)
    expected, texts = alone(model, items, threshold=threshold, decoding=Decoding(max_new_tokens=9))
    assert 0 < sum(bool(text) for text in texts) < NUM_ITEMS
    order = random.Random(1).sample(range(NUM_ITEMS), NUM_ITEMS)
    for limits in LIMITS.values():
        encoding = encode(model, items, limits)
        assert (encoding.vectors - expected).abs().max() <= 1e-5
        assert list(encoding.thoughts) == texts
        shuffled = encode(model, [items[number] for number in order], limits)
        assert (shuffled.vectors - expected[order]).abs().max() <= 1e-5


@pytest.mark.slow
def test_a_sampled_thought_depends_on_its_prompt_alone(make_model: MakeModel, make_items: MakeItems) -> None:
    items, decoding = make_items(9), Decoding(max_new_tokens=6, temperature=1.0, top_p=0.9)
    for interface in ("kv", "reencode"):
        model = make_model(interface=interface)
        model.gate.threshold = 0.0
        first, *others = (encode(model, items, LIMITS[name], decoding=decoding) for name in ("all", "one", "seven"))
        assert len(set(first.thoughts)) > 1
        assert all(other.thoughts == first.thoughts for other in others)


def test_thoughts_of_many_batches_are_written_in_full_batches(tiny_model: DualLoRAModel, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [Item(text=f"the capital of country {number}") for number in range(40)]
    tiny_model.gate.threshold = half_think(tiny_model, items)
    together: list[int] = []
    own = tiny_model.backbone.decode_layers

    def counting(prompt: Prompt, attention_mask: Tensor, cache: object) -> Tensor:
        if prompt.embeddings.shape[1] == 1:
            together.append(len(prompt.embeddings))
        return own(prompt, attention_mask, cache)  # type: ignore[arg-type]

    monkeypatch.setattr(tiny_model.backbone, "decode_layers", counting)
    limits = Limits(max_rows=4, max_tokens=None, max_prompt_tokens=500, max_thinking_rows=10, max_thinking_tokens=None)
    encoding = encode(tiny_model, items, limits)
    assert int(encoding.thinks.sum()) == 20
    assert together[:3] == [10] * 3  # from batches of four prompts, about two of which think
    assert max(together) == 10
    assert sum(together) < 20 * (9 + 1) + 10 * 9  # finished rows leave: at most one batch's tail is computed in vain


def out_of_memory_above(rows: int, own: Callable[..., object]) -> Callable[..., object]:
    def limited(first: Inputs | Prefix | Prompt, *others: object) -> object:
        number = len(first.embeddings) if isinstance(first, Prompt) else len(first)
        if number > rows:
            raise torch.OutOfMemoryError(f"{number} rows do not fit")
        return own(first, *others)

    return limited


@pytest.mark.parametrize("pass_name", ["prefill", "embed"])
def test_a_batch_that_does_not_fit_is_halved(
    tiny_model: DualLoRAModel, make_items: MakeItems, monkeypatch: pytest.MonkeyPatch, pass_name: str, caplog: pytest.LogCaptureFixture
) -> None:
    items = make_items(12)
    tiny_model.gate.threshold = 0.0
    expected = encode(tiny_model, items, LIMITS["all"])
    monkeypatch.setattr(tiny_model, pass_name, out_of_memory_above(3, getattr(tiny_model, pass_name)))
    encoding = encode(tiny_model, items, LIMITS["all"])
    assert (encoding.vectors - expected.vectors).abs().max() <= 1e-5
    assert encoding.thoughts == expected.thoughts
    assert "does not fit into memory" in caplog.text


def test_thoughts_that_do_not_fit_wait_for_each_other(
    tiny_model: DualLoRAModel, make_items: MakeItems, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    items = make_items(12)
    tiny_model.gate.threshold = 0.0
    expected = encode(tiny_model, items, LIMITS["all"])
    own, layers = tiny_model.backbone.decode_layers, tiny_model.backbone.model.model.language_model.layers
    steps = 0

    def last_layer(module: object, inputs: object, output: Tensor) -> Tensor:
        if output.shape[1] == 1 and len(output) > 4 and steps == 3:  # in the midst of a thought, when some layers have the new column
            raise torch.OutOfMemoryError("no room for the last layer")
        return output

    def counting(prompt: Prompt, attention_mask: Tensor, cache: object) -> Tensor:
        nonlocal steps
        steps += prompt.embeddings.shape[1] == 1
        return own(prompt, attention_mask, cache)  # type: ignore[arg-type]

    monkeypatch.setattr(tiny_model.backbone, "decode_layers", counting)
    layers[-1].register_forward_hook(last_layer)
    encoding = encode(tiny_model, items, LIMITS["all"])
    assert "going on with 6" in caplog.text
    assert encoding.thoughts == expected.thoughts
    assert (encoding.vectors - expected.vectors).abs().max() <= 1e-5


def test_an_input_that_never_fits_is_named(tiny_model: DualLoRAModel, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tiny_model.prefill

    def limited(inputs: Inputs) -> Prefix:
        if inputs.input_ids.shape[1] > 40:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:114] DefaultCPUAllocator: can't allocate memory: you tried to allocate too much")
        return own(inputs)

    monkeypatch.setattr(tiny_model, "prefill", limited)
    items = [Item(text="short"), Item(text="long " * 60), Item(text="shorter")]
    with pytest.warns(UserWarning, match="1 of 3 inputs were skipped; input 1: Its prompt of [0-9]+ tokens does not fit into memory"):
        encoding = encode(tiny_model, items, LIMITS["all"], on_error="skip")
    assert encoding.vectors.isnan().any(dim=1).tolist() == [False, True, False]


def test_other_failures_are_not_taken_for_memory() -> None:
    with pytest.raises(TooLargeError, match="CUDA out of memory"), noticing_memory():
        raise torch.OutOfMemoryError("CUDA out of memory")
    with pytest.raises(RuntimeError, match="shapes"), noticing_memory():
        raise RuntimeError("shapes do not match")


@pytest.fixture
def broken(tmp_path: Path) -> list[object]:
    """Inputs of which number 1, 2, 4, 5, 6, 7 and 8 cannot be read."""
    (tmp_path / "unknown.png").write_bytes(unknown_dds())
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "empty.mp4").write_bytes(b"")
    Image.new("1", (20000, 10000)).save(tmp_path / "large.png")
    odd = [tmp_path / "large.png", {"imgae": "x.png"}, tmp_path / "unknown.png", Path("a" * 300)]
    return ["fine", tmp_path / "broken.png", tmp_path / "empty.mp4", "fine too", "", *odd]


def test_broken_inputs_are_named_and_the_rest_goes_on(tiny_model: DualLoRAModel, broken: list[object]) -> None:
    with pytest.warns(UserWarning, match=r"7 of 9 inputs were skipped; input 1: .*broken\.png: this image cannot be read"):
        encoding = encode(tiny_model, broken, LIMITS["all"], on_error="skip")  # type: ignore[arg-type]
    words = ["broken.png", "empty.mp4", "It is empty", "exceeds limit", "did you mean 'image'", "Unknown pixel format", "no path"]
    assert list(encoding.errors) == [1, 2, 4, 5, 6, 7, 8]
    assert all(word in reason for word, reason in zip(words, encoding.errors.values(), strict=True))
    assert encoding.vectors.isnan().any(dim=1).nonzero().flatten().tolist() == [1, 2, 4, 5, 6, 7, 8]
    good = encode(tiny_model, [Item(text="fine"), Item(text="fine too")], LIMITS["all"])
    assert (encoding.vectors[[0, 3]] - good.vectors).abs().max() <= 1e-5
    with pytest.raises(DataError, match="Input 4: It is empty"):  # found before anything is encoded
        encode(tiny_model, broken, LIMITS["all"])  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"Input 1: .*broken\.png"):
        encode(tiny_model, broken[:3], LIMITS["all"])  # type: ignore[arg-type]


def test_whatever_an_input_does_to_the_processor_costs_that_input_alone(tiny_model: DualLoRAModel, monkeypatch: pytest.MonkeyPatch) -> None:
    own = tiny_model.processor.inputs

    def fragile(items: Sequence[Item]) -> Inputs:
        if any("odd" in item.text for item in items):
            raise ZeroDivisionError("division by zero")
        return own(items)

    monkeypatch.setattr(tiny_model.processor, "inputs", fragile)
    with pytest.warns(UserWarning, match="1 of 3 inputs were skipped; input 1: It cannot be made into a prompt .ZeroDivisionError"):
        encoding = encode(tiny_model, [Item(text="one"), Item(text="odd"), Item(text="two")], LIMITS["all"], on_error="skip")
    assert list(encoding.errors) == [1]


def test_a_text_that_is_too_long_is_cut_at_its_end(tiny_model: DualLoRAModel) -> None:
    long = "country " * 100
    limits = Limits.of_rows(8, max_prompt_tokens=60)
    with pytest.warns(UserWarning, match=r"The text of 1 of 2 inputs was cut .*first: input 1"):
        encoding = encode(tiny_model, [Item(text="short"), Item(text=long)], limits)
    assert encoding.truncated == (1,)
    fitting = [words for number in range(1, 100) if tiny_model.processor.inputs([Item(text=(words := "country " * number))]).input_ids.shape[1] <= 60]
    nearest = encode(tiny_model, [Item(text=words) for words in fitting], LIMITS["all"]).vectors
    assert (nearest @ encoding.vectors[1]).max() > 0.9  # the beginning is what was read
    picture = Image.new("RGB", (64, 64))
    with pytest.raises(DataError, match=r"The prompt has [0-9]+ tokens without its text, and 12 are allowed"):
        encode(tiny_model, [Item(text="what", images=(picture,))], Limits.of_rows(1, max_prompt_tokens=12))
