"""How several processes train together: they are started and connected here, and Lightning's strategy of each stage is made here."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable
from datetime import timedelta
from typing import TypeAlias

import datamodules  # noqa: F401  (first: it prepares the import of torchvision, on which lightning depends)

# isort: split
from lightning.fabric import Fabric
from lightning.fabric.strategies.ddp import DDPStrategy as FabricDDPStrategy
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, Strategy

from experiments.runs import Step
from twn_lightning.configs.run import RunConfig
from twn_lightning.distributed import rank, world_size
from twn_lightning.errors import ConfigError

log = logging.getLogger(__name__)

StrategyMaker: TypeAlias = Callable[[RunConfig, Step], Strategy | str]

TIMEOUT = timedelta(hours=2)
"""How long a rank waits for the slowest one: between stages each writes thoughts of its own."""
BUCKET = 50_000_000
"""Numbers in a bucket of gradients or parameters: adapters are small, and two buckets in flight should be too."""
_DEEPSPEED = re.compile(r"deepspeed(?:_stage_(\d)(_offload)?)?")


def start_ranks(config: RunConfig) -> None:
    """Connects the run's processes; starts those of this machine, unless torchrun or SLURM has.

    Everything between the stages (labels, thresholds, the test tasks) is shared among the ranks as well, so they are there from the beginning.

    Args:
        config: The run's settings; nothing happens with a single device.
    """
    trainer = config.trainer
    if (trainer.devices, trainer.num_nodes) == (1, 1) or world_size() > 1:
        return
    strategy = FabricDDPStrategy(timeout=TIMEOUT)
    Fabric(accelerator=trainer.accelerator, devices=trainer.devices, num_nodes=trainer.num_nodes, strategy=strategy).launch()
    if rank():
        logging.getLogger().setLevel(logging.WARNING)  # what rank 0 says need not be said by all
    log.info("%d processes train together", world_size())


def uses_deepspeed(config: RunConfig) -> bool:
    """Whether the stages train under DeepSpeed."""
    return config.trainer.strategy.startswith("deepspeed")


def check_strategy(config: RunConfig) -> None:
    """Refuses settings that DeepSpeed cannot train by, before anything is loaded.

    Raises:
        ConfigError: Naming the setting and the way out.
    """
    if not uses_deepspeed(config):
        return
    trainer, second = config.trainer, config.stages.cot_sft
    if _DEEPSPEED.fullmatch(trainer.strategy) is None:
        raise ConfigError(
            f"trainer.strategy is {trainer.strategy!r}: choose deepspeed_stage_2 or deepspeed_stage_3, with or without _offload after it."
        )
    if second.steps and second.cot_every > 1:
        raise ConfigError(
            f"stages.cot_sft.cot_every is {second.cot_every}, but DeepSpeed moves every parameter on every step, also those that the step gave no "
            "gradient: set it to 1, or choose trainer.strategy=ddp."
        )
    if trainer.precision == "32-true" and config.backbone.dtype != "float32":
        raise ConfigError(
            f"trainer.precision is 32-true and backbone.dtype {config.backbone.dtype}, but DeepSpeed trains all of a model in one precision: "
            "set trainer.precision=bf16-mixed, or backbone.dtype=float32."
        )


def build_strategy(config: RunConfig, step: Step, *, deepspeed: type[DeepSpeedStrategy] = DeepSpeedStrategy) -> Strategy | str:
    """Lightning's strategy for a stage; a strategy serves one trainer.

    Args:
        config: The run's settings.
        step: Which stage.
        deepspeed: The class for ``deepspeed_stage_*``.

    Raises:
        ConfigError: See `check_strategy`.
    """
    name = config.trainer.strategy
    check_strategy(config)
    if uses_deepspeed(config):
        return _zero(config, deepspeed)
    if name == "ddp" or (name == "auto" and world_size() > 1):
        rare = step.section == "cot_sft" and config.stages.cot_sft.cot_every > 1  # the reasoning adapter has no gradient on some steps
        return DDPStrategy(find_unused_parameters=rare, gradient_as_bucket_view=True, broadcast_buffers=False, timeout=TIMEOUT)
    return name


def _zero(config: RunConfig, deepspeed: type[DeepSpeedStrategy]) -> DeepSpeedStrategy:
    if deepspeed is DeepSpeedStrategy and config.trainer.accelerator in ("cpu", "mps"):
        raise ConfigError(
            f"trainer.strategy is {config.trainer.strategy} and trainer.accelerator {config.trainer.accelerator}, but Lightning runs DeepSpeed on "
            "GPUs of NVIDIA alone: set trainer.accelerator=gpu, or trainer.strategy=ddp."
        )
    # DeepSpeed uses names that torch is leaving; and a checkpoint in shares is what `AdapterCheckpoint` expects.
    warnings.filterwarnings("ignore", message=r".*`torch\.distributed\.\w+` is deprecated.*")
    warnings.filterwarnings("ignore", message=".*When saving the DeepSpeed Stage 3 checkpoint.*")
    found = _DEEPSPEED.fullmatch(config.trainer.strategy)
    assert found is not None
    stage, offload = int(found[1] or 2), found[2] is not None
    strategy = deepspeed(
        stage=stage,
        offload_optimizer=offload,
        offload_parameters=offload and stage == 3,
        contiguous_gradients=True,
        overlap_comm=True,
        allgather_bucket_size=BUCKET,
        reduce_bucket_size=BUCKET,
        exclude_frozen_parameters=True,  # a checkpoint need not hold the backbone
        logging_batch_size_per_gpu=1,  # only a throughput of DeepSpeed's own, which nobody reads, would be reckoned from it
        timeout=TIMEOUT,
    )
    if offload:  # torch's AdamW serves on the CPU as well
        assert isinstance(strategy.config, dict)
        strategy.config["zero_force_ds_cpu_optimizer"] = False
    return strategy
