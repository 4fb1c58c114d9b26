"""Each family on a tiny random model of its true structure: the passes are transformers' own, however they are cut, padded and batched."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor, DynamicCache
from transformers.feature_extraction_utils import BatchFeature
from transformers.video_utils import VideoMetadata

from tests.support.shapes import FAMILIES, make_family
from twn_lightning.batches import Inputs, Item
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.models.adapters import LoraSpec
from twn_lightning.models.backbones import load_backbone, load_processor
from twn_lightning.models.backbones.base import Backbone, ProcessorOptions
from twn_lightning.models.backbones.qwen_vl import QwenVLBackbone
from twn_lightning.models.backbones.qwen_vl_vision import GroupedVisionAttention
from twn_lightning.models.columns import appended, text_columns
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.outputs import Decoding

MakeItems = Callable[[int], list[Item]]
OPTIONS = ProcessorOptions(num_frames=4, max_thought_tokens=48)
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")


@pytest.fixture(scope="session", params=list(FAMILIES))
def family_path(request: pytest.FixtureRequest, tiny_backbone_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family(tmp_path_factory.getbasetemp() / "families", request.param, tokenizer_from=tiny_backbone_path)


@pytest.fixture(scope="session")
def backbone(family_path: Path) -> Backbone:
    """For tests that leave it as it is."""
    return load_backbone(family_path, options=OPTIONS)


@pytest.fixture(scope="session")
def original(family_path: Path, backbone: Backbone) -> Any:
    """transformers' own vision tower, loaded after ours; for tests that leave it as it is."""
    return AutoModelForImageTextToText.from_pretrained(family_path).model.visual


def picture(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def clip(seed: int, width: int, height: int, frames: int = 4) -> tuple[Image.Image, ...]:
    return tuple(picture(100 * seed + frame, width, height) for frame in range(frames))


ITEMS = [
    Item(text="first", images=(picture(0, 100, 100), picture(1, 37, 61))),
    Item(text="second", instruction="Find it."),
    Item(text="third", video=clip(2, 64, 64)),
    Item(text="both", images=(picture(3, 64, 64), picture(4, 200, 60)), video=clip(5, 50, 80)),
]


def hf_inputs(path: Path, items: list[Item], *, fps: float = 2.0) -> BatchFeature:
    """What transformers' own processor makes of the items."""
    processor = AutoProcessor.from_pretrained(path)  # type: ignore[no-untyped-call]
    prompts = []
    for item in items:
        text = "\n".join(part for part in (item.instruction, item.text) if part)
        content = [{"type": "image"}] * len(item.images) + [{"type": "video"}] * (item.video is not None) + [{"type": "text", "text": text}]
        prompts.append(processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True))
    clips = [list(item.video) for item in items if isinstance(item.video, tuple)]
    metadata = [VideoMetadata(total_num_frames=len(frames), fps=fps, frames_indices=list(range(len(frames)))) for frames in clips]
    made: BatchFeature = processor(
        text=prompts,
        images=[list(item.images) for item in items if item.images] or None,
        videos=clips or None,
        video_metadata=metadata or None,
        do_sample_frames=False,
        return_tensors="pt",
        padding=True,
        padding_side="left",
    )
    return made


def whole_forward(backbone: Backbone, batch: BatchFeature) -> tuple[Tensor, Tensor, Tensor | None]:
    """transformers' own forward: hidden states after the final norm, before it, and the positions it gave the decoder."""
    seen: dict[str, Tensor] = {}
    language_model = backbone.model.model.language_model
    hooks = [
        language_model.norm.register_forward_pre_hook(lambda _, args: seen.update(before=args[0])),
        language_model.register_forward_pre_hook(lambda _, __, kwargs: seen.update(positions=kwargs["position_ids"]), with_kwargs=True),
    ]
    known = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")
    kwargs = {name: batch[name] for name in (*known, "second_per_grid_ts") if name in batch}
    with torch.no_grad():
        after = backbone.model.model(**kwargs).last_hidden_state
    for hook in hooks:
        hook.remove()
    return after, seen["before"], seen.get("positions")


def states(backbone: Backbone, inputs: Inputs) -> Tensor:
    with torch.no_grad():
        return backbone.decode_layers(backbone.prompt(inputs), inputs.attention_mask, None)


