"""A tiny random backbone of each family: a true architecture, shrunk."""

from __future__ import annotations

from pathlib import Path

from twn_lightning.models.backbones.shapes import save_random, shrunk, true_config

FAMILIES = {"qwen3_vl": "qwen3-vl-4b", "qwen3_vl_moe": "qwen3-vl-30b-a3b", "qwen2_5_vl": "qwen2.5-vl-7b", "qwen2_vl": "qwen2-vl-2b"}
"""`model_type` to the architecture that stands for its family."""


def make_family(folder: Path, family: str, *, tokenizer_from: Path) -> Path:
    """A folder like a checkpoint of the family: three decoder layers behind four of the vision tower, pictures of at most 128 × 128 pixels.

    Args:
        folder: Where the folder of the family's name is made; one that is there already is given back.
        family: One of `FAMILIES`.
        tokenizer_from: Folder of the tokenizer and chat template.
    """
    made = folder / family
    if not (made / "config.json").is_file():
        config = shrunk(true_config(FAMILIES[family]), num_layers=3)
        save_random(made, config, tokenizer_from=tokenizer_from, small=True)
    return made
