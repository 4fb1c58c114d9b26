"""The processor: how prompts are laid out, thoughts wrapped, and what is refused. What each family makes of media is in test_families.py."""

from __future__ import annotations

import dataclasses
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from twn_lightning.batches import Item, Thoughts
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.models.adapters import LoraSpec
from twn_lightning.models.backbones import load_backbone, load_processor
from twn_lightning.models.backbones.base import Processor, ProcessorOptions
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.outputs import Decoding

MakeItems = Callable[[int], list[Item]]


@pytest.fixture
def processor(tiny_backbone_path: Path) -> Processor:
    return load_processor(tiny_backbone_path, options=ProcessorOptions(num_frames=4, max_thought_tokens=48))


def picture(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


PICTURES = "<|vision_start|><|image_pad|><|image_pad|><|image_pad|><|image_pad|><|vision_end|>"


def prompts(path: Path, items: list[Item], options: ProcessorOptions) -> list[str]:
    """The prompts that come out, as text, and again with what belongs to them in number."""
    inputs = load_processor(path, options=options).inputs(items)
    tokenizer = AutoProcessor.from_pretrained(path).tokenizer  # type: ignore[no-untyped-call]
    assert inputs.images_per_row.tolist() == [len(item.images) for item in items]
    assert inputs.videos_per_row.tolist() == [int(item.video is not None) for item in items]
    rows = zip(inputs.input_ids.tolist(), inputs.attention_mask.tolist(), strict=True)
    return [tokenizer.decode([token for token, real in zip(row, mask, strict=True) if real]) for row, mask in rows]


LAID_OUT = [
    Item(text="second", instruction="Find it."),
    Item(text="alone"),
    Item(images=(picture(0, 32, 32),), instruction="Find it."),
    Item(text="first", images=(picture(0, 32, 32), picture(1, 32, 32))),
]


def test_the_instruction_stands_before_the_text_in_the_users_turn(tiny_backbone_path: Path) -> None:
    user, answer = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    expected = [
        f"{user}Find it.\nsecond{answer}",
        f"{user}alone{answer}",
        f"{user}{PICTURES}Find it.{answer}",
        f"{user}{PICTURES}{PICTURES}first{answer}",
    ]
    assert prompts(tiny_backbone_path, LAID_OUT, ProcessorOptions()) == expected


def test_the_instruction_has_the_system_turn_to_itself(tiny_backbone_path: Path) -> None:
    """Where there is none, there is no such turn, and the template does as it does without."""
    system, user, answer = "<|im_start|>system\nFind it.<|im_end|>\n", "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    expected = [
        f"{system}{user}second{answer}",
        f"{user}alone{answer}",
        f"{system}{user}{PICTURES}{answer}",
        f"{user}{PICTURES}{PICTURES}first{answer}",
    ]
    assert prompts(tiny_backbone_path, LAID_OUT, ProcessorOptions(layout="system")) == expected
    tokenizer = AutoProcessor.from_pretrained(tiny_backbone_path).tokenizer  # type: ignore[no-untyped-call]
    turns = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in (("system", "Find it."), ("user", "second"))]
    template = load_processor(tiny_backbone_path)._chat_template  # type: ignore[attr-defined]
    assert expected[0] == tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False, add_generation_prompt=True)


def test_bare_prompts_are_media_instruction_and_text(tiny_backbone_path: Path) -> None:
    expected = ["Find it.\nsecond", "alone", f"{PICTURES}\nFind it.", f"{PICTURES}{PICTURES}\nfirst"]
    assert prompts(tiny_backbone_path, LAID_OUT, ProcessorOptions(layout="bare")) == expected
    (clip,) = prompts(tiny_backbone_path, [Item(video=(picture(0, 32, 32),) * 4)], ProcessorOptions(layout="bare", video_timestamps=False))
    assert clip == PICTURES.replace("image", "video") * 2


@pytest.mark.parametrize("layout", ["user", "system", "bare"])
def test_a_default_instruction_is_for_items_that_bring_none(tiny_backbone_path: Path, layout: Literal["user", "system", "bare"]) -> None:
    given = [dataclasses.replace(item, instruction=item.instruction or "Represent it.") for item in LAID_OUT]
    default = ProcessorOptions(layout=layout, default_instruction="Represent it.")
    assert prompts(tiny_backbone_path, LAID_OUT, default) == prompts(tiny_backbone_path, given, ProcessorOptions(layout=layout))
    with pytest.raises(DataError, match="neither text nor image nor video"):
        load_processor(tiny_backbone_path, options=default).inputs([Item()])


def test_a_thought_follows_whatever_the_layout(tiny_backbone_path: Path, make_items: MakeItems) -> None:
    """Cut from its prompt or read with it, alone or in a batch: layouts change the prompt, not what comes after."""
    for layout in ("system", "bare"):
        backbone = load_backbone(tiny_backbone_path, options=ProcessorOptions(num_frames=4, layout=layout, default_instruction="Look."))
        spec = LoraSpec(rank=2, alpha=4)
        model = DualLoRAModel(backbone, reasoning=spec, embedding=spec, num_queries=2).eval()
        items = make_items(5)
        together = model.encode(model.processor.inputs(items), think="always", decoding=Decoding(max_new_tokens=4)).vector
        alone = [model.encode(model.processor.inputs([item]), think="always", decoding=Decoding(max_new_tokens=4)).vector for item in items]
        assert (together - torch.cat(alone)).abs().max() <= 1e-4


