"""Bundles: a trained model's parts on disk, without the backbone and without pickle.

    reasoning/  embedding/    PEFT folders, which PEFT alone can load too; the same twice where one shared adapter does both
    gate_mlp.pt  queries.pt   tensors; no rows of queries where the last token is pooled
    twn_config.json           everything else that is needed to load them again, and where they came from

A folder with only the first four, the layout in which TWN was published, loads with settings given as arguments.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

import twn_lightning.models  # noqa: F401  (first: it prepares the import of torchvision, on which peft depends)

# isort: split
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor

from twn_lightning import __version__
from twn_lightning.bundle_files import check_keys, read_gate, read_queries, read_safetensors, read_spec
from twn_lightning.errors import CheckpointError, ConfigError
from twn_lightning.models.backbones import load_backbone
from twn_lightning.models.backbones.base import Backbone, ProcessorOptions
from twn_lightning.models.dual_lora import DualLoRAModel, Interface
from twn_lightning.models.gate import GateReads
from twn_lightning.models.outputs import Decoding

FORMAT = 1
ADAPTERS = ("reasoning", "embedding")
CONFIG, GATE, QUERIES = "twn_config.json", "gate_mlp.pt", "queries.pt"


@dataclass(frozen=True)
class BundleDefaults:
    """What a bundle without twn_config.json does not say.

    Attributes:
        backbone_path: Folder or hub name of the backbone; None if one is handed over.
        interface: What the queries read: kv or reencode.
        gate_threshold: Probability from which an input thinks.
        gate_reads: What a gate of the backbone's width reads; one of twice that width reads both.
        gate: file, or fresh: an untrained gate instead of one that cannot be read.
        detach: See `DualLoRAModel`.
        adapters: dual, or shared where the folders hold one adapter twice that thinks and embeds (only further training tells them apart).
        dtype: Of the backbone's weights.
        attn_implementation: sdpa, eager or flash_attention_2.
        processor: How prompts are made.
        decoding: How thoughts are written.
    """

    backbone_path: str | None = None
    interface: Interface = "kv"
    gate_threshold: float = 0.5
    gate_reads: GateReads = "embedding"
    gate: Literal["file", "fresh"] = "file"
    detach: bool = True
    adapters: Literal["dual", "shared"] = "dual"
    dtype: str = "float32"
    attn_implementation: str = "sdpa"
    processor: ProcessorOptions = field(default_factory=ProcessorOptions)
    decoding: Decoding = field(default_factory=Decoding)


def save_bundle(model: DualLoRAModel, folder: str | Path, *, provenance: Mapping[str, str | int | float], backbone_path: str | Path) -> Path:
    """Writes a bundle; one that is there already is replaced in one step, so that a crash leaves the old or the new one.

    Args:
        model: What to save.
        folder: Where.
        provenance: What made it: stage, run, seed, commit, data digest and the like.
        backbone_path: Where the backbone is found when the bundle is loaded; a relative one is looked for from the bundle, from
            the folder it is in, from the working folder, and from the folders above the bundle.

    Returns:
        The folder.

    Raises:
        CheckpointError: It cannot be written.
    """
    assert not model.is_merged, "its backbone is no longer the one that the bundle would name"
    folder = Path(folder)
    writing, old = folder.with_name(f".{folder.name}.writing"), folder.with_name(f".{folder.name}.old")
    try:
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(parents=True)
        own = ADAPTERS[:1] if model.is_shared else ADAPTERS
        model.peft.save_pretrained(str(writing), selected_adapters=list(own), save_embedding_layers=False)
        if model.is_shared:
            shutil.copytree(writing / "reasoning", writing / "embedding")
        torch.save({key: tensor.detach().cpu() for key, tensor in model.gate.mlp.state_dict().items()}, writing / GATE)
        torch.save({"queries": model.queries.detach().cpu()}, writing / QUERIES)
        config = json.dumps(_description(model, provenance, str(backbone_path)), indent=2)
        (writing / CONFIG).write_text(config + "\n", encoding="utf-8")
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        writing.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise CheckpointError(f"The bundle cannot be written to {folder}: {error}. Choose a folder you may write to, with space left.") from error
    return folder


def load_bundle(folder: str | Path, *, backbone: Backbone | None = None, fallback: BundleDefaults | None = None) -> DualLoRAModel:
    """The model a bundle describes, in eval mode, nothing trainable.

    Args:
        folder: Of the bundle.
        backbone: Freshly loaded; None loads the one the bundle names.
        fallback: For a folder without twn_config.json. Adapter settings, the number of queries and the gate's width come from the files.

    Raises:
        CheckpointError: Something is missing, damaged, or made for another model.
    """
    has_gate = fallback is None or fallback.gate == "file" or (Path(folder) / CONFIG).is_file()
    folder = _existing(Path(folder), has_gate=has_gate)
    config = _read_config(folder, fallback)
    specs = {adapter: read_spec(folder / adapter) for adapter in ADAPTERS}
    queries, gate = read_queries(folder / QUERIES), read_gate(folder / GATE) if has_gate else {}
    try:
        settings = _settings(config, fallback)
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / CONFIG} lacks or misnames {error}. It was written by another version, or changed by hand.") from error
    if backbone is None:
        if settings.backbone_path is None:
            raise CheckpointError(f"{folder} does not say which backbone it is for: pass a backbone, or fallback=BundleDefaults(backbone_path=…).")
        path = _found_backbone(settings.backbone_path, folder)
        backbone = load_backbone(path, dtype=settings.dtype, attn_implementation=settings.attn_implementation, options=settings.processor)
    width = backbone.hidden_size
    if queries.shape[1] != width:
        raise CheckpointError(
            f"{folder / QUERIES} is {queries.shape[1]} wide, the backbone {backbone.path} {width}: it was made for another backbone."
        )
    if has_gate and gate["0.weight"].shape[1] not in (width, 2 * width):
        raise CheckpointError(
            f"The gate in {folder / GATE} reads {gate['0.weight'].shape[1]} numbers; a state of the backbone {backbone.path} has {width}, two have "
            f"{2 * width}: it was made for another backbone, or reads something else (fallback=BundleDefaults(gate='fresh') loads the rest)."
        )
    try:
        model = DualLoRAModel(
            backbone,
            reasoning=specs["reasoning"],
            embedding=None if settings.adapters == "shared" else specs["embedding"],
            num_queries=queries.shape[0],
            interface=settings.interface,
            gate_hidden_size=gate["0.weight"].shape[0] if has_gate else 128,
            gate_reads="both" if has_gate and gate["0.weight"].shape[1] == 2 * width else settings.gate_reads,
            gate_threshold=settings.gate_threshold,
            detach=settings.detach,
        )
    except ConfigError as error:
        raise CheckpointError(f"The bundle {folder} does not fit the backbone {backbone.path}: {error}") from error
    _load_into(model, folder, has_gate=has_gate)
    model.decoding = settings.decoding
    return model.eval()


def load_bundle_into(model: DualLoRAModel, folder: str | Path) -> None:
    """Puts a bundle's tensors, threshold and curve into a model of the same shape: what a stage does with its predecessor's.

    Raises:
        CheckpointError: Something is missing, damaged, or made for another model.
    """
    _load_into(model, _existing(Path(folder), has_gate=True), has_gate=True)


def _load_into(model: DualLoRAModel, folder: Path, *, has_gate: bool) -> None:
    if (folder / CONFIG).is_file():
        config = _read_config(folder, None)
        _check_backbone(folder, config, model)
        reads = config["gate"].get("reads", "embedding")
        if reads != model.gate.reads:
            raise CheckpointError(
                f"The gate in {folder} reads {reads}, the model's {model.gate.reads}: set model.gate.reads={reads}, or train the gate again."
            )
        model.gate.threshold = float(config["gate"]["threshold"])
        model.gate.curve = list(config["gate"]["curve"])
    for adapter in ADAPTERS:
        spec, own = read_spec(folder / adapter), model.adapters[adapter]
        if (spec.rank, spec.alpha) != (own.rank, own.alpha):
            raise CheckpointError(
                f"{folder / adapter} has rank {spec.rank} and alpha {spec.alpha}; the model has {own.rank} and {own.alpha}. "
                "Give the model the bundle's values."
            )
        tensors = read_safetensors(folder / adapter / "adapter_model.safetensors")
        if model.is_shared and adapter == "embedding":
            _check_equal(tensors, folder)
            continue
        expected = get_peft_model_state_dict(model.peft, adapter_name=adapter, save_embedding_layers=False)
        check_keys(tensors, expected, folder / adapter)
        set_peft_model_state_dict(model.peft, tensors, adapter_name=adapter)
    queries = {"queries": read_queries(folder / QUERIES)}
    check_keys(queries, {"queries": model.queries}, folder / QUERIES)
    if has_gate:
        gate = read_gate(folder / GATE)
        check_keys(gate, model.gate.mlp.state_dict(), folder / GATE)
        model.gate.mlp.load_state_dict(gate)
    with torch.no_grad():
        model.queries.copy_(queries["queries"])


def _check_equal(embedding: Mapping[str, Tensor], folder: Path) -> None:
    reasoning = read_safetensors(folder / "reasoning" / "adapter_model.safetensors")
    if set(reasoning) != set(embedding) or any(not torch.equal(tensor, embedding[key]) for key, tensor in reasoning.items()):
        raise CheckpointError(
            f"{folder} holds two different adapters, but the model has one shared adapter: "
            "load it with adapters=dual, or start from a bundle trained with shared adapters."
        )


def _description(model: DualLoRAModel, provenance: Mapping[str, str | int | float], backbone_path: str) -> dict[str, Any]:
    hf = model.backbone.model
    return {
        "format": FORMAT,
        "twn_lightning": __version__,
        "backbone": {
            "path": backbone_path,
            "dtype": str(hf.dtype).removeprefix("torch."),
            "attn_implementation": hf.config.get_text_config()._attn_implementation,
            "fingerprint": _fingerprint(model),
        },
        "interface": model.interface,
        "detach": model.detach,
        "adapters": "shared" if model.is_shared else "dual",
        "num_queries": model.num_queries,
        "gate": {
            "hidden_size": model.gate.gate_hidden_size,
            "reads": model.gate.reads,
            "threshold": model.gate.threshold,
            "curve": model.gate.curve,
        },
        "processor": dataclasses.asdict(model.processor.options),
        "decoding": dataclasses.asdict(model.decoding),
        "provenance": dict(provenance),
    }


def _fingerprint(model: DualLoRAModel) -> list[float]:
    """Mean sizes of the language model's first, middle and last matrix: tells backbones apart, whatever precision they are loaded in."""
    named = model.backbone.model.named_parameters()
    matrices = [weight for name, weight in named if "language_model" in name and ".lora_" not in name and weight.dim() == 2]
    chosen = (matrices[0], matrices[len(matrices) // 2], matrices[-1])
    return [round(float(matrix.detach().float().abs().mean()), 8) for matrix in chosen]


def _check_backbone(folder: Path, config: dict[str, Any], model: DualLoRAModel) -> None:
    stored, own = config["backbone"].get("fingerprint", []), _fingerprint(model)
    if stored and any(abs(one - other) > 5e-4 * abs(one) for one, other in zip(stored, own, strict=True)):
        raise CheckpointError(
            f"{folder} was trained on a backbone with other weights than {model.backbone.path} has now (fingerprints {stored} and {own}). "
            "Use the backbone it names, or train the bundle again."
        )


def _existing(folder: Path, *, has_gate: bool) -> Path:
    if not folder.is_dir():
        raise CheckpointError(f"There is no bundle at {folder}. Check the path; a stage writes its bundle when it ends.")
    missing = [name for name in (*ADAPTERS, *([GATE] if has_gate else []), QUERIES) if not (folder / name).exists()]
    if missing:
        raise CheckpointError(f"The bundle {folder} lacks {', '.join(missing)}. It is incomplete: write it again, or copy all of it.")
    return folder


def _read_config(folder: Path, fallback: BundleDefaults | None) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        if fallback is None:
            raise CheckpointError(f"{folder} holds no {CONFIG}: say what it would, with fallback=BundleDefaults(…).")
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}. Write the bundle again.") from error
    required = {"format", "backbone", "interface", "detach", "num_queries", "gate", "processor"}
    missing = required - set(config) if isinstance(config, dict) else required
    if missing:
        raise CheckpointError(f"{path} lacks {', '.join(sorted(missing))}. It is no bundle of ours, or was changed by hand.")
    if config["format"] != FORMAT:
        raise CheckpointError(
            f"{path} is of format {config['format']}; this version reads {FORMAT}. Load it with twn_lightning {config.get('twn_lightning')}."
        )
    return dict(config)


def _settings(config: dict[str, Any], fallback: BundleDefaults | None) -> BundleDefaults:
    if not config:
        assert fallback is not None
        return fallback
    return BundleDefaults(
        backbone_path=config["backbone"]["path"],
        interface=config["interface"],
        gate_threshold=float(config["gate"]["threshold"]),
        gate_reads=config["gate"].get("reads", "embedding"),
        detach=bool(config["detach"]),
        adapters=config.get("adapters", "dual"),
        dtype=config["backbone"]["dtype"],
        attn_implementation=config["backbone"]["attn_implementation"],
        processor=ProcessorOptions(**config["processor"]),
        decoding=Decoding(**config.get("decoding", {})),
    )


def _found_backbone(path: str, folder: Path) -> str:
    own, *above = folder.resolve().parents
    places = [folder.resolve(), own, Path.cwd(), *above]
    return next((str(place / path) for place in places if (place / path).is_dir()), path)
