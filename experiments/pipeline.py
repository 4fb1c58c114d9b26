"""The stages in their order: each is skipped if it is finished, goes on if it was stopped, and hands its bundle to the next."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import datamodules  # noqa: F401  (first: it prepares the import of torchvision, on which lightning depends)

# isort: split
from lightning.pytorch import LightningDataModule, Trainer, seed_everything
from lightning.pytorch.strategies import DeepSpeedStrategy, Strategy

from callbacks.adapter_checkpoint import LAST, can_resume, resume_from
from experiments.build import (
    AnyStage,
    build_callbacks,
    build_data,
    build_model,
    build_stage,
    build_tasks,
    build_trainer,
    data_tags,
    inference_device,
)
from experiments.encoded_tasks import EncodedTask, encode_tasks
from experiments.gating import choose_threshold, curve_metrics, gate_examples, threshold_metrics
from experiments.record import RECORD
from experiments.recording import write_record
from experiments.results import log_report, make_report, save_report, show_report
from experiments.runs import STEPS, RunFolder, Step, backbone_digest, code_digest, num_steps, resolve_backbone
from experiments.strategy import StrategyMaker, build_strategy, start_ranks
from experiments.tracking import Tracking, TrackingLogger, environment_tags
from twn_lightning import __version__
from twn_lightning.batches import GateBatch
from twn_lightning.checkpoints import load_bundle_into, save_bundle
from twn_lightning.configs.load import flatten
from twn_lightning.configs.run import RunConfig
from twn_lightning.distributed import barrier, drop_shards, from_rank_zero, rank, rank_zero_first
from twn_lightning.evaluation.evaluate import Mode, evaluate_encoded
from twn_lightning.evaluation.figures import quality_against_tokens
from twn_lightning.evaluation.report import Report
from twn_lightning.evaluation.task import RetrievalTask
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.trainables import beside, read_trainables

log = logging.getLogger(__name__)


def run_pipeline(
    config: RunConfig, command: str, given: Sequence[str] = (), *, share: bool = False, make_strategy: StrategyMaker = build_strategy
) -> Report | None:
    """Train what a command asks for; with several devices, on each of their processes.

    Args:
        config: The run's settings.
        command: "stage1" … "stage4", or "all" for the four and the test tasks.
        given: What the command line gave besides the command, for the hint at what comes next.
        share: Take over steps that another run in the output folder has finished by the same recipe and code, instead of training them again.
        make_strategy: Gives Lightning's strategy for each step.

    Returns:
        The report on the test tasks after "all", on rank 0; None otherwise, and where there are no tasks.

    Raises:
        TwnError: Something the user can mend.
        KeyboardInterrupt: Training was stopped; the same command goes on.
    """
    make_strategy(config, STEPS[0])  # refuses what it cannot do before anything is loaded
    start_ranks(config)
    folder = RunFolder(config, given)
    folder.create()
    tags = data_tags(config, with_cot=command in ("stage2", "all"))
    model = build_model(config)
    log_parameters(model)
    tracking = Tracking(config, folder.path, tags)
    tracking.parent.log_metrics({f"parameters/{name}": value for name, value in model.parameter_report().items()})
    provenance = {**environment_tags(config), **tags, "code": code_digest()}
    report = None
    with tracking.running():
        for step in STEPS:
            if command not in (step.command, "all"):
                continue
            if from_rank_zero(folder.is_done(step)):
                log.info("%s: finished before, in %s", step.title, folder.step(step))
            elif not num_steps(config, step):
                skip_step(config, step, model, folder, provenance)
            elif not (share and take_over(config, step, folder, provenance)):
                model = run_step(config, step, model, folder, tracking.child(step.name, tags), provenance, make_strategy=make_strategy)
        if command == "all":
            report = final_report(config, model, folder, tracking)
    barrier()  # a rank that leaves early would take the others' connections with it
    if command != "all":
        _say_what_comes_next(folder)
    return report


def run_step(
    config: RunConfig,
    step: Step,
    model: DualLoRAModel,
    folder: RunFolder,
    logger: TrackingLogger,
    provenance: Mapping[str, str],
    *,
    make_strategy: StrategyMaker = build_strategy,
) -> DualLoRAModel:
    """Train one step from its predecessor's bundle, or from its own checkpoint, and leave its bundle.

    Args:
        config: The run's settings.
        step: Which step.
        model: Gets the predecessor's weights first.
        folder: The run's folder.
        logger: The step's MLflow run.
        provenance: What the bundle is made of, for its ``twn_config.json``.
        make_strategy: Gives Lightning's strategy for the step.

    Returns:
        The trained model; not the given one where the strategy has taken that one apart.
    """
    number, path = STEPS.index(step), folder.step(step)
    folder.begin(step)
    _start_from(model, step, folder)
    seed_everything(config.seed + number, verbose=False)
    log.info("%s: %d steps", step.title, num_steps(config, step))
    started = time.perf_counter()
    tasks, examples = _gate_material(config, step, model, path)
    data = build_data(config, step, model.processor, examples)
    stage = build_stage(config, step, model)
    callbacks = build_callbacks(config, step, path, data, provenance)
    strategy = make_strategy(config, step)
    trainer = build_trainer(config, steps=num_steps(config, step), logger=logger, callbacks=callbacks, folder=path, strategy=strategy)
    fit(trainer, stage, data, folder.checkpoint(step))
    model = _whole_again(config, step, model, folder, strategy)
    if examples is not None:
        _choose_threshold(config, model, tasks, examples, logger)
    if rank() == 0:
        seconds = time.perf_counter() - started
        _save(config, step, model, folder, provenance)
        logger.log_metrics({"seconds": seconds})
        logger.log_artifact(folder.bundle(step))
        logger.log_artifact(folder.path / "config.yaml")
        folder.finish(step, {"seconds": round(seconds, 1), **_origin(config, step, folder, provenance)})
        logger.finalize("success")
    barrier()
    return model


def skip_step(config: RunConfig, step: Step, model: DualLoRAModel, folder: RunFolder, provenance: Mapping[str, str]) -> None:
    """Leave a step out: its bundle holds what its predecessor's does, or the fresh model (arguments as in `run_step`)."""
    section = step.section if not getattr(config.stages, step.section).steps else "grpo"
    log.info("%s: left out (stages.%s.steps=0)", step.title, section)
    with rank_zero_first():
        if rank() == 0:
            folder.begin(step)
            _start_from(model, step, folder)
            _save(config, step, model, folder, provenance)
            folder.finish(step, {"seconds": 0.0, "left_out": "true", **_origin(config, step, folder, provenance)})


