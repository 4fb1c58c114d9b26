"""The true architectures of the published backbones, without their weights: what is needed to count, to time, and to rehearse.

`true_config` gives a published checkpoint's configuration, `without_weights` its model on the meta device, `shrunk` the same structure with a tiny
width and depth, and `save_random` a folder that `load_backbone` reads as it reads a checkpoint, with random weights and a small tokenizer.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from twn_lightning.errors import ConfigError

_CLIP: dict[str, Any] = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
_HALF: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}

_SPECIAL_TOKENS = ("<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<think>", "</think>")
"""What the processors of one family or another look up; those that a tokenizer lacks are added to it."""

_HEAD_DIM = 16
"""Of a shrunk model, whose true heads are 128 wide in the text and 64 to 80 in the pictures."""


def _text(hidden: int, intermediate: int, layers: int, heads: int, key_value_heads: int, *, vocabulary: int) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_value_heads,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
    }


def _qwen3(text: dict[str, Any], *, large_vision: bool, tied: bool, **more: Any) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 5_000_000.0, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    vision: dict[str, Any] = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "deepstack_visual_indexes": [5, 11, 17]}
    if large_vision:
        vision = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "deepstack_visual_indexes": [8, 16, 24]}
    patches = {"patch_size": 16, "temporal_patch_size": 2, "spatial_merge_size": 2, "num_position_embeddings": 2304}
    return {
        "model_type": "qwen3_vl_moe" if more else "qwen3_vl",
        "text_config": {**text, "head_dim": 128, "max_position_embeddings": 262_144, "rope_parameters": rope, "tie_word_embeddings": tied, **more},
        "vision_config": {**vision, **patches, "num_heads": 16, "out_hidden_size": text["hidden_size"], "hidden_act": "gelu_pytorch_tanh"},
        "tie_word_embeddings": tied,
    }


def _qwen2(model_type: str, text: dict[str, Any], vision: dict[str, Any], *, positions: int, tied: bool) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 1_000_000.0, "mrope_section": [16, 24, 24]}
    patches = {"depth": 32, "num_heads": 16, "patch_size": 14, "temporal_patch_size": 2, "spatial_merge_size": 2}
    return {
        "model_type": model_type,
        "text_config": {**text, "max_position_embeddings": positions, "rope_parameters": rope},
        "vision_config": {**vision, **patches},
        "tie_word_embeddings": tied,
    }


def _qwen2_vl(text: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    vision = {"embed_dim": 1280, "hidden_size": text["hidden_size"], "mlp_ratio": 4, "hidden_act": "quick_gelu"}
    return _qwen2("qwen2_vl", text, vision, positions=32_768, tied=tied)


def _qwen2_5_vl(text: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    windows = {"window_size": 112, "fullatt_block_indexes": [7, 15, 23, 31], "tokens_per_second": 2}
    vision = {"hidden_size": 1280, "intermediate_size": 3420, "out_hidden_size": text["hidden_size"], "hidden_act": "silu", **windows}
    return _qwen2("qwen2_5_vl", text, vision, positions=128_000, tied=tied)


ARCHITECTURES: dict[str, dict[str, Any]] = {
    "qwen3-vl-2b": _qwen3(_text(2048, 6144, 28, 16, 8, vocabulary=151_936), large_vision=False, tied=True),
    "qwen3-vl-4b": _qwen3(_text(2560, 9728, 36, 32, 8, vocabulary=151_936), large_vision=False, tied=True),
    "qwen3-vl-8b": _qwen3(_text(4096, 12_288, 36, 32, 8, vocabulary=151_936), large_vision=True, tied=False),
    "qwen3-vl-30b-a3b": _qwen3(
        _text(2048, 6144, 48, 32, 4, vocabulary=151_936),
        large_vision=True,
        tied=False,
        moe_intermediate_size=768,
        num_experts=128,
        num_experts_per_tok=8,
    ),
    "qwen2.5-vl-3b": _qwen2_5_vl(_text(2048, 11_008, 36, 16, 2, vocabulary=151_936), tied=True),
    "qwen2.5-vl-7b": _qwen2_5_vl(_text(3584, 18_944, 28, 28, 4, vocabulary=152_064), tied=False),
    "qwen2-vl-2b": _qwen2_vl(_text(1536, 8960, 28, 12, 2, vocabulary=151_936), tied=True),
    "qwen2-vl-7b": _qwen2_vl(_text(3584, 18_944, 28, 28, 4, vocabulary=152_064), tied=False),
}
"""By name: what the config.json of the published Instruct checkpoint says of its architecture."""


def true_config(name: str) -> PreTrainedConfig:
    """The configuration of a published checkpoint.

    Args:
        name: One of `ARCHITECTURES`.

    Raises:
        ConfigError: There is no such name.
    """
    if name not in ARCHITECTURES:
        raise ConfigError(f"There is no architecture {name!r}; known: {', '.join(ARCHITECTURES)}.")
    settings = copy.deepcopy(ARCHITECTURES[name])
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


def without_weights(name: str) -> PreTrainedModel:
    """A model of a published checkpoint's architecture on the meta device: every parameter's name and shape, and no memory.

    Args:
        name: One of `ARCHITECTURES`.

    Raises:
        ConfigError: There is no such name.
    """
    config = true_config(name)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForImageTextToText.from_config(config)  # type: ignore[no-untyped-call]
    return model


def shrunk(config: PreTrainedConfig, *, num_layers: int = 4, vision_depth: int = 4) -> PreTrainedConfig:
    """The same family and structure, tiny: ratios of widths and of query to key heads, rotary sections, deepstack levels, windows and experts stay.

    Args:
        config: Of `true_config`; it stays as it is.
        num_layers: Decoder layers, at least as many as there are deepstack levels.
        vision_depth: Layers of the vision tower, likewise.
    """
    settings = config.to_dict()
    text, vision = settings["text_config"], settings["vision_config"]
    true_width, num_groups = text["hidden_size"], text["num_attention_heads"] // text["num_key_value_heads"]
    true_heads_width = text["num_attention_heads"] * text.get("head_dim", true_width // text["num_attention_heads"])
    width = true_width * 2 * num_groups * _HEAD_DIM // true_heads_width

    def scaled(size: int) -> int:
        return int(size * width // true_width)

    sections = [section * _HEAD_DIM // 128 for section in text["rope_parameters"]["mrope_section"]]
    sections[0] += _HEAD_DIM // 2 - sum(sections)
    text["rope_parameters"]["mrope_section"] = sections
    text.update(
        hidden_size=width,
        intermediate_size=scaled(text["intermediate_size"]),
        num_attention_heads=2 * num_groups,
        num_key_value_heads=2,
        num_hidden_layers=num_layers,
    )
    text.pop("layer_types", None)
    if "head_dim" in text:
        text["head_dim"] = _HEAD_DIM
    if "moe_intermediate_size" in text:
        text.update(moe_intermediate_size=scaled(text["moe_intermediate_size"]), num_experts=8, num_experts_per_tok=2)
        text.pop("num_local_experts", None)
    _shrink_vision(vision, width=width, depth=vision_depth)
    return AutoConfig.for_model(settings.pop("model_type"), **settings)


def _shrink_vision(vision: dict[str, Any], *, width: int, depth: int) -> None:
    """Two heads, and layers with a part of their own at the same share of the depth; the patches stay."""
    true_depth, true_width = vision["depth"], vision.get("embed_dim", vision["hidden_size"])
    own_width = 2 * _HEAD_DIM
    vision.update(depth=depth, num_heads=2)
    if "embed_dim" in vision:
        vision.update(embed_dim=own_width, hidden_size=width)
    else:
        vision.update(hidden_size=own_width, intermediate_size=vision["intermediate_size"] * own_width // true_width, out_hidden_size=width)
    if "deepstack_visual_indexes" in vision:
        vision.update(deepstack_visual_indexes=[(index + 1) * depth // true_depth - 1 for index in vision["deepstack_visual_indexes"]])
        vision.update(num_position_embeddings=144)
    if "fullatt_block_indexes" in vision:
        vision.update(fullatt_block_indexes=list(range(1, depth, 2)), window_size=2 * vision["patch_size"] * vision["spatial_merge_size"])


def save_random(folder: Path, config: PreTrainedConfig, *, tokenizer_from: Path, dtype: str = "float32", small: bool = False, seed: int = 0) -> Path:
    """A folder like a checkpoint of this architecture, with random weights and a borrowed tokenizer.

    Args:
        folder: Made if it does not exist.
        config: The architecture; special tokens are given the tokenizer's numbers in it.
        tokenizer_from: Folder of the tokenizer and chat template. If it has fewer entries than the architecture, the other rows mean nothing.
        dtype: Of the weights.
        small: Pictures of at most 128 × 128 pixels and down to a single token, and no more rows in the vocabulary than there are tokens.
        seed: Of the weights.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_from)
    tokenizer.add_special_tokens({"additional_special_tokens": [token for token in _SPECIAL_TOKENS if token not in tokenizer.get_vocab()]})
    config = copy.deepcopy(config)
    settings: Any = config
    for name, token in (("image", "image_pad"), ("video", "video_pad"), ("vision_start", "vision_start"), ("vision_end", "vision_end")):
        setattr(settings, f"{name}_token_id", tokenizer.convert_tokens_to_ids(f"<|{token}|>"))
    text = config.get_text_config()
    text.pad_token_id, text.eos_token_id, text.bos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id, None
    if small:
        text.vocab_size = len(tokenizer)
    _processor(config, tokenizer, small=small).save_pretrained(folder)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        model: PreTrainedModel = AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, dtype))  # type: ignore[no-untyped-call]
        if small:
            scale_to_width(model)
    model.save_pretrained(folder)
    return folder


