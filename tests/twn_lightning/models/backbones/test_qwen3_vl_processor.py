"""The processor against transformers' own, and what it refuses."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor
from transformers.video_utils import VideoMetadata

from twn_lightning.batches import Item, Thoughts
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.models.backbones import load_processor
from twn_lightning.models.backbones.base import Processor, ProcessorOptions

MakeItems = Callable[[int], list[Item]]


@pytest.fixture
def processor(tiny_backbone_path: Path) -> Processor:
    return load_processor(tiny_backbone_path, options=ProcessorOptions(num_frames=4, max_thought_tokens=48))


def picture(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_prompts_are_those_of_transformers(processor: Processor, tiny_backbone_path: Path) -> None:
    """Odd sizes are resized, two of one size go together, and frames carry their times."""
    items = [
        Item(text="first", images=(picture(0, 32, 32), picture(1, 37, 61))),
        Item(text="second", instruction="Find it."),
        Item(text="third", video=tuple(picture(seed, 32, 32) for seed in range(4))),
        Item(text="both", images=(picture(2, 32, 32), picture(3, 200, 100)), video=tuple(picture(seed, 50, 40) for seed in range(4))),
    ]
    ours = processor.inputs(items)
    hf = AutoProcessor.from_pretrained(tiny_backbone_path)  # type: ignore[no-untyped-call]
    texts = ["first", "Find it.\nsecond", "third", "both"]
    contents = [
        [{"type": "image"}] * len(item.images) + [{"type": "video"}] * (item.video is not None) + [{"type": "text", "text": text}]
        for item, text in zip(items, texts, strict=True)
    ]
    prompts = [hf.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True) for content in contents]
    metadata = VideoMetadata(total_num_frames=4, fps=2.0, frames_indices=[0, 1, 2, 3])
    theirs = hf(
        text=prompts,
        images=[list(item.images) for item in items if item.images],
        videos=[list(item.video) for item in items if isinstance(item.video, tuple)],
        video_metadata=[metadata, metadata],
        do_sample_frames=False,
        return_tensors="pt",
        padding=True,
        padding_side="left",
    )
    for name in ("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "pixel_values", "pixel_values_videos"):
        assert torch.equal(getattr(ours, name), theirs[name]), name
    assert ours.images_per_row.tolist() == [2, 0, 0, 2]
    assert ours.videos_per_row.tolist() == [0, 0, 1, 1]


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
