"""What the benchmark of stage 1 measures."""

from pathlib import Path

from experiments.bench_stage1 import measure
from experiments.runs import CONFIGS
from twn_lightning.configs.load import load_config


def test_longer_prompts_cost_plain_training_more_activations_than_stage_1(tiny_backbone_path: Path) -> None:
    overrides = [f"backbone.path={tiny_backbone_path}", "data.tasks=[DigitSum]"]
    config = load_config("mini", folder=CONFIGS, profile="smoke", overrides=overrides)
    (_, short), (times, long) = (measure(config, rounds=1, prompt_tokens=length) for length in (0, 80))
    assert {variant: len(seconds) for variant, seconds in times.items()} == {"stage1": 1, "plain": 1}
    assert long["plain"] / long["stage1"] > short["plain"] / short["stage1"] > 1.0
