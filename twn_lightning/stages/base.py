"""What the four stages share: a step that only computes, and a base that logs, optimises, checks and checkpoints."""

from __future__ import annotations

import hashlib
import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, Literal, TypeVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from twn_lightning.batches import GateBatch, PairBatch
from twn_lightning.distributed import max_over_ranks, rank, world_size
from twn_lightning.errors import CheckpointError, ConfigError, TwnError
from twn_lightning.models.dual_lora import DualLoRAModel, Part

BatchT = TypeVar("BatchT", PairBatch, GateBatch)


@dataclass(frozen=True)
class OptimSpec:
    """AdamW (Loshchilov and Hutter, 2019) with a linear warm-up and a schedule.

    Attributes:
        learning_rate: Peak learning rate.
        total_steps: Optimiser steps of the stage, warm-up included; the schedule ends there.
        weight_decay: Decoupled decay of matrices; vectors (biases) are not decayed.
        warmup_steps: Steps of linear warm-up from 0.
        schedule: After the warm-up: constant, or linear or cosine down to 0.
        betas: Decay rates of the first and second moment.
        optimizer: adamw is torch's; adamw_8bit keeps both moments in 8 bits (Dettmers et al., 2022; bitsandbytes, on a GPU).
    """

    learning_rate: float
    total_steps: int
    weight_decay: float = 0.0
    warmup_steps: int = 0
    schedule: Literal["constant", "linear", "cosine"] = "cosine"
    betas: tuple[float, float] = (0.9, 0.98)
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"

    def factor(self, step: int) -> float:
        """The share of the peak learning rate at an optimiser step, from 0 to 1.

        Args:
            step: Optimiser steps already done; the first step of a warm-up is above 0 already.
        """
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if self.schedule == "constant":
            return 1.0
        progress = min(1.0, (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps))
        return 1.0 - progress if self.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class StepOutput:
    """What a step computes.

    Attributes:
        loss: Scalar with gradient.
        metrics: Scalars to be logged, by quantity ("hit_at_1"), without the stage's name.
    """

    loss: Tensor
    metrics: Mapping[str, Tensor] = field(default_factory=dict)


