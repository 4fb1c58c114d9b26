"""Backbones with random weights, and how the settings of a run reach them."""

from __future__ import annotations

from pathlib import Path

from experiments.build import build_backbone, processor_options
from experiments.runs import CONFIGS
from experiments.shapes import make_backbone
from twn_lightning.batches import Item
from twn_lightning.configs.load import load_config


def test_a_shrunk_backbone_is_built_from_a_runs_settings(tmp_path: Path) -> None:
    path = make_backbone(tmp_path / "4b", "qwen3-vl-4b", shrink=True)
    overrides = ["layout=system", "default_instruction=Represent it.", "max_video_pixels=8192", "max_pixels=4096", "num_frames=4"]
    config = load_config("mini", folder=CONFIGS, overrides=[f"backbone.path={path}", *(f"backbone.{override}" for override in overrides)])
    options = processor_options(config)
    assert (options.layout, options.default_instruction, options.max_video_pixels) == ("system", "Represent it.", 8192)
    backbone = build_backbone(config)
    assert backbone.processor.options == options
    assert sum(parameter.numel() for parameter in backbone.model.parameters()) < 1_000_000
    inputs = backbone.processor.inputs([Item(text="a flag")])
    assert len(backbone.prompt(inputs).embeddings[0]) == inputs.input_ids.shape[1]