def take_over(config: RunConfig, step: Step, folder: RunFolder, provenance: Mapping[str, str]) -> bool:
    """Whether another run had finished this very step, which is now in the run's folder too (arguments as in `run_step`)."""
    with rank_zero_first():
        origin = folder.share(step, **_origin(config, step, folder, provenance)) if rank() == 0 else None
    if origin is not None:
        log.info("%s: taken over from run %s, made by the same settings and code", step.title, origin)
    return folder.is_done(step)


def fit(trainer: Trainer, stage: AnyStage, data: LightningDataModule, checkpoint: Path | None) -> None:
    """Train; Ctrl-C is passed on as KeyboardInterrupt, where Lightning would end the process.

    Args:
        trainer: Lightning's trainer.
        stage: What to train.
        data: What to train on.
        checkpoint: Goes on from here, if given.

    Raises:
        KeyboardInterrupt: Training was stopped, and its state is saved.
    """
    handler = signal.getsignal(signal.SIGINT)
    if checkpoint is not None:
        log.info("going on from %s", checkpoint)
        if not can_resume(trainer, checkpoint):
            resume_from(trainer, stage, read_trainables(checkpoint))
            checkpoint = None
    try:
        trainer.fit(stage, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, handler)


def final_report(config: RunConfig, model: DualLoRAModel, folder: RunFolder, tracking: Tracking) -> Report | None:
    """Evaluate the last bundle on the test tasks, unless that was done already, and print the table; the ranks share the encoding.

    MMEB-V2 has a command of its own, which checks its files first and goes on where it was stopped.
    """
    path, last = folder.path / "report.json", STEPS[-1]
    if config.data.suite == "mmeb_v2":
        log.info("bundle: %s\nthe test tasks: make evaluate RUN=%s DATA=%s", folder.bundle(last), config.name, config.data.root)
        return None
    finished = (folder.step(last) / "done.json").stat().st_mtime
    settings = {key: value for key, value in flatten(config).items() if key.startswith("evaluation.")}
    if from_rank_zero(all(file.is_file() and file.stat().st_mtime > finished for file in (path, folder.path / RECORD))):
        report = Report.from_json(path.read_text(encoding="utf-8"))
        if settings.items() <= report.provenance.items():
            if rank() == 0:
                show_report(report, f"Test tasks, run {config.name} (evaluated before)")
            return report
    tasks = build_tasks(config, "test", max_queries=config.evaluation.max_queries)
    if not tasks:
        log.info("No suite, so no test tasks; the bundle is in %s", folder.bundle(last))
        return None
    log.info("test tasks: %d, with the bundle of %s", len(tasks), last.title)
    load_bundle_into(model.to(inference_device(config)), folder.bundle(last))
    encoded = encode_tasks(config, model, tasks)
    if rank() != 0:
        return None
    modes, sides = cast("tuple[Mode, ...]", config.evaluation.modes), config.evaluation.think_sides
    results = [
        evaluate_encoded(each.task, each.queries, each.candidates, modes=modes, think_sides=sides, threshold=model.gate.threshold) for each in encoded
    ]
    report = make_report(tasks, results, {"run": config.name, **settings, **environment_tags(config), **data_tags(config)})
    save_report(report, tasks, results, folder.path, {})
    logger = tracking.child("evaluation", same_settings=True)
    log_report(report, folder.path, logger, tracking.parent)
    logger.log_artifact(write_record(config, model, folder, tasks, encoded, report, tracking))
    logger.finalize("success")
    show_report(report, f"Test tasks, run {config.name}")
    log.info("bundle: %s\nreport: %s\nmake mlflow-ui shows the curves", folder.bundle(last), folder.path / "report.md")
    return report