@pytest.mark.parametrize("items", [ITEMS, ITEMS[:1], ITEMS[2:3]], ids=["all", "images only", "videos only"])
def test_prompts_are_those_of_transformers(family_path: Path, items: list[Item]) -> None:
    ours, theirs = load_processor(family_path, options=OPTIONS).inputs(items), hf_inputs(family_path, items)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw", "video_grid_thw", "pixel_values", "pixel_values_videos"):
        if getattr(ours, name) is None:
            assert name not in theirs
        else:
            assert torch.equal(getattr(ours, name), theirs[name]), name


@pytest.mark.parametrize("fps", [2.0, 1.0])
def test_states_and_positions_are_those_of_transformers(family_path: Path, fps: float) -> None:
    """Whatever a family does with time, it does it here too."""
    backbone = load_backbone(family_path, options=ProcessorOptions(num_frames=4, video_fps=fps))
    assert isinstance(backbone, QwenVLBackbone)
    batch = hf_inputs(family_path, ITEMS, fps=fps)
    after, before, positions = whole_forward(backbone, batch)
    assert positions is not None
    inputs = backbone.processor.inputs(ITEMS)
    real = inputs.attention_mask.bool()
    assert torch.equal(backbone.prompt(inputs).position_ids[:, real], positions[-3:, real])
    ours = states(backbone, inputs)[real]
    assert (ours - after[real]).abs().max() <= 1e-4
    assert (ours - before[real]).abs().max() > 0.1  # the states before the final norm are others


def test_text_alone_is_read_as_transformers_reads_it(family_path: Path, backbone: Backbone) -> None:
    items = [Item(text="the capital of Japan"), Item(text="3 + 4")]
    after, _, _ = whole_forward(backbone, hf_inputs(family_path, items))
    inputs = backbone.processor.inputs(items)
    real = inputs.attention_mask.bool()
    assert (states(backbone, inputs)[real] - after[real]).abs().max() <= 1e-4


