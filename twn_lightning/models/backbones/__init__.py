"""Backbone families, one file each, chosen by the `model_type` in a checkpoint's config.json."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from twn_lightning.errors import ConfigError

if TYPE_CHECKING:
    from twn_lightning.models.backbones.base import Backbone, Family, Processor, ProcessorOptions

FAMILIES = {
    "qwen3_vl": "twn_lightning.models.backbones.qwen3_vl",
    "qwen3_vl_moe": "twn_lightning.models.backbones.qwen3_vl_moe",
    "qwen2_5_vl": "twn_lightning.models.backbones.qwen2_5_vl",
    "qwen2_vl": "twn_lightning.models.backbones.qwen2_vl",
}
"""`model_type` to the module with that family's `load_backbone` and `load_processor`."""


def load_backbone(
    path: str | Path, *, dtype: str = "float32", attn_implementation: str = "sdpa", options: ProcessorOptions | None = None
) -> Backbone:
    """A frozen pretrained model with its processor.

    Args:
        path: Folder (or hub name) of a transformers checkpoint.
        dtype: Of the frozen weights: float32, bfloat16 or float16. Adapters, queries and gate are always float32.
        attn_implementation: sdpa, eager or flash_attention_2 (where installed).
        options: How prompts are made; the defaults if None.

    Raises:
        ConfigError: The checkpoint cannot be found, or its family is not supported.
    """
    return _family(path).load_backbone(str(path), dtype=dtype, attn_implementation=attn_implementation, options=options)


def load_processor(path: str | Path, *, options: ProcessorOptions | None = None) -> Processor:
    """The processor alone, without weights: for the workers of a data loader.

    Raises:
        ConfigError: As `load_backbone`.
    """
    return _family(path).load_processor(str(path), options=options)


def _family(path: str | Path) -> Family:
    model_type = _model_type(path)
    if model_type not in FAMILIES:
        raise ConfigError(
            f"The backbone {path} is of the family {model_type!r}; supported: {', '.join(FAMILIES)}. Each is one file in models/backbones."
        )
    family: Family = importlib.import_module(FAMILIES[model_type])
    return family


def _model_type(path: str | Path) -> str:
    config = Path(path) / "config.json"
    if config.is_file():
        return str(json.loads(config.read_text(encoding="utf-8")).get("model_type"))
    if Path(path).exists():
        raise ConfigError(f"{path} holds no config.json: the backbone must be the folder of a transformers checkpoint.")
    from transformers import AutoConfig

    try:
        return str(AutoConfig.from_pretrained(str(path)).model_type)
    except OSError as error:
        raise ConfigError(f"The backbone {path} is neither a folder nor a model of the hub that can be reached. Check the path.") from error
