"""The gate's arithmetic."""

from collections.abc import Callable

import pytest
import torch

from twn_lightning.batches import Item
from twn_lightning.errors import ConfigError
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.gate import GateReads, RoutingGate
from twn_lightning.models.outputs import Decoding, Embedding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_logit_is_float32_and_ignores_the_states_length_whatever_the_weights_type(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    gate = RoutingGate(16, gate_hidden_size=8, reads="embedding").to(dtype)
    state = torch.randn(5, 16, requires_grad=True)
    logit = gate(state)
    assert logit.dtype == gate.probability(state).dtype == torch.float32
    assert torch.allclose(gate(3.0 * state), logit, atol=1e-3)
    torch.autograd.backward(logit.sum())
    assert state.grad is None
    assert all(parameter.grad is not None and parameter.grad.dtype == dtype for parameter in gate.parameters())


@pytest.mark.parametrize(("reads", "width"), [("embedding", 16), ("prompt", 16), ("both", 32)])
def test_what_the_gate_reads_and_each_part_is_normalised_by_itself(reads: GateReads, width: int) -> None:
    torch.manual_seed(0)
    gate = RoutingGate(16, gate_hidden_size=8, reads=reads)
    state, prompt_state = torch.randn(5, 16), torch.randn(5, 16)
    embedding = Embedding(vector=state, state=state, prompt_state=prompt_state)
    reading = gate.reading(embedding)
    assert reading.shape == (5, width) == (5, gate.width)
    moved = Embedding(vector=state, state=3.0 * state, prompt_state=0.5 * prompt_state + 1.0)
    assert torch.allclose(gate(gate.reading(moved)), gate(reading), atol=1e-3)
    other = Embedding(vector=state, state=torch.randn(5, 16), prompt_state=prompt_state)
    assert torch.equal(gate(gate.reading(other)), gate(reading)) == (reads == "prompt")


def test_a_gate_that_reads_nothing_known_is_refused() -> None:
    with pytest.raises(ConfigError, match="model.gate.reads is 'thought'; choose embedding, prompt or both"):
        RoutingGate(16, reads="thought")  # type: ignore[arg-type]


@pytest.mark.parametrize("interface", ["kv", "reencode"])
def test_the_prompt_state_is_the_mean_over_the_words_whatever_they_are_batched_with(
    make_model: Callable[..., DualLoRAModel], make_items: Callable[[int], list[Item]], interface: str
) -> None:
    model = make_model(interface=interface).eval()
    inputs = model.processor.inputs(make_items(5))
    with torch.no_grad():
        found = model.embed(model.prefill(inputs)).prompt_state
        adapter = "reasoning" if interface == "kv" else "embedding"
        with model._pass(adapter, dropout=False, recompute=False):
            hidden = model.backbone.decode_layers(model.backbone.prompt(inputs), inputs.attention_mask, None)
        alone = model.embed(model.prefill(model.processor.inputs(make_items(5)[3:4]))).prompt_state
    assert found is not None
    assert alone is not None
    is_word = inputs.attention_mask.bool() & (inputs.mm_token_type_ids == 0)
    expected = torch.stack([row[words].mean(dim=0) for row, words in zip(hidden, is_word, strict=True)])
    assert not bool(is_word.all())
    assert torch.allclose(found, expected, atol=1e-5)
    assert torch.allclose(found[3], alone[0], atol=1e-4)


def test_a_gate_on_the_prompt_alone_routes_the_rows_it_chose(
    make_model: Callable[..., DualLoRAModel], make_items: Callable[[int], list[Item]]
) -> None:
    model = make_model(gate_reads="prompt").eval()
    inputs = model.processor.inputs(make_items(5))
    whole = model.encode(inputs, think="always", decoding=Decoding(max_new_tokens=4))
    assert whole.state.shape == (5, model.hidden_size)
    model.gate.threshold = float(whole.gate_probability.sort().values[2])
    routed = model.encode(inputs, think="auto", decoding=Decoding(max_new_tokens=4))
    assert routed.thinks.sum() == 3
    assert torch.allclose(routed.vector, torch.where(routed.thinks[:, None], whole.generative, whole.discriminative), atol=1e-5)


def test_dropout_hides_what_the_gate_reads_in_training_mode_alone() -> None:
    torch.manual_seed(0)
    gate, state = RoutingGate(16, gate_hidden_size=8), torch.randn(5, 16)
    whole = gate(state)
    gate.dropout = 0.5
    assert not torch.equal(gate(state), whole)
    assert torch.equal(gate.eval()(state), whole)