def test_positions_in_time_follow_the_frames_a_second(tiny_backbone_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Qwen2.5-VL: 2 positions a second; two frames last 1 second at 2 frames a second, 4 seconds at one frame in 2 seconds."""
    path = make_family(tmp_path_factory.getbasetemp() / "families", "qwen2_5_vl", tokenizer_from=tiny_backbone_path)
    for fps, step in ((2.0, 2), (0.5, 8)):
        backbone = load_backbone(path, options=ProcessorOptions(num_frames=4, video_fps=fps))
        inputs = backbone.processor.inputs([Item(video=clip(0, 56, 56), text="x")])
        time = backbone.prompt(inputs).position_ids[0][inputs.mm_token_type_ids == 2]
        assert (time - time[0]).tolist() == [0] * 4 + [step] * 4


def test_a_cache_and_a_whole_forward_give_the_same_states(backbone: Backbone) -> None:
    inputs, thoughts = backbone.processor.inputs(ITEMS), backbone.processor.thoughts(["a red dot", "3 + 4 = 7", "Japan", "the capital is Tokyo"])
    mask = torch.cat([inputs.attention_mask, thoughts.mask], dim=1)
    with torch.no_grad():
        prompt, written = backbone.prompt(inputs), backbone.embed_tokens(thoughts.token_ids)
        whole = backbone.decode_layers(appended(prompt, written, thoughts.mask), mask, None)[:, inputs.input_ids.shape[1] :]
        cache = DynamicCache()
        backbone.decode_layers(prompt, inputs.attention_mask, cache)
        cached = backbone.decode_layers(text_columns(prompt.next_position, written, thoughts.mask), mask, cache)
    real = thoughts.mask.bool()
    assert (whole[real] - cached[real]).abs().max() <= 1e-4


def make_model(path: Path, *, dtype: str = "float32") -> DualLoRAModel:
    """Two queries, adapters that show; with tensors of its own."""
    return copy.deepcopy(made_model(path, dtype))


@functools.cache
def made_model(path: Path, dtype: str) -> DualLoRAModel:
    spec = LoraSpec(rank=4, alpha=8, target_modules=ATTENTION)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DualLoRAModel(load_backbone(path, dtype=dtype, options=OPTIONS), reasoning=spec, embedding=spec, num_queries=2)
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def test_an_item_has_one_embedding_however_it_is_padded_and_batched(family_path: Path) -> None:
    """Text, images and videos in one batch, each alone, padded left and right; with and without thoughts."""
    left, right = make_model(family_path), make_model(family_path)
    right.backbone.processor = load_processor(family_path, options=replace(OPTIONS, padding_side="right"))
    assert (left.processor.options.padding_side, right.processor.options.padding_side) == ("left", "right")
    decoding = Decoding(max_new_tokens=5)
    together = left.encode(left.processor.inputs(ITEMS), think="always", decoding=decoding)
    other_side = right.encode(right.processor.inputs(ITEMS), think="always", decoding=decoding)
    alone = [left.encode(left.processor.inputs([item]), think="always", decoding=decoding) for item in ITEMS]
    for name in ("discriminative", "vector"):
        rows = getattr(together, name)
        assert (rows - getattr(other_side, name)).abs().max() <= 1e-4
        assert (rows - torch.cat([getattr(each, name) for each in alone])).abs().max() <= 1e-4
    assert (together.vector - together.discriminative).abs().max() > 1e-3


def test_the_embedding_is_the_mean_of_the_queries_after_the_final_norm(family_path: Path) -> None:
    """Against transformers' own `last_hidden_state` over the embeddings that the queries are appended to; with adapters that change nothing."""
    model = make_model(family_path)
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.zeros_(parameter)
    inputs = model.processor.inputs(ITEMS[3:])
    backbone = model.backbone
    seen: dict[str, Tensor] = {}
    norm = backbone.model.model.language_model.norm
    with torch.no_grad():
        prompt, ones = backbone.prompt(inputs), inputs.attention_mask.new_ones(1, 2)
        columns = appended(prompt, model.queries[None], ones)
        hook = norm.register_forward_pre_hook(lambda _, args: seen.update(before=args[0]))
        deepstack = {"visual_pos_masks": columns.visual_mask, "deepstack_visual_embeds": list(prompt.deepstack)} if prompt.deepstack else {}
        whole = backbone.model.model.language_model(
            inputs_embeds=columns.embeddings,
            attention_mask=torch.cat([inputs.attention_mask, ones], dim=1),
            position_ids=columns.position_ids,
            use_cache=False,
            **deepstack,
        ).last_hidden_state
        hook.remove()
        state = model.embed(model.prefill(inputs)).state
    assert (state - whole[:, -2:].mean(dim=1)).abs().max() <= 1e-4
    assert (state - seen["before"][:, -2:].mean(dim=1)).abs().max() > 0.05


@pytest.mark.parametrize(
    "grids",
    [
        [[1, 4, 4]] * 3,  # equal pictures
        [[1, 4, 4], [1, 2, 6], [1, 4, 4], [1, 2, 2], [1, 10, 6]],  # sizes mixed, some twice, one of several windows
        [[3, 4, 2], [1, 4, 2]],  # a clip's frames
    ],
)
def test_the_changed_vision_tower_is_the_original(original: Any, backbone: Backbone, grids: list[list[int]]) -> None:
    vision = original.config
    grid_thw = torch.tensor(grids)
    width = 3 * vision.temporal_patch_size * vision.patch_size**2
    patches = torch.randn(int(grid_thw.prod(dim=1).sum()), width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, other = (visual(patches, grid_thw=grid_thw) for visual in (original, backbone.model.model.visual))
    pairs = [
        (one.pooler_output, other.pooler_output),
        *zip(one.get("deepstack_features", ()), other.get("deepstack_features", ()), strict=True),
    ]
    assert len(pairs) == 1 + len(getattr(vision, "deepstack_visual_indexes", ()))
    assert all((original_features - features).abs().max() <= 1e-5 for original_features, features in pairs)


def test_only_the_backbones_own_tower_is_changed(original: Any, backbone: Backbone) -> None:
    assert not isinstance(original.blocks[0].attn, GroupedVisionAttention)
    assert type(original.patch_embed.proj) is torch.nn.Conv3d
    assert isinstance(backbone.model.model.visual.blocks[0].attn, GroupedVisionAttention)
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


def test_a_tower_that_always_runs_adds_nothing(backbone: Backbone, make_items: MakeItems) -> None:
    """Text alone, pictures alone, clips alone, all of them: the same prompt, and the tower runs once in each."""
    items = make_items(3)
    batches = [items[:1], items[1:2], items[2:3], items]
    runs: list[int] = []
    hook = backbone.model.model.visual.register_forward_pre_hook(lambda _, __, kwargs: runs.append(len(kwargs["grid_thw"])), with_kwargs=True)
    for always, calls in ((False, [1, 1, 2]), (True, [1, 1, 1, 2])):
        backbone.always_run_vision = always
        runs.clear()
        made = [states(backbone, backbone.processor.inputs(batch)) for batch in batches]
        assert runs == calls
        if not always:
            first = made
    hook.remove()
    backbone.always_run_vision = False
    assert all(torch.equal(one, other) for one, other in zip(first, made, strict=True))


def test_the_same_prompts_are_looked_at_once(backbone: Backbone, make_items: MakeItems) -> None:
    inputs, others = backbone.processor.inputs(make_items(3)), backbone.processor.inputs(make_items(3))
    runs: list[object] = []
    hook = backbone.model.model.visual.register_forward_pre_hook(lambda *_: runs.append(None))
    made = [states(backbone, each) for each in (inputs, inputs, others, inputs)]
    hook.remove()
    assert len(runs) == 3
    assert all(torch.equal(made[0], each) for each in made[1:])


def test_a_tower_that_always_runs_leaves_no_gradient(family_path: Path, make_items: MakeItems) -> None:
    model = make_model(family_path)
    model.backbone.always_run_vision = True
    model.set_trainable("embedding", "queries")
    model.embed(model.prefill(model.processor.inputs(make_items(1)))).vector[0, 0].backward()  # type: ignore[no-untyped-call]
    assert model.queries.grad is not None
    assert model.queries.grad.abs().max() > 0
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if ".visual." in name)


def test_recomputing_gives_the_gradients_of_keeping(family_path: Path) -> None:
    gradients = []
    for recomputes in (False, True):
        model = make_model(family_path)
        if recomputes:
            model.enable_gradient_checkpointing()
        model.set_trainable("reasoning", "embedding", "queries")
        model.train()
        thoughts = model.processor.thoughts(["a red dot"] * len(ITEMS))
        supervised = model.supervise(model.processor.inputs(ITEMS), thoughts)
        (supervised.log_probs.sum() + model.embed(supervised.prefix).vector[:, 0].sum()).backward()  # type: ignore[no-untyped-call]
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None})
    kept, recomputed = gradients
    assert set(kept) == set(recomputed)
    assert len(kept) == 1 + 2 * 2 * 3 * 4  # the queries; two adapters of two matrices in three layers of four projections
    assert all((kept[name] - recomputed[name]).abs().max() <= 1e-3 * (1 + kept[name].abs().max()) for name in kept)


