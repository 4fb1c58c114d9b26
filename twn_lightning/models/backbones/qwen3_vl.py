"""The Qwen3-VL family (2B, 4B, 8B, 32B): deepstack, interleaved rotary sections, times of frames in words."""

from __future__ import annotations

from transformers import Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionAttention

from twn_lightning.models.backbones.base import Processor, ProcessorOptions
from twn_lightning.models.backbones.qwen_vl import QwenVLBackbone, load_model
from twn_lightning.models.backbones.qwen_vl_processor import QwenVLProcessor
from twn_lightning.models.backbones.qwen_vl_vision import GroupedVisionAttention

MARKERS = ("<think>", "</think>")
"""Around a chain of thought: tokens that the tokenizer of Qwen3-VL has for it."""


class GroupedQwen3VLVisionAttention(GroupedVisionAttention, Qwen3VLVisionAttention):
    """The family's vision attention, pictures of one size together."""


def load_processor(path: str, *, options: ProcessorOptions | None) -> Processor:
    """See `twn_lightning.models.backbones.load_processor`."""
    return QwenVLProcessor(path, options or ProcessorOptions(), markers=MARKERS, span_per_frames=True)


def load_backbone(path: str, *, dtype: str, attn_implementation: str, options: ProcessorOptions | None) -> QwenVLBackbone:
    """See `twn_lightning.models.backbones.load_backbone`."""
    processor = load_processor(path, options=options)
    model = load_model(path, Qwen3VLForConditionalGeneration, dtype=dtype, attn_implementation=attn_implementation)
    return QwenVLBackbone(model, processor, path=path, attention=GroupedQwen3VLVisionAttention)
