import pytest
import torch

from twn_lightning.batches import GateBatch
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.stages.base import OptimSpec
from twn_lightning.stages.gate import GateStage

OPTIM = OptimSpec(learning_rate=1e-2, total_steps=50)


def batch(model: DualLoRAModel) -> GateBatch:
    state = torch.randn(32, model.gate.width, generator=torch.Generator().manual_seed(0))
    return GateBatch(state=state, gain=3 * state[:, 0])


def test_gate_learns_where_thinking_gains(tiny_model: DualLoRAModel) -> None:
    stage = GateStage(tiny_model, OPTIM)
    optimizer = stage.configure_optimizers()["optimizer"]
    for _ in range(50):
        optimizer.zero_grad()
        output = stage.step(batch(tiny_model))
        output.loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert output.metrics["accuracy"] > 0.95
    assert output.loss < 0.2
    assert {name for name, parameter in tiny_model.named_parameters() if parameter.grad is not None} == set(tiny_model.named_part_parameters("gate"))


def test_rates_count_labels_and_examples_that_are_kept(tiny_model: DualLoRAModel) -> None:
    with torch.no_grad():
        for parameter in tiny_model.gate.mlp[2].parameters():
            parameter.fill_(0.0)  # every logit is 0: "think" for all
    state = torch.zeros(5, tiny_model.gate.width)
    gain = torch.tensor([2.0, 0.3, 0.01, -1.0, -2.0])  # margin 0.5: the second is labelled 0; the third lies in the dead zone
    metrics = GateStage(tiny_model, OPTIM, margin=0.5, dead_zone=0.05).step(GateBatch(state=state, gain=gain)).metrics
    assert metrics["label_rate"].item() == pytest.approx(1 / 4)
    assert metrics["accuracy"].item() == pytest.approx(1 / 4)
    assert metrics["kept_rate"].item() == pytest.approx(4 / 5)
    assert metrics["think_rate"].item() == 1.0
    assert metrics["gain"].item() == pytest.approx(gain.mean().item())