def test_a_backbone_is_frozen_in_the_dtype_asked_for(family_path: Path, make_items: MakeItems) -> None:
    model = make_model(family_path, dtype="bfloat16")
    assert model.backbone.model.dtype == torch.bfloat16
    assert {parameter.dtype for name, parameter in model.named_parameters() if ".lora_" in name} == {torch.float32}
    encoded = model.encode(model.processor.inputs(make_items(3)), think="always", decoding=Decoding(max_new_tokens=3))
    assert encoded.vector.dtype == torch.float32
    assert bool(encoded.vector.isfinite().all())


def test_kernels_of_attention_agree(family_path: Path, backbone: Backbone) -> None:
    eager = load_backbone(family_path, attn_implementation="eager", options=OPTIONS)
    inputs = backbone.processor.inputs(ITEMS)
    real = inputs.attention_mask.bool()
    assert (states(eager, inputs)[real] - states(backbone, inputs)[real]).abs().max() <= 1e-4


def test_what_cannot_be_loaded_names_the_way_out(family_path: Path) -> None:
    with pytest.raises(ConfigError, match="flash_attention_2, but the package flash-attn .* set backbone.attn_implementation=sdpa, or install it"):
        load_backbone(family_path, attn_implementation="flash_attention_2", dtype="bfloat16")
    with pytest.raises(ConfigError, match="'float8'; choose one of"):
        load_backbone(family_path, dtype="float8")
    with pytest.raises(ConfigError, match="cannot be loaded"):
        load_backbone(family_path, attn_implementation="no_such_kernel")


