"""The backbone: its vision tower equals transformers' own, and bad settings are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import Qwen3VLForConditionalGeneration
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionAttention

from twn_lightning.errors import ConfigError
from twn_lightning.models.backbones import load_backbone
from twn_lightning.models.backbones.qwen3_vl import GroupedVisionAttention, PatchProjection


@pytest.mark.parametrize(
    "grids",
    [
        [[1, 4, 4]] * 3,  # equal pictures
        [[1, 4, 4], [1, 2, 6], [1, 4, 4], [1, 2, 2], [1, 2, 6]],  # sizes mixed, some twice
        [[3, 4, 2], [1, 4, 2]],  # a clip's frames attend each to itself
    ],
)
def test_the_changed_vision_tower_is_the_original(tiny_backbone_path: Path, grids: list[list[int]]) -> None:
    visual = Qwen3VLForConditionalGeneration.from_pretrained(tiny_backbone_path).model.visual
    grid_thw = torch.tensor(grids)
    patches = torch.randn(int(grid_thw.prod(dim=1).sum()), 3 * 2 * 8 * 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        original = visual(patches, grid_thw=grid_thw)
        visual.patch_embed.proj.__class__ = PatchProjection
        for block in visual.blocks:
            block.attn.__class__ = GroupedVisionAttention
        grouped = visual(patches, grid_thw=grid_thw)
    for one, other in zip([original.pooler_output, *original.deepstack_features], [grouped.pooler_output, *grouped.deepstack_features], strict=True):
        assert (one - other).abs().max() <= 1e-5


def test_only_this_backbone_is_changed(tiny_backbone_path: Path) -> None:
    load_backbone(tiny_backbone_path)
    other = Qwen3VLForConditionalGeneration.from_pretrained(tiny_backbone_path)
    assert type(other.model.visual.blocks[0].attn) is Qwen3VLVisionAttention
    assert type(other.model.visual.patch_embed.proj) is torch.nn.Conv3d


def test_a_backbone_is_frozen_and_says_what_it_is(tiny_backbone_path: Path) -> None:
    backbone = load_backbone(tiny_backbone_path, dtype="bfloat16", attn_implementation="eager")
    assert backbone.hidden_size == 32
    assert backbone.model.dtype == torch.bfloat16
    assert not any(parameter.requires_grad for parameter in backbone.model.parameters())


def test_a_dtype_that_does_not_exist_is_refused(tiny_backbone_path: Path) -> None:
    with pytest.raises(ConfigError, match="float8; choose one of|'float8'; choose one of"):
        load_backbone(tiny_backbone_path, dtype="float8")
