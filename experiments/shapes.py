"""Backbones of the true architectures with random weights, for benchmarks and rehearsals where no weights can be had.

    python -c "from pathlib import Path; from experiments.shapes import make_backbone; make_backbone(Path('runs/4b'), 'qwen3-vl-4b', shrink=True)"

then `backbone.path=runs/4b`. Names: `twn_lightning.models.backbones.shapes.ARCHITECTURES`.
"""

from __future__ import annotations

from pathlib import Path

from experiments.runs import resolve_backbone


def make_backbone(folder: Path, name: str, *, shrink: bool, dtype: str = "float32", seed: int = 0) -> Path:
    """A folder like a published checkpoint, with random weights and the tokenizer and chat template of the tiny backbone.

    Args:
        folder: Made if it does not exist.
        name: Of the architecture, such as "qwen3-vl-4b".
        shrink: The same structure with a tiny width, depth, vocabulary and pictures: half a million to six million parameters.
        dtype: Of the weights: float32, bfloat16 or float16.
        seed: Of the weights.

    Returns:
        The folder.

    Raises:
        ConfigError: There is no such name.
    """
    from twn_lightning.models.backbones.shapes import save_random, shrunk, true_config

    config = true_config(name)
    if shrink:
        config = shrunk(config)
    return save_random(folder, config, tokenizer_from=resolve_backbone("tiny_qwen3_vl"), dtype=dtype, small=shrink, seed=seed)
