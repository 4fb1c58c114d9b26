"""The adapter switch: what is active, what requires gradients, and what a recomputed layer uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from transformers import Qwen3VLForConditionalGeneration

from twn_lightning.batches import Inputs, Item
from twn_lightning.errors import ConfigError
from twn_lightning.models.adapters import LoraSpec, active_adapter, lora_layers, use_adapter
from twn_lightning.models.dual_lora import DualLoRAModel

MakeModel = Callable[..., DualLoRAModel]
MakeItems = Callable[[int], list[Item]]


def hidden_states(model: DualLoRAModel, inputs: Inputs) -> Tensor:
    return model.backbone.decode_layers(model.backbone.prompt(inputs), inputs.attention_mask, None)


def test_adapters_off_is_the_backbone_bit_for_bit(tiny_model: DualLoRAModel, make_items: MakeItems, tiny_backbone_path: str) -> None:
    inputs = tiny_model.processor.inputs(make_items(10))
    original = Qwen3VLForConditionalGeneration.from_pretrained(tiny_backbone_path)
    with torch.no_grad(), use_adapter(tiny_model):
        ours = hidden_states(tiny_model, inputs)
        theirs = original.model(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            mm_token_type_ids=inputs.mm_token_type_ids,
            pixel_values=inputs.pixel_values,
            image_grid_thw=inputs.image_grid_thw,
            pixel_values_videos=inputs.pixel_values_videos,
            video_grid_thw=inputs.video_grid_thw,
        ).last_hidden_state
        text_only = tiny_model.processor.inputs(make_items(1))
        ours_text = hidden_states(tiny_model, text_only)
        theirs_text = original.model(input_ids=text_only.input_ids, attention_mask=text_only.attention_mask).last_hidden_state
    tokens = inputs.attention_mask.bool()
    assert torch.equal(ours_text, theirs_text)
    # Pictures: the tower runs equal sizes together, and images with videos, so that sums may be taken in another order.
    assert (ours[tokens] - theirs[tokens]).abs().max() <= 1e-5


def test_each_adapter_gives_something_else_and_the_switch_restores_what_was(tiny_model: DualLoRAModel, make_items: MakeItems) -> None:
    inputs = tiny_model.processor.inputs(make_items(1))
    outputs: dict[tuple[str, ...], torch.Tensor] = {}
    with use_adapter(tiny_model, "embedding"):
        for names in (("reasoning",), ("embedding",), ()):
            with use_adapter(tiny_model, *names):
                outputs[names] = hidden_states(tiny_model, inputs)
        assert active_adapter(lora_layers(tiny_model)) == "embedding"
    assert not torch.allclose(outputs["reasoning",], outputs["embedding",])
    assert not torch.allclose(outputs["reasoning",], outputs[()])


def test_the_switch_never_touches_requires_grad(tiny_model: DualLoRAModel) -> None:
    tiny_model.set_trainable("reasoning", "queries")
    before = {name: parameter.requires_grad for name, parameter in tiny_model.named_parameters()}
    with use_adapter(tiny_model, "embedding"):
        assert {name: parameter.requires_grad for name, parameter in tiny_model.named_parameters()} == before
    assert {name: parameter.requires_grad for name, parameter in tiny_model.named_parameters()} == before


def test_one_backward_after_two_forwards_reaches_both_adapters(tiny_model: DualLoRAModel, make_items: MakeItems) -> None:
    inputs = tiny_model.processor.inputs(make_items(2))
    tiny_model.set_trainable("reasoning", "embedding")
    loss = torch.zeros(())
    for name in ("reasoning", "embedding"):
        with use_adapter(tiny_model, name):
            loss = loss + hidden_states(tiny_model, inputs).square().mean()
    torch.autograd.backward(loss)
    assert all(parameter.grad is not None for parameter in tiny_model.named_part_parameters("reasoning", "embedding").values())


def test_a_recomputed_layer_uses_the_adapter_of_its_forward(make_model: MakeModel, make_items: MakeItems) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = make_model().train()
        model.set_trainable("reasoning", "embedding")
        if checkpointing:
            model.enable_gradient_checkpointing()
        inputs = model.processor.inputs(make_items(2))
        with use_adapter(model, "reasoning"):
            loss = hidden_states(model, inputs).square().mean()
        with use_adapter(model, "embedding"):  # active while the layers above are recomputed
            torch.autograd.backward(loss)
        parameters = model.named_part_parameters("reasoning", "embedding")
        gradients.append({name: parameter.grad for name, parameter in parameters.items()})
    plain, recomputed = gradients
    for name, gradient in plain.items():
        assert (gradient is None) == (".embedding." in name)
        again = recomputed[name]
        assert (again is None) if gradient is None else (again is not None and torch.allclose(gradient, again, atol=1e-6))


def test_no_lora_in_the_vision_tower(tiny_model: DualLoRAModel) -> None:
    names = list(tiny_model.named_part_parameters("reasoning", "embedding"))
    assert len(names) == 2 * 2 * 7 * 3  # adapters, A and B, projections, layers
    assert all("language_model" in name for name in names)


@pytest.mark.parametrize("values", [{"rank": 0}, {"alpha": 0}, {"dropout": 1.0}, {"target_modules": ()}])
def test_a_lora_spec_out_of_range_is_refused(values: dict[str, int | float | Sequence[str]]) -> None:
    with pytest.raises(ConfigError, match="is no adapter"):
        LoraSpec(**{"rank": 4, "alpha": 8} | values)  # type: ignore[arg-type]
