"""The only composition root: makes models, data, stages and trainers from a `RunConfig`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import datamodules  # noqa: F401  (first: it prepares the import of torchvision, on which lightning depends)

# isort: split
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.strategies import Strategy

from callbacks.adapter_checkpoint import AdapterCheckpoint
from callbacks.gate_monitor import GateMonitor
from callbacks.mmeb_eval import MmebEval
from callbacks.rollout_samples import RolloutSamples
from callbacks.run_record import RunRecord
from callbacks.throughput import Throughput
from datamodules.gate_datamodule import GateDataModule
from datamodules.mini.suite import data_revision, load_pairs, load_tasks
from datamodules.mini.tasks import AUXILIARY, TASKS
from datamodules.pair_datamodule import PairDataModule, by_name
from datamodules.pair_source import PairSource
from datamodules.sources import has_option, open_source
from experiments.mmeb_tasks import mmeb_tasks
from experiments.progress_bar import StageProgressBar
from experiments.runs import Step, resolve_backbone
from twn_lightning.batches import GateBatch, PairBatch
from twn_lightning.configs.load import flatten
from twn_lightning.configs.model import DecodingConfig, LoraConfig
from twn_lightning.configs.run import RunConfig, SourceConfig
from twn_lightning.configs.stages import ContrastiveConfig, CotSftConfig, GrpoConfig, OptimConfig
from twn_lightning.distributed import world_size
from twn_lightning.errors import ConfigError
from twn_lightning.evaluation.encode import AUTOCAST
from twn_lightning.evaluation.evaluate import Mode
from twn_lightning.evaluation.task import RetrievalTask
from twn_lightning.models.adapters import LoraSpec
from twn_lightning.models.backbones import load_backbone, load_processor
from twn_lightning.models.backbones.base import Backbone, Processor, ProcessorOptions
from twn_lightning.models.dual_lora import DualLoRAModel, Part
from twn_lightning.models.outputs import Decoding
from twn_lightning.rewards.mix import RewardMix
from twn_lightning.stages.base import OptimSpec, StageModule
from twn_lightning.stages.contrastive import ContrastiveStage
from twn_lightning.stages.cot_sft import CotSftStage, CotSftWeights
from twn_lightning.stages.gate import GateStage
from twn_lightning.stages.grpo import GrpoSpec, GrpoStage

AnyStage = StageModule[PairBatch] | StageModule[GateBatch]


# The model


def processor_options(config: RunConfig) -> ProcessorOptions:
    """How items become prompts."""
    backbone = config.backbone
    return ProcessorOptions(
        min_pixels=backbone.min_pixels,
        max_pixels=backbone.max_pixels,
        num_frames=backbone.num_frames,
        max_prompt_tokens=backbone.max_prompt_tokens,
        max_thought_tokens=backbone.max_thought_tokens,
        padding_side=backbone.padding_side,
        video_timestamps=backbone.video_timestamps,
        layout=backbone.layout,
        default_instruction=backbone.default_instruction,
        max_video_pixels=backbone.max_video_pixels,
    )


def build_processor(config: RunConfig) -> Processor:
    """The backbone's processor alone."""
    return load_processor(resolve_backbone(config.backbone.path), options=processor_options(config))


def build_backbone(config: RunConfig) -> Backbone:
    """The frozen backbone with its processor."""
    backbone, options = config.backbone, processor_options(config)
    path = resolve_backbone(backbone.path)
    return load_backbone(path, dtype=backbone.dtype, attn_implementation=backbone.attn_implementation, options=options)


def build_model(config: RunConfig) -> DualLoRAModel:
    """A fresh model: adapters that change nothing yet, random queries and gate, drawn from the run's seed."""
    seed_everything(config.seed, verbose=False)
    model = DualLoRAModel(
        build_backbone(config),
        reasoning=_lora(config.model.reasoning),
        embedding=None if config.model.adapters == "shared" else _lora(config.model.embedding),
        num_queries=0 if config.model.pooling == "last" else config.model.num_queries,
        interface=config.model.interface,
        gate_hidden_size=config.model.gate.hidden_size,
        gate_reads=config.model.gate.reads,
        gate_threshold=config.model.gate.threshold,
        detach=config.model.detach,
    )
    model.decoding = build_decoding(config.decoding)
    if config.backbone.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return model


def inference_device(config: RunConfig) -> torch.device:
    """Where the model runs outside Lightning's trainer: labelling, evaluation."""
    accelerator = config.trainer.accelerator
    if accelerator in ("gpu", "auto") and torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device() if world_size() > 1 else int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("mps" if accelerator == "mps" else "cpu")


