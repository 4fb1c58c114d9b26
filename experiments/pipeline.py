"""The stages in their order: each is skipped if it is finished, goes on if it was stopped, and hands its bundle to the next."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import datamodules  # noqa: F401  (first: it prepares the import of torchvision, on which lightning depends)

# isort: split
from lightning.pytorch import LightningDataModule, Trainer, seed_everything

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
from experiments.gating import choose_threshold, gate_examples
from experiments.results import evaluate_tasks, log_report, make_report, save_report, show_report
from experiments.runs import STEPS, RunFolder, Step, resolve_backbone
from experiments.tracking import Tracking, TrackingLogger, environment_tags
from twn_lightning.batches import GateBatch
from twn_lightning.checkpoints import load_bundle_into, save_bundle
from twn_lightning.configs.load import flatten
from twn_lightning.configs.run import RunConfig
from twn_lightning.distributed import rank, rank_zero_first
from twn_lightning.evaluation.figures import quality_against_tokens
from twn_lightning.evaluation.report import Report
from twn_lightning.models.dual_lora import DualLoRAModel

log = logging.getLogger(__name__)


def run_pipeline(config: RunConfig, command: str, given: Sequence[str] = ()) -> Report | None:
    """Train what a command asks for.

    Args:
        config: The run's settings.
        command: "stage1" … "stage4", or "all" for the four and the test tasks.
        given: What the command line gave besides the command, for the hint at what comes next.

    Returns:
        The report on the test tasks after "all"; None otherwise, and where there are no tasks.

    Raises:
        TwnError: Something the user can mend.
        KeyboardInterrupt: Training was stopped; the same command goes on.
    """
    folder = RunFolder(config, given)
    folder.create()
    tags = data_tags(config, with_cot=command in ("stage2", "all"))
    model = build_model(config)
    log_parameters(model)
    tracking = Tracking(config, folder.path, tags)
    tracking.parent.log_metrics({f"parameters/{name}": value for name, value in model.parameter_report().items()})
    report = None
    with tracking.running():
        for step in STEPS:
            if command not in (step.command, "all"):
                continue
            if folder.is_done(step):
                log.info("%s: finished before, in %s", step.title, folder.step(step))
            else:
                run_step(config, step, model, folder, tracking.child(step.name, tags), {**environment_tags(config), **tags})
        if command == "all":
            report = final_report(config, model, folder, tracking)
    if command != "all":
        _say_what_comes_next(folder)
    return report


def run_step(config: RunConfig, step: Step, model: DualLoRAModel, folder: RunFolder, logger: TrackingLogger, provenance: Mapping[str, str]) -> None:
    """Train one step from its predecessor's bundle, or from its own checkpoint, and leave its bundle.

    Args:
        config: The run's settings.
        step: Which step.
        model: Gets the predecessor's weights first.
        folder: The run's folder.
        logger: The step's MLflow run.
        provenance: What the bundle is made of, for its ``twn_config.json``.
    """
    number, path = STEPS.index(step), folder.step(step)
    folder.begin(step)
    if number:
        load_bundle_into(model, folder.bundle(STEPS[number - 1]))
    seed_everything(config.seed + number, verbose=False)
    log.info("%s: %d steps", step.title, num_steps(config, step))
    started = time.perf_counter()
    examples = _examples(config, step, model, path)
    data = build_data(config, step, model.processor, examples)
    stage = build_stage(config, step, model)
    callbacks = build_callbacks(config, step, path, data, provenance)
    trainer = build_trainer(config, steps=num_steps(config, step), logger=logger, callbacks=callbacks, folder=path)
    fit(trainer, stage, data, folder.checkpoint(step))
    model.drop_reference()
    if examples is not None:
        _fit_gate(config, model, examples, logger)
    if rank() == 0:
        seconds = time.perf_counter() - started
        origin: dict[str, str | int | float] = {**provenance, "run": config.name, "step": step.name, "seed": config.seed}
        save_bundle(model, folder.bundle(step), provenance=origin, backbone_path=_backbone_for(config, folder.bundle(step)))
        logger.log_metrics({"seconds": seconds})
        logger.log_artifact(folder.bundle(step))
        logger.log_artifact(folder.path / "config.yaml")
        folder.finish(step, {"seconds": round(seconds, 1)})
        logger.finalize("success")


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
    try:
        trainer.fit(stage, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:
        if trainer.interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, handler)


def final_report(config: RunConfig, model: DualLoRAModel, folder: RunFolder, tracking: Tracking) -> Report | None:
    """Evaluate the last bundle on the test tasks, unless that was done already, and print the table."""
    if rank() != 0:
        return None
    path, last = folder.path / "report.json", STEPS[-1]
    settings = {key: value for key, value in flatten(config).items() if key.startswith("evaluation.")}
    if path.is_file() and path.stat().st_mtime > (folder.step(last) / "done.json").stat().st_mtime:
        report = Report.from_json(path.read_text(encoding="utf-8"))
        if settings.items() <= report.provenance.items():
            show_report(report, f"Test tasks, run {config.name} (evaluated before)")
            return report
    tasks = build_tasks(config, "test", max_queries=config.evaluation.max_queries)
    if not tasks:
        log.info("No suite, so no test tasks; the bundle is in %s", folder.bundle(last))
        return None
    log.info("test tasks: %d, with the bundle of %s", len(tasks), last.title)
    load_bundle_into(model.to(inference_device(config)), folder.bundle(last))
    results = evaluate_tasks(config, model, tasks)
    report = make_report(tasks, results, {"run": config.name, **settings, **environment_tags(config), **data_tags(config)})
    save_report(report, tasks, results, folder.path, {})
    logger = tracking.child("evaluation")
    log_report(report, folder.path, logger, tracking.parent)
    logger.finalize("success")
    show_report(report, f"Test tasks, run {config.name}")
    log.info("bundle: %s\nreport: %s\nmake mlflow-ui shows the curves", folder.bundle(last), folder.path / "report.md")
    return report


def num_steps(config: RunConfig, step: Step) -> int:
    """Optimiser steps of a step."""
    stages = config.stages
    return {
        "contrastive": stages.contrastive.steps,
        "cot_sft": stages.cot_sft.steps,
        "gate": stages.gate.steps,
        "grpo": stages.grpo.steps,
    }[step.section]


def log_parameters(model: DualLoRAModel) -> None:
    """Say how many parameters are trained beside the frozen backbone."""
    counts = model.parameter_report()
    parts = ", ".join(f"{part} {counts[part]:,.0f}" for part in ("reasoning", "embedding", "queries", "gate"))
    log.info("backbone %s parameters, frozen; added: %s (%.1f %% of it)", f"{counts['backbone']:,.0f}", parts, 100 * counts["ratio"])


def _examples(config: RunConfig, step: Step, model: DualLoRAModel, path: Path) -> GateBatch | None:
    if step.section != "gate":
        return None
    model.to(inference_device(config))
    with rank_zero_first():
        return gate_examples(config, model, path)


def _fit_gate(config: RunConfig, model: DualLoRAModel, examples: GateBatch, logger: TrackingLogger) -> None:
    tasks = build_tasks(config, "validation", max_queries=config.evaluation.validation_queries)
    model.to(inference_device(config))
    points = choose_threshold(config, model, tasks, examples)
    log.info("gate threshold %.2f", model.gate.threshold)
    logger.log_metrics({"gate/threshold": model.gate.threshold})
    if points:
        logger.log_figure("figures/quality_against_tokens.png", quality_against_tokens(points, title="validation tasks"))


def _backbone_for(config: RunConfig, bundle: Path) -> Path:
    """The backbone's path from the nearest folder that holds both, so that a checkout can be moved as a whole."""
    backbone = resolve_backbone(config.backbone.path)
    common = Path(os.path.commonpath([backbone, bundle.resolve()]))
    return backbone if common == Path(common.anchor) else backbone.relative_to(common)


def _say_what_comes_next(folder: RunFolder) -> None:
    waiting = [step for step in STEPS if not folder.is_done(step)]
    log.info("next: %s", folder.command(waiting[0].command if waiting else "all"))
