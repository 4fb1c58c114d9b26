"""Qwen3-VL with experts (30B-A3B, 235B-A22B): as Qwen3-VL, but adapters reach the attention only, since the experts are fused parameters."""

from __future__ import annotations

from transformers import Qwen3VLMoeForConditionalGeneration
from transformers.models.qwen3_vl_moe.modeling_qwen3_vl_moe import Qwen3VLMoeVisionAttention

from twn_lightning.models.backbones.base import Processor, ProcessorOptions
from twn_lightning.models.backbones.qwen_vl import QwenVLBackbone, load_model
from twn_lightning.models.backbones.qwen_vl_processor import QwenVLProcessor
from twn_lightning.models.backbones.qwen_vl_vision import GroupedVisionAttention

MARKERS = ("<think>", "</think>")
"""Around a chain of thought: tokens that the tokenizer of Qwen3-VL has for it."""


class GroupedQwen3VLMoeVisionAttention(GroupedVisionAttention, Qwen3VLMoeVisionAttention):
    """The family's vision attention, pictures of one size together."""


def load_processor(path: str, *, options: ProcessorOptions | None) -> Processor:
    """See `twn_lightning.models.backbones.load_processor`."""
    return QwenVLProcessor(path, options or ProcessorOptions(), markers=MARKERS, span_per_frames=True)


def load_backbone(path: str, *, dtype: str, attn_implementation: str, options: ProcessorOptions | None) -> QwenVLBackbone:
    """See `twn_lightning.models.backbones.load_backbone`."""
    processor = load_processor(path, options=options)
    model = load_model(path, Qwen3VLMoeForConditionalGeneration, dtype=dtype, attn_implementation=attn_implementation)
    return QwenVLBackbone(model, processor, path=path, attention=GroupedQwen3VLMoeVisionAttention)