def build_decoding(config: DecodingConfig) -> Decoding:
    """How thoughts are written at evaluation."""
    return Decoding(max_new_tokens=config.max_new_tokens, temperature=config.temperature, top_p=config.top_p)


def _lora(config: LoraConfig) -> LoraSpec:
    return LoraSpec(rank=config.rank, alpha=config.alpha, dropout=config.dropout, target_modules=tuple(config.target_modules))


# The data


def build_sources(config: RunConfig, split: str, *, with_cot: bool = False, stage: str | None = None) -> dict[str, PairSource]:
    """Pair sources by name.

    Args:
        config: The run's settings.
        split: "train" (the suite's training pairs, then the user's own sources) or "validation" (the suite's validation pairs).
        with_cot: The pairs are to bring their chains of thought; a user's row without them is reported here, not when its batch comes.
        stage: Of the user's own sources, those that this stage trains on; None for all.

    Raises:
        ConfigError: A weight or a task names nothing that is there, or the stage has nothing to train on.
        DataError: A source cannot be read.
    """
    sources: list[PairSource] = []
    if config.data.suite == "mini":
        suite = load_pairs("train" if split == "train" else "validation", tasks=config.data.tasks, num_pairs=config.data.num_pairs)
        sources.extend(suite.values())
    if split == "train":
        sources.extend(_open(source, with_cot=with_cot) for source in _own_sources(config, stage))
        if not sources:
            raise ConfigError(f"None of data.sources is for the stage {stage}: name it in the stages of one, or leave the stage out (steps=0).")
    named = by_name(sources)
    unknown = [name for name in config.data.weights if name not in named and name not in TASKS and name not in AUXILIARY]
    if split == "train" and unknown and stage is None:
        raise ConfigError(f"data.weights names {unknown[0]!r}, which is no source of this run: choose among {', '.join(named)}.")
    return named


def source_weights(config: RunConfig, sources: Mapping[str, PairSource], *, stage: str | None = None) -> dict[str, float]:
    """Relative share of batches by source name; weights of the suite's tasks that this run leaves out are left out too.

    Args:
        config: The run's settings.
        sources: Of `build_sources` for training and the same stage, the user's own last.
        stage: See `build_sources`.
    """
    settings = _own_sources(config, stage)
    own = list(sources)[len(sources) - len(settings) :]
    given = {name: weight for name, weight in config.data.weights.items() if name in sources}
    return {**{name: source.weight for name, source in zip(own, settings, strict=True)}, **given}


def _own_sources(config: RunConfig, stage: str | None) -> list[SourceConfig]:
    return [source for source in config.data.sources if stage is None or source.is_for(stage)]


def _open(source: SourceConfig, *, with_cot: bool) -> PairSource:
    needs_cot = with_cot and source.weight > 0 and source.is_for("cot_sft") and has_option(source.kind, "with_cot")
    return open_source(source.kind, {**source.options, "with_cot": True} if needs_cot else source.options)


def build_tasks(config: RunConfig, split: str, *, max_queries: int | None) -> list[RetrievalTask]:
    """Retrieval tasks of the suite; none without a suite. Of MMEB-V2, which has no validation tasks, see `mmeb_tasks`.

    Args:
        config: The run's settings.
        split: "validation" or "test".
        max_queries: Queries of each task; None for all.
    """
    if config.data.suite == "none":
        return []
    if config.data.suite == "mmeb_v2":
        return list(mmeb_tasks(config, split, max_queries=max_queries))
    return load_tasks("test" if split == "test" else "validation", tasks=config.data.tasks, max_queries=max_queries)


def data_tags(config: RunConfig, *, with_cot: bool = False) -> dict[str, str]:
    """What the run is trained on, for the tracker; reads it as `build_sources` does."""
    sources = build_sources(config, "train", with_cot=with_cot)
    revision = data_revision() if config.data.suite == "mini" else "none"
    return {"data_revision": revision, **{f"data.{name}": source.digest() for name, source in sources.items()}}


