"""Query heads that share keys are rows of one head: the same attention, without copies of the cache."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from twn_lightning.models.backbones import load_backbone
from twn_lightning.models.backbones.packed_attention import NAME, packed_sdpa

ROWS, HEADS, KEY_HEADS, TOKENS, COLUMNS, HEAD_SIZE = 2, 8, 2, 3, 40, 16


@pytest.fixture
def layer() -> nn.Module:
    """What transformers' function reads of an attention layer."""
    module = nn.Module()
    module.num_key_value_groups, module.is_causal = HEADS // KEY_HEADS, True  # type: ignore[assignment]
    return module


def tensors(tokens: int = TOKENS, columns: int = COLUMNS) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Query, key, value, and a mask that hides other columns in each row of the batch."""
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(ROWS, HEADS, tokens, HEAD_SIZE, generator=generator, requires_grad=True)
    key, value = (torch.randn(ROWS, KEY_HEADS, columns, HEAD_SIZE, generator=generator, requires_grad=True) for _ in range(2))
    mask = torch.ones(ROWS, 1, tokens, columns, dtype=torch.bool).tril(columns - tokens)
    mask[1, :, :, :5] = False
    return query, key, value, mask


@pytest.mark.parametrize(("tokens", "columns"), [(TOKENS, COLUMNS), (1, COLUMNS), (TOKENS, TOKENS)])
def test_values_and_gradients_are_those_of_repeated_keys(layer: nn.Module, tokens: int, columns: int) -> None:
    outcomes = []
    for attend in (packed_sdpa, sdpa_attention_forward):
        query, key, value, mask = tensors(tokens, columns)
        if tokens == columns:
            mask[1] = mask[0]
        output, _ = attend(layer, query, key, value, mask, scaling=0.25)
        (output * torch.linspace(0, 1, output.numel()).reshape(output.shape)).sum().backward()  # type: ignore[no-untyped-call]
        outcomes.append((output, query.grad, key.grad, value.grad))
    for own, other in zip(*outcomes, strict=True):
        assert own is not None
        assert other is not None
        assert own.shape == other.shape
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-5)


def test_without_a_mask_transformers_decides(layer: nn.Module) -> None:
    query, key, value, _ = tensors()
    own, _ = packed_sdpa(layer, query, key, value, None, scaling=0.25, is_causal=False)
    other, _ = sdpa_attention_forward(layer, query, key, value, None, scaling=0.25, is_causal=False)
    assert torch.equal(own, other)


def test_nothing_of_the_cache_is_copied_for_backward(layer: nn.Module) -> None:
    """Of keys and values, what is kept are the tensors that were given; transformers keeps a copy for each query head."""
    kept = {}
    for attend in (packed_sdpa, sdpa_attention_forward):
        query, key, value, mask = tensors()
        own = {key.untyped_storage().data_ptr(), value.untyped_storage().data_ptr()}
        sizes: dict[int, int] = {}

        def keep(tensor: Tensor, own: set[int] = own, sizes: dict[int, int] = sizes) -> Tensor:
            if tensor.dim() == 4 and tensor.shape[2] == COLUMNS and tensor.untyped_storage().data_ptr() not in own:
                sizes[tensor.untyped_storage().data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            attend(layer, query, key, value, mask, scaling=0.25)
        kept[attend] = sum(sizes.values())
    assert kept[packed_sdpa] == 0
    assert kept[sdpa_attention_forward] == 2 * ROWS * HEADS * COLUMNS * HEAD_SIZE


def test_the_decoder_of_a_backbone_uses_it_and_its_config_goes_on_saying_sdpa(tiny_backbone_path: Path) -> None:
    for implementation, used in (("sdpa", NAME), ("eager", "eager")):
        model = load_backbone(tiny_backbone_path, attn_implementation=implementation).model
        assert {layer.self_attn.config._attn_implementation for layer in model.model.language_model.layers} == {used}
        assert model.config.get_text_config()._attn_implementation == implementation
