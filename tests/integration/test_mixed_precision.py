"""The whole way in bfloat16 mixed precision, in which the GPU profiles train."""

import math

import pytest
from safetensors.torch import load_file

from experiments.pipeline import run_pipeline
from experiments.runs import CONFIGS, STEPS, RunFolder
from twn_lightning.configs.load import load_config


@pytest.mark.slow
def test_all_stages_train_and_are_evaluated_in_mixed_precision(smoke_settings: list[str]) -> None:
    config = load_config("mini", folder=CONFIGS, profile="smoke", overrides=[*smoke_settings, "name=mixed", "trainer.precision=bf16-mixed"])
    assert config.trainer.clip > 0.0, "clipping is what mixed precision may refuse"
    report = run_pipeline(config, "all")
    assert report is not None
    assert all(math.isfinite(score) for row in report.rows for score in row.scores.values())
    folder = RunFolder(config)
    assert all(folder.is_done(step) for step in STEPS)
    weights = load_file(folder.bundle(STEPS[-1]) / "reasoning" / "adapter_model.safetensors")
    assert {str(weight.dtype) for weight in weights.values()} == {"torch.float32"}
