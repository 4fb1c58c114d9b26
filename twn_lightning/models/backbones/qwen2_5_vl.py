"""The Qwen2.5-VL family (3B, 7B): windows in the vision tower, and positions of frames counted in time; no deepstack."""

from __future__ import annotations

from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLVisionAttention

from twn_lightning.models.backbones.base import Processor, ProcessorOptions
from twn_lightning.models.backbones.qwen_vl import QwenVLBackbone, load_model
from twn_lightning.models.backbones.qwen_vl_processor import QwenVLProcessor
from twn_lightning.models.backbones.qwen_vl_vision import GroupedVisionAttention

MARKERS = ("<|quad_start|>", "<|quad_end|>")
"""Around a chain of thought. The tokenizer has no tokens for it; these two exist, are special and single, and stand for nothing else in a prompt."""


class GroupedQwen25VLVisionAttention(GroupedVisionAttention, Qwen2_5_VLVisionAttention):
    """The family's vision attention, pictures of one size together."""


def load_processor(path: str, *, options: ProcessorOptions | None) -> Processor:
    """See `twn_lightning.models.backbones.load_processor`."""
    return QwenVLProcessor(path, options or ProcessorOptions(), markers=MARKERS, span_per_frames=False)


def load_backbone(path: str, *, dtype: str, attn_implementation: str, options: ProcessorOptions | None) -> QwenVLBackbone:
    """See `twn_lightning.models.backbones.load_backbone`."""
    processor = load_processor(path, options=options)
    model = load_model(path, Qwen2_5_VLForConditionalGeneration, dtype=dtype, attn_implementation=attn_implementation)
    return QwenVLBackbone(model, processor, path=path, attention=GroupedQwen25VLVisionAttention, is_timed=True)