def test_a_template_without_a_system_turn_is_refused(tiny_backbone_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "backbone"
    shutil.copytree(tiny_backbone_path, folder)
    template = folder / "chat_template.jinja"
    template.write_text("{% set messages = messages | selectattr('role', 'equalto', 'user') %}" + template.read_text())
    processor = load_processor(folder, options=ProcessorOptions(layout="system"))
    with pytest.raises(ConfigError, match="does not render a system turn: choose backbone.layout=user"):
        processor.inputs([Item(text="x", instruction="Find it.")])


def test_options_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(ConfigError, match="min_pixels is 400 and backbone.max_pixels 300"):
        ProcessorOptions(min_pixels=400, max_pixels=300)
    with pytest.raises(ConfigError, match="layout is 'sytem'; choose user, system or bare"):
        ProcessorOptions(layout="sytem")  # type: ignore[arg-type]


def test_without_timestamps_a_video_is_its_frames_alone(tiny_backbone_path: Path) -> None:
    short = load_processor(tiny_backbone_path, options=ProcessorOptions(num_frames=4, video_timestamps=False))
    inputs = short.inputs([Item(text="x", video=tuple(picture(seed, 32, 32) for seed in range(4)))])
    types = inputs.mm_token_type_ids[0].tolist()
    start = types.index(2)
    assert types[start : start + 10] == [2, 2, 2, 2, 0, 0, 2, 2, 2, 2]  # between the pairs of frames: one span ends, the next begins
    assert sum(types) == 16
    assert inputs.video_grid_thw is not None
    assert inputs.video_grid_thw.tolist() == [[2, 4, 4]]


def test_an_odd_frame_is_doubled_as_transformers_does(tiny_backbone_path: Path) -> None:
    processor = load_processor(tiny_backbone_path, options=ProcessorOptions(num_frames=3))
    inputs = processor.inputs([Item(video=tuple(picture(seed, 32, 32) for seed in range(3)))])
    assert inputs.video_grid_thw is not None
    assert inputs.video_grid_thw.tolist() == [[2, 4, 4]]


def test_pixel_limits_decide_the_number_of_tokens(tiny_backbone_path: Path) -> None:
    small, large = (
        load_processor(tiny_backbone_path, options=ProcessorOptions(min_pixels=low, max_pixels=high)) for low, high in ((256, 256), (4096, 8192))
    )
    item = [Item(images=(picture(0, 32, 32),)), Item(video=(picture(0, 32, 32),) * 4)]
    sizes = [
        [each.images_per_row.sum().item(), each.mm_token_type_ids.eq(1).sum().item(), each.mm_token_type_ids.eq(2).sum().item()]
        for each in (small.inputs(item), large.inputs(item))
    ]
    assert sizes == [[1, 1, 2], [1, 16, 32]]


def test_thoughts_are_wrapped_padded_and_read_back(processor: Processor) -> None:
    texts = ["the flag shows a red dot", "3 + 4 = 7"]
    thoughts = processor.thoughts(texts)
    lengths = thoughts.mask.sum(dim=1).tolist()
    assert thoughts.token_ids[:, 0].tolist() == [processor.think_open_id] * 2
    assert [thoughts.token_ids[row, length - 1].item() for row, length in enumerate(lengths)] == [processor.think_close_id] * 2
    assert thoughts.mask[:, 0].tolist() == [1, 1]  # padded on the right
    assert processor.decode(thoughts) == texts
    assert processor.decode(Thoughts(thoughts.token_ids[:, :3], thoughts.mask[:, :3]))[0] != ""


def test_a_processor_goes_through_pickle(processor: Processor, make_items: MakeItems) -> None:
    again = pickle.loads(pickle.dumps(processor))
    assert torch.equal(again.inputs(make_items(5)).input_ids, processor.inputs(make_items(5)).input_ids)


def test_banned_tokens_are_the_markers_but_not_the_closing_one(processor: Processor) -> None:
    assert processor.think_close_id not in processor.banned_ids
    assert {processor.think_open_id, processor.pad_id, processor.eos_id} <= set(processor.banned_ids)
    assert len(processor.banned_ids) == 8


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (Item(), "neither text nor image nor video"),
        (Item(text="see <|image_pad|> here"), r"holds <\|image_pad\|>"),
        (Item(text="hm </think>"), "holds </think>"),
        (Item(images=(Path("no/such.png"),)), r"no/such\.png"),
        (Item(text="word " * 200), "max_prompt_tokens allows 60"),
        (Item(video=(Image.new("RGB", (32, 32)), Image.new("RGB", (48, 32)))), "differ in size"),
    ],
)
def test_an_item_that_cannot_be_shown_is_refused(tiny_backbone_path: Path, item: Item, words: str) -> None:
    with pytest.raises(DataError, match=words):
        load_processor(tiny_backbone_path, options=ProcessorOptions(max_prompt_tokens=60)).inputs([item])


@pytest.mark.parametrize(("text", "words"), [("  ", "is empty"), ("a <think> b", "holds <think>"), ("long " * 100, "max_thought_tokens allows 48")])
def test_a_thought_that_cannot_be_taught_is_refused(processor: Processor, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        processor.thoughts(["fine", text])


def test_a_batch_of_nothing_is_refused(processor: Processor) -> None:
    with pytest.raises(DataError, match="no items"):
        processor.inputs([])


def test_a_folder_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no config.json"):
        load_processor(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ConfigError, match="family 'bert'; supported: qwen3_vl"):
        load_processor(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "qwen3_vl"}')
    with pytest.raises(ConfigError, match="No processor can be loaded"):
        load_processor(tmp_path)
    with pytest.raises(ConfigError, match="neither a folder nor a model of the hub"):
        load_processor("nobody/no-such-model")
