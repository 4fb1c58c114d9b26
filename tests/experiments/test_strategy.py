import pytest
from lightning.pytorch.strategies import DDPStrategy

from experiments.runs import CONFIGS, STEPS
from experiments.strategy import build_strategy, start_ranks
from tests.support.cpu_deepspeed import CpuDeepSpeedStrategy
from twn_lightning.configs.load import load_config
from twn_lightning.configs.run import RunConfig
from twn_lightning.distributed import world_size
from twn_lightning.errors import ConfigError


def settings(*overrides: str) -> RunConfig:
    return load_config("mini", folder=CONFIGS, profile="smoke", overrides=["stages.cot_sft.cot_every=1", *overrides])


def test_one_device_needs_no_process_and_no_strategy() -> None:
    config = settings()
    start_ranks(config)
    assert world_size() == 1
    assert build_strategy(config, STEPS[0]) == "auto"


def test_ddp_looks_for_missing_gradients_only_where_there_are_some() -> None:
    rare = settings("trainer.strategy=ddp", "stages.cot_sft.cot_every=2")
    found = [build_strategy(rare, step) for step in STEPS[:3]]
    assert [isinstance(strategy, DDPStrategy) and strategy._ddp_kwargs["find_unused_parameters"] for strategy in found] == [False, True, False]


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_saves_no_backbone_and_takes_small_buckets(stage: int) -> None:
    strategy = build_strategy(settings(f"trainer.strategy=deepspeed_stage_{stage}"), STEPS[0], deepspeed=CpuDeepSpeedStrategy)
    assert isinstance(strategy, CpuDeepSpeedStrategy)
    assert isinstance(strategy.config, dict)
    zero = strategy.config["zero_optimization"]
    assert (zero["stage"], zero["contiguous_gradients"], zero["reduce_bucket_size"]) == (stage, True, 50_000_000)
    assert "offload_optimizer" not in zero
    assert strategy.exclude_frozen_parameters


def test_offloading_is_a_word_more() -> None:
    strategy = build_strategy(settings("trainer.strategy=deepspeed_stage_3_offload"), STEPS[0], deepspeed=CpuDeepSpeedStrategy)
    assert isinstance(strategy, CpuDeepSpeedStrategy)
    assert isinstance(strategy.config, dict)
    assert {"offload_optimizer", "offload_param"} <= strategy.config["zero_optimization"].keys()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.strategy=deepspeed_stage_4x"], "choose deepspeed_stage_2 or deepspeed_stage_3"),
        (
            ["trainer.strategy=deepspeed_stage_2", "stages.cot_sft.cot_every=2"],
            "cot_every is 2, but DeepSpeed .*set it to 1, or choose trainer.strategy=ddp",
        ),
        (["trainer.strategy=deepspeed_stage_3", "backbone.dtype=bfloat16"], "set trainer.precision=bf16-mixed, or backbone.dtype=float32"),
        (["trainer.strategy=deepspeed_stage_3"], "set trainer.accelerator=gpu, or trainer.strategy=ddp"),
    ],
)
def test_what_deepspeed_cannot_do_is_refused_with_a_way_out(overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        build_strategy(settings(*overrides), STEPS[0])