def test_settings_of_pictures_and_clips_are_honoured(family_path: Path) -> None:
    """Areas after resizing stay within what was asked, whether the family counts them by frame or by clip."""
    images, video = (picture(0, 90, 90),), clip(1, 120, 90, frames=9)
    for options, frames, most_image, most_clip in (
        (ProcessorOptions(num_frames=6, max_pixels=64 * 64), 6, 64 * 64, 6 * 64 * 64),
        (ProcessorOptions(num_frames=4, max_video_pixels=4 * 32 * 64), 4, 128 * 128, 4 * 32 * 64),
        (ProcessorOptions(num_frames=4, max_pixels=64 * 64, max_video_pixels=4 * 32 * 32), 4, 64 * 64, 4 * 32 * 32),
    ):
        processor = load_processor(family_path, options=options)
        inputs = processor.inputs([Item(images=images), Item(video=video)])
        assert inputs.image_grid_thw is not None
        assert inputs.video_grid_thw is not None
        patch = AutoProcessor.from_pretrained(family_path).image_processor.patch_size  # type: ignore[no-untyped-call]
        assert int(inputs.image_grid_thw[0].prod()) * patch**2 <= most_image
        assert inputs.video_grid_thw[0, 0].item() == frames // 2
        assert int(inputs.video_grid_thw[0].prod()) * 2 * patch**2 <= most_clip
    enlarged = load_processor(family_path, options=ProcessorOptions(min_pixels=112 * 112, max_pixels=256 * 256)).inputs([Item(images=images)])
    assert enlarged.image_grid_thw is not None
    assert int(enlarged.image_grid_thw[0].prod()) * patch**2 >= 112 * 112


def test_thoughts_stand_between_the_familys_markers(family_path: Path) -> None:
    processor = load_processor(family_path, options=OPTIONS)
    open_marker, close_marker = ("<think>", "</think>") if "qwen3" in family_path.name else ("<|quad_start|>", "<|quad_end|>")
    tokenizer = AutoProcessor.from_pretrained(family_path).tokenizer  # type: ignore[no-untyped-call]
    assert tokenizer.convert_ids_to_tokens([processor.think_open_id, processor.think_close_id]) == [open_marker, close_marker]
    thoughts = processor.thoughts(["the flag shows a red dot"])
    assert thoughts.token_ids[0, 0] == processor.think_open_id
    assert processor.decode(thoughts) == ["the flag shows a red dot"]
    assert processor.think_close_id not in processor.banned_ids
    assert processor.think_open_id in processor.banned_ids
    with pytest.raises(DataError, match="which the prompt uses for itself"):
        processor.thoughts([f"so {close_marker} it is"])
    with pytest.raises(DataError, match="which the prompt uses for itself"):
        processor.inputs([Item(text=f"what is {open_marker}")])


def test_a_tokenizer_without_the_markers_is_refused(tiny_backbone_path: Path, tmp_path: Path) -> None:
    for file in tiny_backbone_path.iterdir():
        if file.name != "config.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_vl"}')
    with pytest.raises(ConfigError, match=r"has no token <\|quad_start\|>"):
        load_processor(tmp_path)


def test_adapters_reach_no_fused_experts_and_no_layer_that_is_not_there(family_path: Path) -> None:
    backbone = load_backbone(family_path)
    if "moe" in family_path.name:
        with pytest.raises(ConfigError, match=r"gate_proj, up_proj, down_proj, but the experts .* are fused .*=\[k_proj, o_proj, q_proj, v_proj\]"):
            DualLoRAModel(backbone, reasoning=LoraSpec(rank=2, alpha=2), embedding=None, num_queries=1, detach=False)
    else:
        spec = LoraSpec(rank=2, alpha=2)
        model = DualLoRAModel(backbone, reasoning=spec, embedding=spec, num_queries=1)
        assert not any(".lora_" in name for name, _ in model.named_parameters() if ".visual." in name)
        assert sum(".lora_A." in name for name, _ in model.named_parameters()) == 2 * 3 * 7  # two adapters, three layers, seven projections
    with pytest.raises(ConfigError, match=r"names q_prj, but .*choose among them|names q_prj, but the experts"):
        load_backbone(family_path).lora_targets(["q_prj", "v_proj"])
