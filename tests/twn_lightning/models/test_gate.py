"""The gate's arithmetic."""

import pytest
import torch

from twn_lightning.models.gate import RoutingGate


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_logit_is_float32_and_ignores_the_states_length_whatever_the_weights_type(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    gate = RoutingGate(16, gate_hidden_size=8).to(dtype)
    state = torch.randn(5, 16, requires_grad=True)
    logit = gate(state)
    assert logit.dtype == gate.probability(state).dtype == torch.float32
    assert torch.allclose(gate(3.0 * state), logit, atol=1e-3)
    torch.autograd.backward(logit.sum())
    assert state.grad is None
    assert all(parameter.grad is not None and parameter.grad.dtype == dtype for parameter in gate.parameters())