class StageModule(LightningModule, ABC, Generic[BatchT]):
    """A training stage: `step` computes, this class does the rest.

    Logs "<stage>/loss", "<stage>/<quantity>" and "<stage>/learning_rate" of rank 0 at each logged step, and "<stage>/val_<quantity>" as
    means over the validation batches and ranks; each also as "<stage>/by_source/<source>/<quantity>", since a batch is of one source and
    the curve over all of them mixes easy and hard ones. Checkpoints hold the stage's own parameters alone.

    Args:
        model: Exactly the parts in `trains` are made trainable.
        optim: Optimiser and schedule.
        seed: Of everything random inside the steps. Each step's randomness is a function of (seed, step, rank), so that a resumed run
            continues as if it had not stopped.
        learning_rates: Peak learning rate of a part, where it is not the optimiser's; the schedule is the same.
        max_prefill_tokens: Prompt tokens that the backbone reads at once where no gradient runs through it; None reads a batch at once.
    """

    stage: ClassVar[str]
    trains: ClassVar[tuple[Part, ...]]

    def __init__(
        self,
        model: DualLoRAModel,
        optim: OptimSpec,
        *,
        seed: int = 0,
        learning_rates: Mapping[Part, float] | None = None,
        max_prefill_tokens: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.optim = optim
        self.seed = seed
        self.learning_rates = dict(learning_rates or {})
        self.max_prefill_tokens = max_prefill_tokens
        self.micro_step = 0
        """Batches this rank has trained on; unlike `global_step`, it counts each batch of an accumulated step."""
        self.strict_loading = False
        model.set_trainable(*self.trains)
        self.train()  # pretrained models load in eval mode, and Lightning leaves them in it

    def setup(self, stage: str) -> None:
        """Leaves the conversion of a batch to the model.

        Lightning's 16-bit and DeepSpeed precisions convert a batch field by field, which a frozen dataclass refuses. The model converts
        what its frozen weights read, and keeps losses in float32.
        """
        self.trainer.precision_plugin.convert_input = lambda data: data  # type: ignore[method-assign]

    def on_fit_start(self) -> None:
        """Has ranks that share every parameter run the same modules: the vision tower also on a batch without pictures."""
        self.model.backbone.always_run_vision = self.model.is_sharded

    @abstractmethod
    def step(self, batch: BatchT) -> StepOutput:
        """Loss and metrics of one batch, in training and (under no_grad, in eval mode) in validation."""

    def on_train_start(self) -> None:
        """Takes the count of batches up where a resumed run left it, and the schedule where it went on without a checkpoint of its own."""
        self.micro_step = self.trainer.global_step * self.trainer.accumulate_grad_batches
        for scheduler in (config.scheduler for config in self.trainer.lr_scheduler_configs):
            if isinstance(scheduler, LambdaLR) and scheduler.last_epoch < self.trainer.global_step:
                scheduler.last_epoch = self.trainer.global_step
                for group, peak in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, strict=True):
                    group["lr"] = peak * self.optim.factor(scheduler.last_epoch)

    def training_step(self, batch: BatchT, batch_idx: int) -> Tensor:
        """Computes, checks and logs one batch.

        Raises:
            TwnError: The loss is not finite.
        """
        torch.manual_seed(self._seed_of("train"))  # for dropout, which takes no generator of its own
        output = self.step(batch)
        is_broken = not bool(torch.isfinite(output.loss))
        if max_over_ranks(int(is_broken)):  # all ranks stop together: one alone would leave the others waiting for it
            other = (
                f"Stage {self.stage}, step {self.trainer.global_step}: the loss of another rank is not finite; its own message says on which batch."
            )
            raise TwnError(self._not_finite(batch, output) if is_broken else other)
        learning_rate = torch.tensor(self.optim.learning_rate * self.optim.factor(self.trainer.global_step))
        self._log({"loss": output.loss, **output.metrics}, "", batch)
        self.log(f"{self.stage}/learning_rate", learning_rate, batch_size=len(batch))
        return output.loss

    def on_train_batch_end(self, outputs: object, batch: BatchT, batch_idx: int) -> None:
        """Counts the batch once it is done."""
        self.micro_step += 1

    def validation_step(self, batch: BatchT, batch_idx: int) -> None:
        """The same quantities as in training, on held-out data."""
        self._validation_index = batch_idx
        output = self.step(batch)
        self._log({"loss": output.loss, **output.metrics}, "val_", batch)

    def generator(self) -> torch.Generator:
        """A fresh generator for this step's sampling, on the model's device; the same each time it is asked for within a step."""
        purpose = "train" if self.training else f"validation {getattr(self, '_validation_index', 0)}"
        return torch.Generator(device=self.device).manual_seed(self._seed_of(purpose))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """AdamW over the trainable parameters and its schedule by step.

        Raises:
            ConfigError: The optimiser in 8 bits is asked for and cannot run here.
        """
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        special = {id(parameter): rate for part, rate in self.learning_rates.items() for parameter in self.model.named_part_parameters(part).values()}
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for parameter in parameters:
            rate = special.get(id(parameter), self.optim.learning_rate)
            groups.setdefault((rate, self.optim.weight_decay if parameter.ndim > 1 else 0.0), []).append(parameter)
        members = [{"params": members, "lr": rate, "weight_decay": decay} for (rate, decay), members in groups.items()]
        if self.optim.optimizer == "adamw_8bit":
            optimizer = self._adamw_8bit(members)
        else:
            optimizer = torch.optim.AdamW(members, lr=self.optim.learning_rate, betas=self.optim.betas, fused=self._can_fuse(parameters))
        scheduler = LambdaLR(optimizer, self.optim.factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "frequency": 1}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the stage's own parameters and leaves the frozen backbone out."""
        names = self._trainable_names()
        checkpoint["stage"] = self.stage
        checkpoint["state_dict"] = {name: value for name, value in checkpoint.get("state_dict", {}).items() if name in names}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuses a checkpoint of another stage or of another model.

        Raises:
            CheckpointError: Naming the first parameters that are missing or too many.
        """
        found = checkpoint.get("stage")
        if found != self.stage:
            raise CheckpointError(f"The checkpoint is of the stage {found!r} and cannot resume {self.stage!r}: give the run folder of that stage.")
        expected, given = self._trainable_names(), set(checkpoint.get("state_dict", {}))
        if given and expected != given:  # DeepSpeed has loaded its shares by itself
            raise CheckpointError(
                f"The checkpoint of the stage {self.stage} does not fit the model: missing {sorted(expected - given)[:3] or 'nothing'}, "
                f"unknown {sorted(given - expected)[:3] or 'nothing'}. Resume with the model settings it was trained with."
            )

    def _trainable_names(self) -> set[str]:
        return {name for name, parameter in self.named_parameters() if parameter.requires_grad}

    def _seed_of(self, purpose: str) -> int:
        key = f"{self.seed}/{self.stage}/{purpose}/{self.micro_step}/{rank()}"
        return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest(), "big")

    def _log(self, metrics: Mapping[str, Tensor], prefix: str, batch: BatchT) -> None:
        across = not self.training and world_size() > 1
        values = {f"{self.stage}/{prefix}{name}": value.detach() for name, value in metrics.items()}
        self.log_dict(values, on_step=self.training, on_epoch=not self.training, batch_size=len(batch), sync_dist=across)
        if isinstance(batch, PairBatch) and not across:  # ranks validate on sources of their own, and can't agree on names
            values = {f"{self.stage}/by_source/{batch.source}/{prefix}{name}": value.detach() for name, value in metrics.items()}
            self.log_dict(values, on_step=self.training, on_epoch=not self.training, batch_size=len(batch))
        if self.training:
            self.log("loss", metrics["loss"].detach(), prog_bar=True, logger=False, batch_size=len(batch))

    def _adamw_8bit(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        asked = f"stages.{self.stage}.optim.optimizer is adamw_8bit, but"
        if self.device.type != "cuda":
            raise ConfigError(f"{asked} training runs on {self.device.type}, and moments in 8 bits need a GPU of NVIDIA's: choose adamw.")
        try:
            module = importlib.import_module("bitsandbytes.optim")
        except ImportError as error:
            raise ConfigError(f"{asked} bitsandbytes cannot be loaded ({error}): pip install 'twn-lightning[gpu]', or choose adamw.") from None
        optimizer: torch.optim.Optimizer = module.AdamW8bit(groups, lr=self.optim.learning_rate, betas=self.optim.betas)
        return optimizer

    def _can_fuse(self, parameters: list[nn.Parameter]) -> bool:
        # Lightning clips no fused optimiser in mixed precision, whether there is a scaler or not.
        mixed = self._trainer is not None and isinstance(self._trainer.precision_plugin, MixedPrecision)
        return not mixed and all(parameter.device.type in {"cpu", "cuda"} for parameter in parameters)

    def _not_finite(self, batch: BatchT, output: StepOutput) -> str:
        parts = ", ".join(f"{name} {float(value.detach()):.4g}" for name, value in {"loss": output.loss, **output.metrics}.items())
        origin = f" (source {batch.source!r}, first keys {list(batch.keys[:3])})" if isinstance(batch, PairBatch) else ""
        return (
            f"Stage {self.stage}, step {self.trainer.global_step}: the loss is not finite on this batch{origin}: {parts}. "
            "Lower the learning rate, clip gradients, or use bf16 instead of float16; then resume from the last checkpoint."
        )
