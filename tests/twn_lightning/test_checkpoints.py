"""Bundles: what is saved is what is loaded, and each way of being broken has its message."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from twn_lightning.batches import Item
from twn_lightning.checkpoints import BundleDefaults, load_bundle, load_bundle_into, save_bundle
from twn_lightning.errors import CheckpointError
from twn_lightning.models.adapters import LoraSpec
from twn_lightning.models.backbones import load_backbone
from twn_lightning.models.backbones.base import ProcessorOptions
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.outputs import Decoding

MakeModel = Callable[..., DualLoRAModel]
MakeItems = Callable[[int], list[Item]]


@pytest.fixture(scope="module")
def saved_bundle(make_model: MakeModel, tmp_path_factory: pytest.TempPathFactory, tiny_backbone_path: Path) -> Path:
    model = make_model(gate_hidden_size=7, num_queries=3)
    model.gate.threshold, model.gate.curve = 0.25, [{"threshold": 0.25, "quality": 61.5, "tokens": 8.0}]
    folder = tmp_path_factory.mktemp("saved") / "bundle"
    return save_bundle(model, folder, provenance={"stage": "gate", "seed": 7}, backbone_path=tiny_backbone_path)


@pytest.fixture
def bundle(saved_bundle: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return shutil.copytree(saved_bundle, tmp_path / "bundle")


def assert_same(one: DualLoRAModel, other: DualLoRAModel, items: list[Item]) -> None:
    theirs = dict(other.named_parameters())
    assert all(torch.equal(parameter, theirs[name]) for name, parameter in one.named_parameters())
    decoding = Decoding(max_new_tokens=6)
    first, second = (model.encode(model.processor.inputs(items), think="auto", decoding=decoding) for model in (one, other))
    assert torch.equal(first.vector, second.vector)
    assert torch.equal(first.gate_probability, second.gate_probability)
    assert torch.equal(first.thinks, second.thinks)


@pytest.mark.parametrize("interface", ["kv", "reencode"])
def test_a_loaded_bundle_is_the_saved_model(
    make_model: MakeModel, make_items: MakeItems, tmp_path: Path, tiny_backbone_path: Path, interface: str
) -> None:
    model = make_model(interface=interface, num_queries=3, gate_hidden_size=5, dropout=0.1)
    model.gate.threshold = 0.4
    loaded = load_bundle(save_bundle(model, tmp_path / "bundle", provenance={}, backbone_path=tiny_backbone_path))
    assert_same(model, loaded, make_items(5))
    assert loaded.interface == interface
    assert loaded.gate.threshold == 0.4
    assert loaded.adapters == model.adapters
    assert loaded.processor.options == model.processor.options
    assert not loaded.training


@pytest.mark.parametrize("reads", ["embedding", "prompt", "both"])
def test_a_loaded_gate_reads_what_the_saved_one_read(
    make_model: MakeModel, make_items: MakeItems, tmp_path: Path, tiny_backbone_path: Path, reads: str
) -> None:
    model = make_model(gate_reads=reads)
    folder = save_bundle(model, tmp_path / "bundle", provenance={}, backbone_path=tiny_backbone_path)
    loaded = load_bundle(folder)
    assert loaded.gate.reads == reads
    assert_same(model, loaded, make_items(3))
    other = make_model(gate_reads="prompt" if reads == "embedding" else "embedding")
    with pytest.raises(CheckpointError, match=f"reads {reads}, the model's {other.gate.reads}: set model.gate.reads={reads}"):
        load_bundle_into(other, folder)


def test_a_bundle_has_the_published_layout_and_no_pickled_objects(bundle: Path) -> None:
    assert {path.name for path in bundle.iterdir()} >= {"reasoning", "embedding", "gate_mlp.pt", "queries.pt", "twn_config.json"}
    assert (bundle / "reasoning" / "adapter_model.safetensors").is_file()
    assert torch.load(bundle / "queries.pt", weights_only=True)["queries"].shape == (3, 32)
    config = json.loads((bundle / "twn_config.json").read_text())
    assert config["provenance"] == {"stage": "gate", "seed": 7}
    assert config["gate"]["curve"] == [{"threshold": 0.25, "quality": 61.5, "tokens": 8.0}]


def test_the_reference_is_not_saved(tiny_model: DualLoRAModel, tmp_path: Path, tiny_backbone_path: Path) -> None:
    tiny_model.add_reference()
    bundle = save_bundle(tiny_model, tmp_path / "bundle", provenance={}, backbone_path=tiny_backbone_path)
    assert not (bundle / "reference").exists()
    assert not any("reference" in name for name, _ in load_bundle(bundle).named_parameters())


def test_saving_again_replaces_all_of_it(bundle: Path, make_model: MakeModel, make_items: MakeItems, tiny_backbone_path: Path) -> None:
    (bundle / "left_over.txt").write_text("of the first")
    model = make_model(seed=5)
    save_bundle(model, bundle, provenance={}, backbone_path=tiny_backbone_path)
    assert not (bundle / "left_over.txt").exists()
    assert [path.name for path in bundle.parent.iterdir()] == ["bundle"]
    assert_same(model, load_bundle(bundle), make_items(2))


def test_the_next_stage_takes_over_tensors_threshold_and_curve(bundle: Path, make_model: MakeModel, make_items: MakeItems) -> None:
    other = make_model(seed=9, gate_hidden_size=7, num_queries=3)
    load_bundle_into(other, bundle)
    assert other.gate.threshold == 0.25
    assert other.gate.curve[0]["quality"] == 61.5
    assert_same(load_bundle(bundle), other, make_items(3))


def test_the_four_published_parts_load_with_settings_given_as_arguments(bundle: Path, make_items: MakeItems, tiny_backbone_path: Path) -> None:
    whole = load_bundle(bundle)
    (bundle / "twn_config.json").unlink()
    options = ProcessorOptions(num_frames=4, max_thought_tokens=48)
    fallback = BundleDefaults(backbone_path=str(tiny_backbone_path), gate_threshold=0.25, gate_reads="prompt", processor=options)
    assert_same(whole, load_bundle(bundle, fallback=fallback), make_items(5))
    with pytest.raises(CheckpointError, match="holds no twn_config.json: say what it would"):
        load_bundle(bundle)
    with pytest.raises(CheckpointError, match="does not say which backbone"):
        load_bundle(bundle, fallback=BundleDefaults())


def test_published_parts_may_name_things_differently(bundle: Path, make_items: MakeItems, tiny_backbone_path: Path) -> None:
    """Target modules as a list of names, the queries as a bare tensor, the gate's layers under other names."""
    whole = load_bundle(bundle)
    (bundle / "twn_config.json").unlink()
    for adapter in ("reasoning", "embedding"):
        path = bundle / adapter / "adapter_config.json"
        config = json.loads(path.read_text())
        path.write_text(json.dumps(config | {"target_modules": list(LoraSpec(rank=1, alpha=1).target_modules)}))
    torch.save(whole.queries.detach()[None], bundle / "queries.pt")
    torch.save({f"net.fc{int(key[0]) // 2 + 1}.{key[2:]}": tensor for key, tensor in whole.gate.mlp.state_dict().items()}, bundle / "gate_mlp.pt")
    options = ProcessorOptions(num_frames=4, max_thought_tokens=48)
    assert_same(
        whole,
        load_bundle(
            bundle,
            backbone=load_backbone(tiny_backbone_path, options=options),
            fallback=BundleDefaults(gate_threshold=0.25, gate_reads="prompt"),
        ),
        make_items(3),
    )


