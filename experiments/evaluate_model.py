"""Which model is evaluated (the last bundle of a run, or a bundle from anywhere), who writes its thoughts, and where what it encoded is kept."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from experiments.build import build_model, processor_options
from experiments.runs import RunFolder, resolve_backbone
from twn_lightning.checkpoints import CONFIG, BundleDefaults, load_bundle, load_bundle_into
from twn_lightning.configs.run import RunConfig
from twn_lightning.distributed import gather_objects, rank, world_size
from twn_lightning.errors import CheckpointError, ConfigError
from twn_lightning.evaluation.encode import AUTOCAST
from twn_lightning.evaluation.store import VectorStore
from twn_lightning.evaluation.store_digests import code_digest, folder_digest
from twn_lightning.models.backbones import load_backbone, load_processor
from twn_lightning.models.backbones.base import ProcessorOptions
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.thought_writers import OwnWriter, ThoughtWriter

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Subject:
    """What is evaluated.

    Attributes:
        folder: Where reports go, under ``evaluation/``.
        bundle: The model's parts.
        title: For people, as in "run mini, after stage 4".
        step: Of the run that made the bundle; empty for a bundle from elsewhere.
        backbone: Given on the command line for a bundle from elsewhere; empty otherwise.
    """

    folder: Path
    bundle: Path
    title: str
    step: str = ""
    backbone: str = ""


def subject_of_run(config: RunConfig) -> Subject:
    """The last bundle of a run that has a finished stage."""
    folder = RunFolder(config)
    last = folder.last_done()
    assert last is not None
    return Subject(folder.path, folder.bundle(last), f"run {config.name}, after {last.title}", step=last.name)


def subject_of_bundle(config: RunConfig, bundle: str, backbone: str) -> Subject:
    """A bundle from anywhere; its reports go into a folder of the run's name.

    Raises:
        ConfigError: There is no such folder, or nothing says which backbone it is for.
    """
    folder = Path(bundle)
    if not folder.is_dir():
        raise ConfigError(
            f"--bundle is {bundle!r}, but there is no such folder: name one with reasoning, embedding, gate_mlp.pt and queries.pt in it."
        )
    if not backbone and not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder} has no {CONFIG}, so nothing says which backbone it is for: add --backbone PATH.")
    run = RunFolder(config)
    run.create()
    return Subject(run.path, folder, f"bundle {folder}", backbone=backbone)


def load_subject(config: RunConfig, subject: Subject, changes: Mapping[str, str | int]) -> DualLoRAModel:
    """The model, in eval mode on the CPU.

    A run's model is made by the run's settings. A bundle from elsewhere brings its own; one without ``twn_config.json`` takes the settings' (sections
    ``backbone`` and ``model``).

    Args:
        config: The run's settings.
        subject: What to load.
        changes: Of the processor's options; see `evaluate_suite.profile_changes`.

    Raises:
        CheckpointError: The bundle cannot be loaded.
        ConfigError: The backbone cannot be.
    """
    if subject.step:
        model = build_model(dataclasses.replace(config, backbone=dataclasses.replace(config.backbone, **changes)))  # type: ignore[arg-type]
        load_bundle_into(model, subject.bundle)
        return model.eval()
    if subject.backbone:
        path = resolve_backbone(subject.backbone)
        options = _options(subject.bundle) or processor_options(config)
        backbone = load_backbone(path, dtype=config.backbone.dtype, attn_implementation=config.backbone.attn_implementation, options=options)
        model = load_bundle(subject.bundle, backbone=backbone, fallback=_fallback(config, options))
    else:
        model = load_bundle(subject.bundle)
    options = dataclasses.replace(model.processor.options, **changes)  # type: ignore[arg-type]
    if options != model.processor.options:
        model.backbone.processor = load_processor(model.backbone.path, options=options)
    return model


def open_writer(config: RunConfig, model: DualLoRAModel, subject: Subject) -> ThoughtWriter:
    """Who writes the thoughts; vLLM takes its share of the GPU now.

    Args:
        config: The run's settings.
        model: Reads them.
        subject: Whose bundle holds the adapter that writes.

    Raises:
        ConfigError: vLLM cannot be used.
    """
    if config.evaluation.thought_writer == "own":
        return OwnWriter(model)
    if world_size() > 1:
        raise ConfigError(
            f"evaluation.thought_writer is vllm and there are {world_size()} processes, but vLLM shares its GPUs with one: start one process "
            "(evaluation.vllm_devices spreads vLLM over more GPUs), or set evaluation.thought_writer=own."
        )
    from twn_lightning.integrations.vllm import VllmWriter

    return VllmWriter(model, subject.bundle, memory=config.evaluation.vllm_memory, num_devices=config.evaluation.vllm_devices)


def open_store(config: RunConfig, model: DualLoRAModel, subject: Subject, writer: ThoughtWriter) -> VectorStore | None:
    """Where vectors of the model are kept, under everything that makes them; None where its backbone is no folder whose weights can be named.

    Args:
        config: The run's settings.
        model: On the device on which it will encode.
        subject: The model's bundle and the folder of the store.
        writer: Of the thoughts.
    """
    backbone = Path(model.backbone.path)
    if not backbone.is_dir():
        log.warning("The backbone %s is no folder, so its weights have no digest: vectors are not kept on disk.", backbone)
        return None
    weights = gather_objects({"bundle": folder_digest(subject.bundle), "backbone": folder_digest(backbone)} if rank() == 0 else None)[0]
    hf = model.backbone.model
    made_by = {
        **cast("dict[str, str]", weights),
        "model": json.dumps([model.interface, model.num_queries, model.is_shared, model.gate.reads, model.gate.threshold]),
        "processor": json.dumps(dataclasses.asdict(model.processor.options), sort_keys=True),
        "dtype": str(hf.dtype),
        "autocast": str(AUTOCAST[config.trainer.precision]),
        "thoughts": writer.name,
        "attention": str(hf.config.get_text_config()._attn_implementation),
        "device": model.device.type,
        "code": code_digest(),
    }
    return VectorStore(subject.folder / "evaluation" / "cache", made_by, width=model.hidden_size)


def _fallback(config: RunConfig, options: ProcessorOptions) -> BundleDefaults:
    backbone, model = config.backbone, config.model
    return BundleDefaults(
        interface=model.interface,
        gate_threshold=model.gate.threshold,
        gate_reads=model.gate.reads,
        detach=model.detach,
        adapters=model.adapters,
        dtype=backbone.dtype,
        attn_implementation=backbone.attn_implementation,
        processor=options,
    )


def _options(bundle: Path) -> ProcessorOptions | None:
    """How the bundle's prompts were made; None where it does not say."""
    path = bundle / CONFIG
    if not path.is_file():
        return None
    try:
        return ProcessorOptions(**json.loads(path.read_text(encoding="utf-8"))["processor"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} does not say how prompts are made ({error}): write the bundle again, or copy it again.") from error