def scale_to_width(model: nn.Module) -> None:
    """Draws matrices anew with deviation 1 / sqrt(fan-in), halved where they write to the residual stream.

    transformers' 0.02 suits widths of thousands; at a hundred it leaves the layers nearly silent, and learning to see starts late.
    """
    for name, parameter in model.named_parameters():
        if "patch_embed.proj.weight" in name:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        elif parameter.ndim >= 2 and "embed" not in name and "lm_head" not in name:
            writes = any(part in name for part in ("o_proj", "down_proj", "attn.proj", "linear_fc2", "mlp.fc2"))
            nn.init.normal_(parameter, std=(0.5 if writes else 1.0) * parameter.shape[-1] ** -0.5)


def _processor(config: PreTrainedConfig, tokenizer: Any, *, small: bool) -> ProcessorMixin:
    """The family's processor with the published limits of pictures and clips, or small ones."""
    vision, is_qwen3 = config.vision_config, config.model_type.startswith("qwen3")
    shape: dict[str, Any] = {
        "patch_size": vision.patch_size,
        "merge_size": vision.spatial_merge_size,
        "temporal_patch_size": vision.temporal_patch_size,
    }
    shape |= _HALF if is_qwen3 else _CLIP
    token_area = (vision.patch_size * vision.spatial_merge_size) ** 2
    image_size = {"shortest_edge": 65_536, "longest_edge": 16_777_216} if is_qwen3 else {"shortest_edge": 3136, "longest_edge": 12_845_056}
    video_size = {"shortest_edge": 4096, "longest_edge": 25_165_824} if is_qwen3 else image_size
    if small:
        image_size = {"shortest_edge": token_area, "longest_edge": 128 * 128}
        video_size = {"shortest_edge": token_area, "longest_edge": 128 * 128 * (16 if is_qwen3 else 1)}
    images = Qwen2VLImageProcessor(size=image_size, **shape)
    if is_qwen3:
        clips = Qwen3VLVideoProcessor(size=video_size, cap_pixels_per_frame=True, **shape)
        return Qwen3VLProcessor(image_processor=images, tokenizer=tokenizer, video_processor=clips, chat_template=tokenizer.chat_template)  # type: ignore[no-untyped-call]
    family = Qwen2VLProcessor if config.model_type == "qwen2_vl" else Qwen2_5_VLProcessor
    frames = Qwen2VLVideoProcessor(size=video_size, cap_pixels_per_frame=True, **shape)
    return family(image_processor=images, tokenizer=tokenizer, video_processor=frames, chat_template=tokenizer.chat_template)