def test_a_bundle_from_before_a_setting_was_there_has_its_default(bundle: Path) -> None:
    config = json.loads((bundle / "twn_config.json").read_text())
    for name in ("layout", "default_instruction", "max_video_pixels"):
        del config["processor"][name]
    (bundle / "twn_config.json").write_text(json.dumps(config))
    options = load_bundle(bundle).processor.options
    assert (options.layout, options.default_instruction, options.max_video_pixels) == ("user", "", None)


def test_a_relative_backbone_path_is_found_from_the_folders_above(bundle: Path, tiny_backbone_path: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_backbone_path, tmp_path / "backbones" / "tiny")
    config = json.loads((bundle / "twn_config.json").read_text())
    config["backbone"]["path"] = "backbones/tiny"
    (bundle / "twn_config.json").write_text(json.dumps(config))
    assert load_bundle(bundle).backbone.path == str(tmp_path / "backbones" / "tiny")


def drop_a_key(bundle: Path) -> None:
    path = bundle / "embedding" / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, path)


def add_a_key(bundle: Path) -> None:
    path = bundle / "reasoning" / "adapter_model.safetensors"
    save_file(load_file(path) | {"base_model.model.foreign.lora_A.weight": torch.zeros(1)}, path)


def edit_config(bundle: Path, **changes: object) -> None:
    path = bundle / "twn_config.json"
    path.write_text(json.dumps({key: value for key, value in (json.loads(path.read_text()) | changes).items() if value is not None}))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda bundle: (bundle / "queries.pt").unlink(), "lacks queries.pt"),
        (lambda bundle: shutil.rmtree(bundle / "reasoning"), "lacks reasoning"),
        (shutil.rmtree, "There is no bundle at"),
        (drop_a_key, r"embedding lacks .*lora_A.*\(1 in all\)"),
        (add_a_key, r"reasoning holds base_model.model.foreign.lora_A.weight, which the model does not have"),
        (lambda bundle: (bundle / "gate_mlp.pt").write_bytes(b"not tensors"), "gate_mlp.pt is not a file of tensors"),
        (lambda bundle: torch.save({"queries": object}, bundle / "queries.pt"), "queries.pt is not a file of tensors"),
        (lambda bundle: torch.save({"queries": "words"}, bundle / "queries.pt"), "something else than named tensors"),
        (lambda bundle: torch.save({"queries": torch.zeros(3, 8)}, bundle / "queries.pt"), "is 8 wide, the backbone .* 32"),
        (
            lambda bundle: torch.save({"weight": torch.zeros(3, 8)}, bundle / "gate_mlp.pt"),
            r"must hold weight and bias of two layers .*; it holds weight \(3, 8\)",
        ),
        (lambda bundle: (bundle / "embedding" / "adapter_model.safetensors").write_bytes(b"zz"), "cannot be read"),
        (lambda bundle: (bundle / "embedding" / "adapter_config.json").write_text("{"), "is no folder of a PEFT adapter"),
        (lambda bundle: (bundle / "twn_config.json").write_text("{"), "twn_config.json is not JSON"),
        (lambda bundle: edit_config(bundle, interface=None), "twn_config.json lacks interface"),
        (lambda bundle: edit_config(bundle, format=9), "of format 9; this version reads 1"),
        (lambda bundle: edit_config(bundle, processor={"nm_frames": 3}), "lacks or misnames .*nm_frames"),
    ],
)
def test_a_broken_bundle_says_what_and_where(bundle: Path, spoil: Callable[[Path], None], words: str) -> None:
    spoil(bundle)
    with pytest.raises(CheckpointError, match=words):
        load_bundle(bundle)


def test_a_bundle_of_a_retrained_backbone_is_refused(bundle: Path, tiny_backbone_path: Path) -> None:
    backbone = load_backbone(tiny_backbone_path)
    with torch.no_grad():
        backbone.model.get_parameter("model.language_model.embed_tokens.weight").mul_(1.1)
    with pytest.raises(CheckpointError, match="other weights"):
        load_bundle(bundle, backbone=backbone)


def test_a_model_of_other_rank_refuses_the_bundle(bundle: Path, tiny_backbone_path: Path) -> None:
    spec = LoraSpec(rank=2, alpha=8)
    model = DualLoRAModel(load_backbone(tiny_backbone_path), reasoning=spec, embedding=spec, num_queries=3, gate_hidden_size=7)
    with pytest.raises(CheckpointError, match="rank 4 and alpha 8; the model has 2 and 8"):
        load_bundle_into(model, bundle)


def test_an_unwritable_folder_is_named(tiny_model: DualLoRAModel, tmp_path: Path, tiny_backbone_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"cannot be written to .*file/bundle"):
        save_bundle(tiny_model, tmp_path / "file" / "bundle", provenance={}, backbone_path=tiny_backbone_path)
