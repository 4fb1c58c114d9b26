"""The published layout: two PEFT folders, a gate and queries, and nothing that says more. What shapes tell is understood, the rest is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from twn_lightning.batches import Item
from twn_lightning.checkpoints import BundleDefaults, load_bundle, save_bundle
from twn_lightning.errors import CheckpointError
from twn_lightning.models.adapters import LoraSpec
from twn_lightning.models.backbones import load_backbone
from twn_lightning.models.backbones.base import ProcessorOptions
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.outputs import Decoding

MakeItems = Callable[[int], list[Item]]
HIDDEN, GATE_HIDDEN = 32, 7


@pytest.fixture(scope="module")
def whole(tiny_backbone_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Adapters of different ranks and targets, as a bundle without its settings."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = DualLoRAModel(
            load_backbone(tiny_backbone_path),
            reasoning=LoraSpec(rank=6, alpha=12),
            embedding=LoraSpec(rank=2, alpha=8, target_modules=("q_proj", "v_proj", "down_proj")),
            num_queries=3,
            gate_hidden_size=GATE_HIDDEN,
        )
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                nn.init.normal_(parameter, std=0.1)
    folder = save_bundle(model, tmp_path_factory.mktemp("published") / "twn", provenance={}, backbone_path=tiny_backbone_path)
    (folder / "twn_config.json").unlink()
    return folder


@pytest.fixture
def published(whole: Path, tmp_path: Path) -> Path:
    """A copy of it, to be changed."""
    return Path(shutil.copytree(whole, tmp_path / "twn"))


@pytest.fixture
def fallback(tiny_backbone_path: Path) -> BundleDefaults:
    options = ProcessorOptions(num_frames=4, max_thought_tokens=48)
    return BundleDefaults(backbone_path=str(tiny_backbone_path), gate_reads="prompt", processor=options)


def tensors(folder: Path, file: str) -> dict[str, Tensor]:
    loaded: dict[str, Tensor] = torch.load(folder / file, weights_only=True)
    return loaded


def edit_adapter(folder: Path, adapter: str, **changes: object) -> None:
    path = folder / adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def encoded(model: DualLoRAModel, items: list[Item]) -> list[Tensor]:
    result = model.encode(model.processor.inputs(items), think="always", decoding=Decoding(max_new_tokens=5))
    return [result.vector, result.discriminative, result.gate_probability]


def test_ranks_and_targets_are_those_of_the_adapters(published: Path, fallback: BundleDefaults) -> None:
    model = load_bundle(published, fallback=fallback)
    assert (model.adapters["reasoning"].rank, model.adapters["reasoning"].alpha) == (6, 12)
    assert (model.adapters["embedding"].rank, model.adapters["embedding"].alpha) == (2, 8)
    assert set(model.adapters["embedding"].target_modules) == {"q_proj", "v_proj", "down_proj"}
    assert (model.num_queries, model.gate.gate_hidden_size, model.gate.reads) == (3, GATE_HIDDEN, "prompt")
    stored = load_file(published / "embedding" / "adapter_model.safetensors")
    own = {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name and ".embedding." in name}
    assert len(own) == len(stored) == 2 * 3 * 3  # two matrices, three projections, three layers


@pytest.mark.parametrize(
    "rename",
    [
        lambda gate: {f"mlp.{key}": tensor for key, tensor in gate.items()},
        lambda gate: {f"net.{key}": tensor for key, tensor in gate.items()},
        lambda gate: {f"layers.{2 if key[0] == '0' else 10}.{key[2:]}": tensor for key, tensor in gate.items()},  # 10 comes after 2
        lambda gate: {f"{'hidden' if key[0] == '0' else 'a_first_name'}.{key[2:]}": tensor for key, tensor in gate.items()},  # shapes decide
        lambda gate: {"state_dict": gate},
        lambda gate: {key: nn.Parameter(tensor) for key, tensor in gate.items()},
    ],
    ids=["mlp", "net", "numbers", "words", "state_dict", "parameters"],
)
def test_a_gate_under_other_names_is_the_same(
    published: Path, fallback: BundleDefaults, rename: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    gate = tensors(published, "gate_mlp.pt")
    torch.save(rename(gate), published / "gate_mlp.pt")
    loaded = load_bundle(published, fallback=fallback).gate.mlp.state_dict()
    assert set(loaded) == set(gate) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert all(torch.equal(loaded[key], gate[key]) for key in gate)


def test_tensors_in_bfloat16_are_read_as_they_are(published: Path, fallback: BundleDefaults) -> None:
    for file in ("gate_mlp.pt", "queries.pt"):
        torch.save({key: tensor.bfloat16() for key, tensor in tensors(published, file).items()}, published / file)
    path = published / "reasoning" / "adapter_model.safetensors"
    halved = {key: tensor.bfloat16() for key, tensor in load_file(path).items()}
    save_file(halved, path)
    model = load_bundle(published, fallback=fallback)
    assert torch.equal(model.queries, tensors(published, "queries.pt")["queries"].float())
    assert model.queries.dtype == model.gate.mlp[0].weight.dtype == torch.float32
    name = next(iter(halved))
    assert torch.equal(dict(model.peft.named_parameters())[name.replace(".weight", ".reasoning.weight")], halved[name].float())


def test_a_gate_without_biases_has_biases_of_zero(published: Path, fallback: BundleDefaults) -> None:
    torch.save({key: tensor for key, tensor in tensors(published, "gate_mlp.pt").items() if "weight" in key}, published / "gate_mlp.pt")
    model = load_bundle(published, fallback=fallback)
    assert not any(bias.abs().any() for key, bias in model.gate.mlp.state_dict().items() if "bias" in key)


def test_a_gate_of_two_states_reads_both(published: Path, fallback: BundleDefaults) -> None:
    gate = tensors(published, "gate_mlp.pt")
    torch.save(gate | {"0.weight": torch.randn(GATE_HIDDEN, 2 * HIDDEN)}, published / "gate_mlp.pt")
    assert load_bundle(published, fallback=fallback).gate.reads == "both"


@pytest.mark.parametrize(
    "change",
    [
        lambda queries: queries,
        lambda queries: {"query_embeddings": queries},
        lambda queries: {"weight": queries[None]},
        lambda queries: queries[None],
        nn.Parameter,
    ],
    ids=["bare", "other name", "named, with an axis more", "bare, with an axis more", "parameter"],
)
def test_queries_under_other_names_and_shapes_are_the_same(published: Path, fallback: BundleDefaults, change: Callable[[Tensor], object]) -> None:
    queries = tensors(published, "queries.pt")["queries"]
    torch.save(change(queries), published / "queries.pt")
    assert torch.equal(load_bundle(published, fallback=fallback).queries, queries)


@pytest.mark.parametrize(
    "targets",
    [
        ["q_proj", "v_proj", "down_proj"],
        r"^(model\.language_model(?=\.).*\.(q_proj|v_proj|down_proj))$",
        r".*language_model.*\.(q_proj|v_proj|down_proj)",
    ],
    ids=["list", "anchored pattern", "open pattern"],
)
def test_targets_are_a_list_or_a_pattern(published: Path, fallback: BundleDefaults, make_items: MakeItems, targets: object) -> None:
    before = encoded(load_bundle(published, fallback=fallback), make_items(2))
    edit_adapter(published, "embedding", target_modules=targets)
    after = encoded(load_bundle(published, fallback=fallback), make_items(2))
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def three_layers(folder: Path) -> None:
    shapes = {"0": (9, HIDDEN), "2": (9, 9), "4": (1, 9)}
    torch.save({f"{layer}.weight": torch.zeros(shape) for layer, shape in shapes.items()}, folder / "gate_mlp.pt")


def pickled_adapter(folder: Path) -> None:
    (folder / "reasoning" / "adapter_model.safetensors").rename(folder / "reasoning" / "adapter_model.bin")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (three_layers, r"two layers \(width → hidden → 1\); it holds 0.weight \(9, 32\), 2.weight \(9, 9\), 4.weight \(1, 9\).*gate='fresh'"),
        (
            lambda folder: torch.save({"0.weight": torch.zeros(7, 24), "2.weight": torch.zeros(1, 7)}, folder / "gate_mlp.pt"),
            "reads 24 numbers; a state of the backbone .* has 32, two have 64",
        ),
        (
            lambda folder: torch.save({"0.weight": torch.zeros(7, 32), "2.weight": torch.zeros(2, 7)}, folder / "gate_mlp.pt"),
            r"it holds 0.weight \(7, 32\), 2.weight \(2, 7\)",
        ),
        (
            lambda folder: torch.save({"norm.weight": torch.ones(32), "1.weight": torch.zeros(1, 32)}, folder / "gate_mlp.pt"),
            r"it holds 1.weight \(1, 32\), norm.weight \(32,\)",
        ),
        (
            lambda folder: torch.save({"weights": torch.zeros(1), "epoch": 3, "name": "x"}, folder / "gate_mlp.pt"),
            r"something else than named tensors: epoch \(int\), name \(str\)",
        ),
        (
            lambda folder: torch.save(nn.Linear(3, 1), folder / "gate_mlp.pt"),
            "it holds a pickled torch.nn.modules.linear.Linear. Only tensors are read",
        ),
        (lambda folder: torch.save(torch.zeros(2, 3, 32), folder / "queries.pt"), r"\(1, queries, width\); it holds shapes \[\(2, 3, 32\)\]"),
        (lambda folder: torch.save({"a": torch.zeros(3, 32), "b": torch.zeros(1)}, folder / "queries.pt"), "must hold one tensor"),
        (lambda folder: torch.save({}, folder / "queries.pt"), r"it holds shapes \[\]"),
        (lambda folder: torch.save(torch.zeros(3, 8), folder / "queries.pt"), "is 8 wide, the backbone .* 32"),
        (lambda folder: edit_adapter(folder, "reasoning", use_dora=True), "reasoning has use_dora=True, which is more than a plain LoRA adapter"),
        (lambda folder: edit_adapter(folder, "embedding", modules_to_save=["lm_head"]), r"embedding has modules_to_save=\['lm_head'\]"),
        (lambda folder: edit_adapter(folder, "embedding", use_rslora=True), "use_rslora=True"),
        (lambda folder: edit_adapter(folder, "embedding", rank_pattern={"q_proj": 3}), "rank_pattern={'q_proj': 3}"),
        (lambda folder: edit_adapter(folder, "embedding", init_lora_weights="pissa"), "init_lora_weights='pissa'"),
        (lambda folder: edit_adapter(folder, "embedding", target_modules=None), "names no target_modules"),
        (lambda folder: edit_adapter(folder, "embedding", target_modules=["c_attn"]), "does not fit .* names c_attn, but the linear layers of"),
        (lambda folder: edit_adapter(folder, "embedding", target_modules=["q_proj", "v_proj"]), "embedding holds .*down_proj.*does not have"),
        (lambda folder: edit_adapter(folder, "embedding", r=4), "has the shape"),
        (pickled_adapter, r"pickled weights \(adapter_model.bin\), which are not read: save the adapter as safetensors"),
    ],
)
def test_what_is_unexpected_is_named(published: Path, fallback: BundleDefaults, spoil: Callable[[Path], None], words: str) -> None:
    spoil(published)
    with pytest.raises(CheckpointError, match=words):
        load_bundle(published, fallback=fallback)


def test_adapters_and_queries_load_without_a_gate_that_cannot_be_read(
    published: Path, fallback: BundleDefaults, tiny_backbone_path: Path, make_items: MakeItems
) -> None:
    before = encoded(load_bundle(published, fallback=fallback), make_items(2))
    fresh = BundleDefaults(backbone_path=str(tiny_backbone_path), gate="fresh", processor=fallback.processor)
    three_layers(published)
    assert torch.equal(encoded(load_bundle(published, fallback=fresh), make_items(2))[0], before[0])
    (published / "gate_mlp.pt").unlink()
    assert torch.equal(encoded(load_bundle(published, fallback=fresh), make_items(2))[1], before[1])
    with pytest.raises(CheckpointError, match="lacks gate_mlp.pt"):
        load_bundle(published, fallback=fallback)