def build_pair_data(config: RunConfig, step: Step, processor: Processor) -> PairDataModule:
    """Training and validation pairs of stage 1, 2 or 4."""
    stages = config.stages
    sections: dict[str, ContrastiveConfig | CotSftConfig | GrpoConfig]
    sections = {"contrastive": stages.contrastive, "cot_sft": stages.cot_sft, "grpo": stages.grpo}
    section = sections[step.section]
    with_cot = step.section == "cot_sft"
    validation = build_sources(config, "validation") if config.data.validation_batches and step.section != "grpo" else {}
    sources = build_sources(config, "train", with_cot=with_cot, stage=step.section)
    return PairDataModule(
        sources,
        processor,
        batch_size=section.batch_size,
        num_steps=section.steps,
        seed=config.seed,
        weights=source_weights(config, sources, stage=step.section),
        with_cot=with_cot,
        max_negatives=section.max_negatives,
        repeat=stages.grpo.inner_epochs if step.section == "grpo" else 1,
        num_workers=config.trainer.num_workers,
        validation_sources=validation,
        num_validation_batches=max(1, config.data.validation_batches),
    )


def build_label_data(config: RunConfig, processor: Processor) -> PairDataModule:
    """The pairs from which stage 3 makes its examples, dealt over the sources by their weights (evenly those of the validation split); the user's own
    files have no split but "train".
    """
    gate = config.stages.gate
    split = gate.split if config.data.suite == "mini" else "train"
    sources = build_sources(config, split, stage="gate")
    return PairDataModule(
        sources,
        processor,
        batch_size=gate.label_batch_size,
        num_steps=max(1, gate.num_pairs // gate.label_batch_size),
        seed=config.seed + 1,
        weights=source_weights(config, sources, stage="gate") if split == "train" else None,
        num_workers=config.trainer.num_workers,
    )


def build_gate_data(config: RunConfig, examples: GateBatch) -> GateDataModule:
    """Self-labelled examples as balanced batches."""
    gate = config.stages.gate
    return GateDataModule(
        examples.state,
        examples.gain,
        batch_size=gate.batch_size,
        num_steps=gate.steps,
        seed=config.seed,
        dead_zone=gate.dead_zone,
        margin=gate.margin,
        balanced=gate.balanced,
    )


# Stages and trainer


def build_stage(config: RunConfig, step: Step, model: DualLoRAModel) -> AnyStage:
    """The LightningModule of a step."""
    stages, seed, prefill = config.stages, config.seed, config.trainer.max_prefill_tokens
    if step.section == "contrastive":
        first = stages.contrastive
        optim = _optim(first.optim, first.steps)
        return ContrastiveStage(model, optim, temperature=first.temperature, seed=seed, max_prefill_tokens=prefill)
    if step.section == "cot_sft":
        second = stages.cot_sft
        weights = CotSftWeights(
            cot=second.cot_weight, discriminative=second.discriminative_weight, generative=second.generative_weight, mixed=second.mixed_weight
        )
        rates: dict[Part, float] = {} if second.reasoning_learning_rate is None else {"reasoning": second.reasoning_learning_rate}
        optim = _optim(second.optim, second.steps)
        return CotSftStage(
            model,
            optim,
            temperature=second.temperature,
            weights=weights,
            seed=seed,
            learning_rates=rates,
            cot_every=second.cot_every,
            max_prefill_tokens=prefill,
        )
    if step.section == "gate":
        third = stages.gate
        optim = _optim(third.optim, third.steps)
        return GateStage(model, optim, margin=third.margin, dead_zone=third.dead_zone, balanced=third.balanced, dropout=third.dropout, seed=seed)
    return _grpo_stage(config, model)


def _grpo_stage(config: RunConfig, model: DualLoRAModel) -> GrpoStage:
    fourth = config.stages.grpo
    spec = GrpoSpec(
        group_size=fourth.group_size,
        inner_epochs=fourth.inner_epochs,
        clip_low=fourth.clip_low,
        clip_high=fourth.clip_high,
        kl_weight=fourth.kl_weight,
        loss_type=fourth.loss_type,
        scale_by_std=fourth.scale_by_std,
        score_temperature=fourth.score_temperature,
        gain_maximum=fourth.gain_maximum,
        outcome_top_k=fourth.outcome_top_k,
        length_target=fourth.length_target,
    )
    rewards = RewardMix(dataclasses.asdict(fourth.rewards))
    decoding = Decoding(max_new_tokens=fourth.max_new_tokens, temperature=fourth.sampling_temperature, top_p=fourth.top_p)
    optim, prefill = _optim(fourth.optim, fourth.steps), config.trainer.max_prefill_tokens
    return GrpoStage(model, optim, spec=spec, decoding=decoding, rewards=rewards, seed=config.seed, max_prefill_tokens=prefill)


def _optim(config: OptimConfig, steps: int) -> OptimSpec:
    return OptimSpec(
        learning_rate=config.learning_rate,
        total_steps=steps,
        weight_decay=config.weight_decay,
        warmup_steps=config.warmup_steps,
        schedule=config.schedule,
        betas=config.betas,
        optimizer=config.optimizer,
    )


def build_callbacks(config: RunConfig, step: Step, folder: Path, data: LightningDataModule, provenance: Mapping[str, str]) -> list[Callback]:
    """What happens beside a step's training; the checkpoint comes last, behind whatever logs the score it ranks by.

    Args:
        config: The run's settings.
        step: Which step.
        folder: Its folder.
        data: Its data module; the gate's brings the held-out examples for the gate monitor.
        provenance: What the run is made of, for its record.
    """
    chosen, gate = config.callbacks, config.stages.gate
    callbacks: list[Callback] = [
        RunRecord(folder / "run.json", config=flatten(config), seeds={"seed": config.seed}, commit=provenance["commit"], extra=dict(provenance))
    ]
    if config.trainer.progress_bar:
        callbacks.append(StageProgressBar(step.title))
    if chosen.throughput_every:
        callbacks.append(Throughput(chosen.throughput_every))
    if isinstance(data, GateDataModule):
        if bool((data.validation.gain.abs() >= gate.dead_zone).any()):
            callbacks.append(GateMonitor(data.validation, margin=gate.margin, dead_zone=gate.dead_zone))
        return [*callbacks, AdapterCheckpoint(folder, every_n_steps=chosen.checkpoint_every)]
    if chosen.rollout_samples_every and step.section != "contrastive":
        decoding = build_decoding(config.decoding)
        callbacks.append(RolloutSamples(every_n_steps=chosen.rollout_samples_every, num_prompts=chosen.num_rollout_samples, decoding=decoding))
    monitor = None
    tasks = build_tasks(config, "validation", max_queries=config.evaluation.validation_queries)
    if tasks:
        modes = cast("tuple[Mode, ...]", ("never",) if step.section == "contrastive" else chosen.evaluate_modes)
        evaluation = MmebEval(
            tasks,
            modes=modes,
            every_n_steps=chosen.evaluate_every,
            batch_size=config.evaluation.batch_size,
            max_batch_tokens=config.evaluation.max_batch_tokens,
            decoding=build_decoding(config.decoding),
            autocast=AUTOCAST[config.trainer.precision],
        )
        callbacks.append(evaluation)
        if chosen.evaluate_every and config.data.suite != "mmeb_v2":  # nothing is chosen by test tasks
            monitor = f"validation/mean/all/{modes[-1]}"
    checkpoint = AdapterCheckpoint(folder, every_n_steps=chosen.checkpoint_every, monitor=monitor, top_k=chosen.keep_best)
    return [*callbacks, checkpoint]


def build_trainer(
    config: RunConfig, *, steps: int, logger: Logger, callbacks: Sequence[Callback], folder: Path, strategy: Strategy | str | None = None
) -> Trainer:
    """Lightning's trainer for one stage of one epoch.

    Args:
        config: The run's settings.
        steps: Optimiser steps.
        logger: Where numbers go.
        callbacks: What happens beside the steps.
        folder: The step's folder.
        strategy: Of `experiments.strategy.build_strategy`; it serves one trainer. None: Lightning's of that name.
    """
    trainer = config.trainer
    if trainer.num_threads is not None:
        torch.set_num_threads(trainer.num_threads)
    settings: Mapping[str, Any] = {"gradient_clip_val": trainer.clip} if trainer.clip else {}
    return Trainer(
        accelerator=trainer.accelerator,
        devices=trainer.devices,
        num_nodes=trainer.num_nodes,
        strategy=trainer.strategy if strategy is None else strategy,
        precision=trainer.precision,
        max_steps=steps,
        max_epochs=1,
        accumulate_grad_batches=trainer.accumulate,
        log_every_n_steps=trainer.log_every,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=trainer.progress_bar,
        enable_model_summary=False,
        logger=logger,
        callbacks=list(callbacks),
        default_root_dir=folder,
        **settings,
    )


def build_data(config: RunConfig, step: Step, processor: Processor, examples: GateBatch | None) -> LightningDataModule:
    """The data module of a step; the gate's reads the examples."""
    if step.section == "gate":
        assert examples is not None
        return build_gate_data(config, examples)
    return build_pair_data(config, step, processor)
