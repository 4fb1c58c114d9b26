"""One shared adapter, and the last token in place of queries: which settings are equal, where gradients go, and that bundles load again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from twn_lightning.batches import Inputs, Item, Thoughts
from twn_lightning.checkpoints import BundleDefaults, load_bundle, load_bundle_into, save_bundle
from twn_lightning.errors import CheckpointError, ConfigError
from twn_lightning.models.adapters import LoraSpec, use_adapter
from twn_lightning.models.backbones.base import Backbone
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.outputs import Decoding

MakeModel = Callable[..., DualLoRAModel]
MakeItems = Callable[[int], list[Item]]

SHARED = {"embedding": None, "detach": False}
LAST = {"num_queries": 0}
ARRANGEMENTS = [
    {**SHARED},
    {**SHARED, "interface": "reencode"},
    {**SHARED, **LAST},
    {**SHARED, **LAST, "interface": "reencode"},
    {**LAST, "interface": "reencode"},
]
IDS = ["shared", "shared-reencode", "shared-last", "shared-last-reencode", "last-reencode"]
COTS = ("the flag shows a red dot", "3 + 4 = 7", "so it is Japan, and its capital is Tokyo", "a")


def batch(model: DualLoRAModel, items: list[Item]) -> tuple[Inputs, Thoughts]:
    """Prompts of the items and thoughts of four different lengths."""
    return model.processor.inputs(items), model.processor.thoughts([COTS[index % len(COTS)] for index in range(len(items))])


def vectors(model: DualLoRAModel, inputs: Inputs, thoughts: Thoughts) -> Tensor:
    """Embeddings without thoughts, then with them."""
    prompts = model.prefill(inputs)
    return torch.stack([model.embed(prompts).vector, model.embed(model.extend(prompts, thoughts)).vector])


def touched(model: DualLoRAModel) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.grad is not None and bool(parameter.grad.any())}


@pytest.mark.parametrize("settings", ARRANGEMENTS, ids=IDS)
@torch.no_grad()
def test_batch_is_its_single_rows_however_it_is_padded(make_model: MakeModel, make_items: MakeItems, settings: dict[str, object]) -> None:
    model, items = make_model(**settings), make_items(4)
    assert model.processor.options.padding_side == "left"
    together = vectors(model, *batch(model, items))
    for row, item in enumerate(items):
        alone = vectors(model, model.processor.inputs([item]), model.processor.thoughts([COTS[row]]))
        assert torch.allclose(together[:, row], alone[:, 0], atol=1e-5)
    inputs, thoughts = batch(model, [items[0], Item(text="a")])
    right, number = pad_right(inputs), inputs.attention_mask.sum(dim=1)
    assert number[0] != number[1]
    assert torch.allclose(vectors(model, inputs, thoughts), vectors(model, right, thoughts), atol=1e-5)


def pad_right(inputs: Inputs) -> Inputs:
    """The same text prompts with their padding on the other side."""
    order = inputs.attention_mask.argsort(dim=1, descending=True, stable=True)
    return replace(inputs, input_ids=inputs.input_ids.gather(1, order), attention_mask=inputs.attention_mask.gather(1, order))


@pytest.mark.parametrize("settings", [SHARED, {**SHARED, **LAST}], ids=["queries", "last"])
@torch.no_grad()
def test_with_a_shared_adapter_the_interfaces_agree(make_model: MakeModel, make_items: MakeItems, settings: dict[str, object]) -> None:
    kv, reencode = (make_model(interface=interface, **settings) for interface in ("kv", "reencode"))
    inputs, thoughts = batch(kv, make_items(5))
    assert torch.allclose(vectors(kv, inputs, thoughts), vectors(reencode, inputs, thoughts), atol=1e-5)
    written = [model.encode(inputs, think="always", decoding=Decoding(max_new_tokens=5)) for model in (kv, reencode)]
    assert torch.allclose(written[0].generative, written[1].generative, atol=1e-5)


@torch.no_grad()
def test_last_is_the_normalised_state_of_the_last_token(make_model: MakeModel, make_items: MakeItems) -> None:
    model = make_model(interface="reencode", **LAST)
    inputs = model.processor.inputs(make_items(1))
    with use_adapter(model.backbone.model, "embedding"):
        state = model.backbone.decode_layers(model.backbone.prompt(inputs), inputs.attention_mask, None)[0, -1]
    assert torch.allclose(model.embed(model.prefill(inputs)).vector[0], state / state.norm(), atol=1e-6)


@torch.no_grad()
def test_shared_adapter_is_two_equal_ones(make_model: MakeModel, make_items: MakeItems) -> None:
    shared, dual = make_model(**SHARED), make_model()
    own = dict(shared.named_parameters())
    for name, parameter in dual.named_parameters():
        parameter.copy_(own[name.replace(".embedding.", ".reasoning.") if ".lora_" in name else name])
    inputs, thoughts = batch(shared, make_items(5))
    assert torch.allclose(vectors(shared, inputs, thoughts), vectors(dual, inputs, thoughts), atol=1e-6)


@pytest.mark.parametrize("settings", ARRANGEMENTS[:4], ids=IDS[:4])
def test_contrastive_gradient_reaches_all_of_a_shared_adapter(make_model: MakeModel, make_items: MakeItems, settings: dict[str, object]) -> None:
    model = make_model(**settings).train()
    model.set_trainable("embedding", "queries")
    vectors(model, *batch(model, make_items(3))).sum().backward()  # type: ignore[no-untyped-call]
    parts = model.named_part_parameters("embedding", "queries")
    assert touched(model) == {name for name, parameter in parts.items() if parameter.numel()}
    assert parts.keys() - {"query_table.weight"} == model.named_part_parameters("reasoning").keys()


def test_gradient_through_the_cache_is_that_of_one_pass(make_model: MakeModel, make_items: MakeItems) -> None:
    gradients = []
    for interface in ("kv", "reencode"):
        model = make_model(interface=interface, **SHARED)
        model.set_trainable("embedding", "queries")
        vectors(model, *batch(model, make_items(4)))[..., 0].sum().backward()  # type: ignore[no-untyped-call]
        gradients.append([parameter.grad for parameter in model.named_part_parameters("embedding", "queries").values()])
    for cached, whole in zip(*gradients, strict=True):
        assert cached is not None
        assert whole is not None
        assert torch.allclose(cached, whole, atol=1e-4 * float(whole.abs().max()) + 1e-7)


@pytest.mark.parametrize("num_queries", [0, 2])
@pytest.mark.parametrize("detach", [True, False])
def test_reencoding_keeps_the_reasoning_adapter_out(make_model: MakeModel, make_items: MakeItems, detach: bool, num_queries: int) -> None:
    model = make_model(interface="reencode", detach=detach, num_queries=num_queries).train()
    model.set_trainable("reasoning", "embedding", "queries")
    supervised = model.supervise(*batch(model, make_items(3)))
    (model.embed(supervised.prefix).vector.sum() + model.embed(supervised.prefix.without_thoughts()).vector.sum()).backward()  # type: ignore[no-untyped-call]
    assert touched(model)
    assert touched(model) <= set(model.named_part_parameters("embedding", "queries"))


def test_report_counts_a_shared_adapter_once_and_no_queries(make_model: MakeModel) -> None:
    dual, shared, last = make_model().parameter_report(), make_model(**SHARED).parameter_report(), make_model(**SHARED, **LAST)
    assert shared["reasoning"] == dual["reasoning"]
    assert shared["embedding"] == 0
    assert dual["added"] - shared["added"] == dual["embedding"]
    report = last.parameter_report()
    assert (last.num_queries, report["queries"]) == (0, 0)
    last.set_trainable("reasoning", "embedding", "queries", "gate")
    assert last.parameter_report()["trainable"] == report["added"]


def test_contradictions_are_refused(tiny_backbone: Backbone) -> None:
    spec = LoraSpec(rank=2, alpha=4)
    with pytest.raises(ConfigError, match="cannot be cut off from itself"):
        DualLoRAModel(tiny_backbone, reasoning=spec, embedding=None, num_queries=2)
    with pytest.raises(ConfigError, match="the reasoning adapter alone has read the last token"):
        DualLoRAModel(tiny_backbone, reasoning=spec, embedding=spec, num_queries=0)


@pytest.mark.parametrize("settings", ARRANGEMENTS, ids=IDS)
def test_bundle_loads_again(make_model: MakeModel, make_items: MakeItems, tmp_path: Path, settings: dict[str, object]) -> None:
    model = make_model(**settings)
    folder = save_bundle(model, tmp_path / "bundle", provenance={}, backbone_path=model.backbone.path)
    loaded, into = load_bundle(folder), make_model(seed=7, **settings)
    load_bundle_into(into, folder)
    assert (loaded.is_shared, loaded.num_queries) == (model.is_shared, model.num_queries)
    inputs, thoughts = batch(model, make_items(3))
    with torch.no_grad():
        for other in (loaded, into):
            assert torch.equal(vectors(other, inputs, thoughts), vectors(model, inputs, thoughts))


def test_shared_bundle_in_the_published_layout_is_a_dual_one(make_model: MakeModel, make_items: MakeItems, tmp_path: Path) -> None:
    model = make_model(**SHARED)
    folder = save_bundle(model, tmp_path / "bundle", provenance={}, backbone_path=model.backbone.path)
    (folder / "twn_config.json").unlink()
    dual = load_bundle(folder, fallback=BundleDefaults(backbone_path=model.backbone.path, processor=model.processor.options))
    inputs, thoughts = batch(model, make_items(3))
    with torch.no_grad():
        assert torch.allclose(vectors(dual, inputs, thoughts), vectors(model, inputs, thoughts), atol=1e-6)


def test_two_adapters_do_not_become_a_shared_one(make_model: MakeModel, tmp_path: Path) -> None:
    dual = make_model()
    folder = save_bundle(dual, tmp_path / "bundle", provenance={}, backbone_path=dual.backbone.path)
    with pytest.raises(CheckpointError, match="two different adapters, but the model has one shared"):
        load_bundle_into(make_model(**SHARED), folder)
