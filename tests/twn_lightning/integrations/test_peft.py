"""The adapters of a bundle are PEFT's: any of its users can load one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForImageTextToText

from twn_lightning.batches import Item
from twn_lightning.checkpoints import ADAPTERS, load_bundle
from twn_lightning.models.adapters import use_adapter


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_peft_alone_loads_an_adapter_and_computes_what_our_model_computes_under_it(
    adapter: str, tiny_bundle: Path, tiny_backbone_path: Path, make_items: Callable[[int], list[Item]]
) -> None:
    model = load_bundle(tiny_bundle)
    inputs = model.processor.inputs(make_items(5))
    theirs = PeftModel.from_pretrained(AutoModelForImageTextToText.from_pretrained(tiny_backbone_path), str(tiny_bundle / adapter)).eval()
    fields = ("input_ids", "attention_mask", "mm_token_type_ids", "pixel_values", "image_grid_thw", "pixel_values_videos", "video_grid_thw")
    with torch.no_grad(), use_adapter(model.backbone.model, adapter):
        ours = model.backbone.decode_layers(model.backbone.prompt(inputs), inputs.attention_mask, None)
        expected = theirs.base_model.model.model(**{field: getattr(inputs, field) for field in fields}).last_hidden_state
        with theirs.disable_adapter():
            bare = theirs.base_model.model.model(**{field: getattr(inputs, field) for field in fields}).last_hidden_state
    tokens = inputs.attention_mask.bool()
    assert (ours - expected)[tokens].abs().max() <= 1e-4
    assert (bare - expected)[tokens].abs().max() > 0.1  # the adapter shows
