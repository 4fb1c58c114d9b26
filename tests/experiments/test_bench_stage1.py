"""What the benchmark of stage 1 measures."""

from collections.abc import Callable
from pathlib import Path

import torch

from experiments.bench_stage1 import lengthened, measure
from experiments.runs import CONFIGS
from twn_lightning.batches import Item
from twn_lightning.configs.load import load_config
from twn_lightning.models.dual_lora import DualLoRAModel


def test_lengthened_prompts_begin_with_the_prompts(tiny_model: DualLoRAModel, make_items: Callable[[int], list[Item]]) -> None:
    inputs = tiny_model.processor.inputs(make_items(5))
    columns = inputs.input_ids.shape[1]
    longer = lengthened(inputs, columns + 20)
    assert torch.equal(longer.input_ids[:, :columns], inputs.input_ids)
    assert torch.equal(longer.attention_mask.sum(dim=1), inputs.attention_mask.sum(dim=1) + 20)
    assert torch.isfinite(tiny_model.embed(tiny_model.prefill(longer)).vector).all()
    assert torch.equal(lengthened(inputs, 3).input_ids, inputs.input_ids)


def test_longer_prompts_cost_plain_training_more_activations_than_stage_1(tiny_backbone_path: Path) -> None:
    overrides = [f"backbone.path={tiny_backbone_path}", "data.tasks=[DigitSum]"]
    config = load_config("mini", folder=CONFIGS, profile="smoke", overrides=overrides)
    (_, short), (times, long) = (measure(config, rounds=1, prompt_tokens=length) for length in (0, 80))
    assert {variant: len(seconds) for variant, seconds in times.items()} == {"stage1": 1, "plain": 1}
    assert long["plain"] / long["stage1"] > short["plain"] / short["stage1"] > 1.0
