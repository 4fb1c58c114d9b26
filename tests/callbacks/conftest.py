"""A stage that trains in a blink, and loggers that remember."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch.utils.data import DataLoader

from twn_lightning.batches import GateBatch
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.stages.base import OptimSpec
from twn_lightning.stages.gate import GateStage


class Memory(DummyLogger):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.metrics: dict[str, dict[int, float]] = {}
        self.texts: dict[str, str] = {}
        self.figures: list[str] = []

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        metrics = args[0] if args else kwargs["metrics"]
        for name, value in metrics.items():
            self.metrics.setdefault(name, {})[kwargs["step"]] = value

    def log_text(self, name: str, text: str) -> None:
        self.texts[name] = text

    def log_figure(self, name: str, figure: object) -> None:
        self.figures.append(name)


@pytest.fixture
def memory() -> Memory:
    return Memory()


@pytest.fixture
def make_trainer() -> Callable[..., Trainer]:
    """A quiet trainer on the CPU with these callbacks."""

    def make(*callbacks: Callback, **settings: Any) -> Trainer:
        defaults: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "logger": False, "max_steps": 6, "limit_val_batches": 0}
        defaults |= {"enable_progress_bar": False, "enable_checkpointing": False, "enable_model_summary": False, "log_every_n_steps": 1}
        return Trainer(callbacks=list(callbacks), **(defaults | settings))

    return make


@pytest.fixture
def gate_examples(tiny_model: DualLoRAModel) -> GateBatch:
    state = torch.randn(24, tiny_model.gate.width, generator=torch.Generator().manual_seed(0))
    return GateBatch(state=state, gain=state[:, 0])


@pytest.fixture
def gate_stage(tiny_model: DualLoRAModel) -> GateStage:
    return GateStage(tiny_model, OptimSpec(learning_rate=0.02, total_steps=6))


@pytest.fixture
def gate_loader(gate_examples: GateBatch) -> DataLoader[GateBatch]:
    return DataLoader([gate_examples] * 12, batch_size=None)  # type: ignore[arg-type]