def log_parameters(model: DualLoRAModel) -> None:
    """Say how many parameters are trained beside the frozen backbone."""
    counts = model.parameter_report()
    parts = ", ".join(f"{part} {counts[part]:,.0f}" for part in ("reasoning", "embedding", "queries", "gate"))
    log.info("backbone %s parameters, frozen; added: %s (%.1f %% of it)", f"{counts['backbone']:,.0f}", parts, 100 * counts["ratio"])


def _save(config: RunConfig, step: Step, model: DualLoRAModel, folder: RunFolder, provenance: Mapping[str, str]) -> None:
    origin: dict[str, str | int | float] = {**provenance, "run": config.name, "step": step.name, "seed": config.seed}
    save_bundle(model, folder.bundle(step), provenance=origin, backbone_path=backbone_for(config, folder.bundle(step)))


def _start_from(model: DualLoRAModel, step: Step, folder: RunFolder) -> None:
    """Give the model what the step before left, if there is one."""
    number = STEPS.index(step)
    if number:
        load_bundle_into(model, folder.bundle(STEPS[number - 1]))


def _whole_again(config: RunConfig, step: Step, model: DualLoRAModel, folder: RunFolder, strategy: Strategy | str) -> DualLoRAModel:
    """A model to go on with after a step.

    DeepSpeed leaves its model in 16 bits, or in shares, with hooks in every module. To make it anew from what was trained is simpler than to undo
    that, and between the stages each rank then has a whole model: thoughts are written a token at a time, and to gather all weights for each of
    them would take longer than to hold a frozen backbone once.
    """
    if not isinstance(strategy, DeepSpeedStrategy):
        model.drop_reference()
        return model
    barrier()  # rank 0 has written what was trained
    drop_shards(model)
    model = build_model(config)
    _start_from(model, step, folder)
    read_trainables(beside(folder.step(step) / LAST)).put_into(model)
    return model


def _origin(config: RunConfig, step: Step, folder: RunFolder, provenance: Mapping[str, str]) -> dict[str, str]:
    """What another run must have in common to take a step over: see `RunFolder.share`."""
    data = {key: value for key, value in provenance.items() if key == "data_revision" or key.startswith("data.")}
    made_of = {**data, "backbone": backbone_digest(config.backbone.path), "version": __version__}
    return {"recipe": folder.recipe(step, made_of), "code": folder.code(step, provenance.get("code", ""))}


def _gate_material(config: RunConfig, step: Step, model: DualLoRAModel, path: Path) -> tuple[list[EncodedTask], GateBatch | None]:
    """What a gate's step learns from and chooses its threshold on, of a fresh gate; nothing for other steps."""
    if step.section != "gate":
        return [], None
    model.gate.reset_parameters()  # the thoughts have changed, and so that the gates of `cross_fit` are made alike
    tasks = encode_tasks(config, model.to(inference_device(config)), _gate_tasks(config), keep_states=True)
    return tasks, gate_examples(config, model, path, tasks)


def _gate_tasks(config: RunConfig) -> list[RetrievalTask]:
    """Validation tasks, whole where the gate learns from them; none of MMEB-V2, which has only test tasks."""
    if config.data.suite == "mmeb_v2":
        return []
    return build_tasks(config, "validation", max_queries=None if config.stages.gate.labels == "tasks" else config.evaluation.validation_queries)


def _choose_threshold(config: RunConfig, model: DualLoRAModel, tasks: Sequence[EncodedTask], examples: GateBatch, logger: TrackingLogger) -> None:
    model.to(inference_device(config))
    points = choose_threshold(config, model, tasks, examples)
    log.info("gate threshold %.4f", model.gate.threshold)
    logger.log_metrics(threshold_metrics(model.gate))
    for percent, numbers in curve_metrics(model.gate.curve).items():
        logger.log_metrics(numbers, step=percent)
    if points:
        logger.log_figure("figures/quality_against_tokens.png", quality_against_tokens(points, title="validation tasks"))


def backbone_for(config: RunConfig, bundle: Path) -> Path:
    """The backbone's path from the nearest folder that holds both, so that a checkout can be moved as a whole."""
    backbone = resolve_backbone(config.backbone.path)
    common = Path(os.path.commonpath([backbone, bundle.resolve()]))
    return backbone if common == Path(common.anchor) else backbone.relative_to(common)


def _say_what_comes_next(folder: RunFolder) -> None:
    waiting = [step for step in STEPS if not folder.is_done(step)]
    log.info("next: %s", folder.command(waiting[0].command if waiting else "all"))
