"""python -m experiments.evaluate --run mini

Evaluates the last bundle of a run on the test tasks and prints the table; ``--sides all`` compares thinking on the query side, on the
candidate side and on both. ``--budget 20``: the gate's threshold is then the one that should spend 20 reasoning tokens a query (those of the
candidates included, each candidate once), by the curve that was stored when the gate was trained; prints what was asked and what was spent.
Needs a run with a finished stage; leaves report.json and report.md in the run's folder under evaluation/, in a folder named after the side, and the
tasks and evaluation.max_queries if it is not all of them.

On MMEB-V2, in any run's settings: ``--run mini data.suite=mmeb_v2 data.root=FOLDER`` (its files are checked first, before a model is loaded);
``--tasks IMG_CLS,MSR-VTT`` chooses tasks and groups of them, ``--skip-missing`` evaluates what is there, and evaluation.profile says how inputs are
shown; evaluation.instructions=FILE gives the tasks' instructions. What proves unreadable only then stops the evaluation too, or counts as not found.
``--bundle FOLDER --config NAME`` evaluates a bundle from anywhere; one without twn_config.json needs ``--backbone PATH`` too.

Several processes share the work, to the same report: ``torchrun --standalone --nproc-per-node 8 -m experiments.evaluate -- …``. Vectors and thoughts
are kept in evaluation/cache under everything that made them, so that the same command goes on where it was stopped; the folder may be deleted.
The passes run in the run's trainer.precision. evaluation.thought_writer=vllm has vLLM write the thoughts (twn_lightning/integrations/vllm.py).
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.command_line import add_settings, new_parser, prepare_process, require_finished, run_command, settings
from experiments.runs import CONFIGS, RunFolder
from twn_lightning.configs.load import load_config
from twn_lightning.errors import ConfigError

if TYPE_CHECKING:
    from experiments.evaluate_model import Subject
    from twn_lightning.configs.run import RunConfig
    from twn_lightning.evaluation.evaluate import ThinkSides
    from twn_lightning.evaluation.store import VectorStore
    from twn_lightning.models.thought_writers import ThoughtWriter

log = logging.getLogger(__name__)

_LONGEST_NAME = 60
"""Characters of the tasks' names in a folder's name, beyond which their digest stands for them."""

SIDES: tuple[ThinkSides, ...] = ("both", "query", "candidate")


def main(arguments: Sequence[str]) -> None:
    """Check the arguments without torch, then evaluate.

    Raises:
        TwnError: Something the user can mend.
    """
    parser = new_parser("evaluate", __doc__)
    parser.add_argument("--sides", choices=("set", "all"), default="set", help="the side of evaluation.think_sides, or all three (default: set)")
    parser.add_argument("--budget", type=float, help="reasoning tokens a query that the gate should spend (default: the threshold chosen by quality)")
    parser.add_argument("--bundle", metavar="FOLDER", help="evaluate this bundle instead of a run's last one")
    parser.add_argument(
        "--backbone", metavar="PATH", default="", help="with --bundle: the backbone's folder, instead of the one that the bundle names"
    )
    parser.add_argument("--tasks", metavar="A,B", help="tasks or groups of tasks: short for data.tasks=[A,B]")
    skipping = "leave out tasks of MMEB-V2 whose files are faulty, and inputs that cannot be opened; their means are then incomplete"
    parser.add_argument("--skip-missing", action="store_true", help=skipping)
    add_settings(parser, of_run=True)
    parsed = parser.parse_intermixed_args(arguments)
    config = evaluation_settings(parsed)
    if parsed.bundle is None:
        require_finished(config)
    prepare_process()
    from experiments.build import inference_device
    from experiments.evaluate_model import subject_of_bundle, subject_of_run
    from twn_lightning.distributed import join_process_group, rank

    subject = subject_of_run(config) if parsed.bundle is None else subject_of_bundle(config, parsed.bundle, parsed.backbone)
    sides = SIDES if parsed.sides == "all" else (config.evaluation.think_sides,)
    with join_process_group(use_gpu=inference_device(config).type == "cuda"):
        if rank() != 0:
            logging.getLogger().setLevel(logging.ERROR)  # the first rank speaks for all
        evaluate(config, subject, sides, budget=parsed.budget, skip_missing=parsed.skip_missing)


def evaluation_settings(parsed: argparse.Namespace) -> RunConfig:
    """The settings of an evaluation.

    Those of a run that was trained on other tasks name none of MMEB-V2's: all are evaluated then, unless some were asked for.

    Raises:
        ConfigError: A setting is wrong, or options contradict each other.
    """
    if parsed.backbone and not parsed.bundle:
        raise ConfigError("--backbone says what a bundle from elsewhere is for: give --bundle FOLDER too, or leave it out.")
    if parsed.bundle is not None and parsed.config is None:
        raise ConfigError(
            "--bundle names a model without a run, whose decoding, batch sizes and precision are not known: give them with "
            "--config (such as mini, or qwen3_vl_4b with --profile single_gpu)."
        )
    if parsed.bundle is not None and parsed.run is None:
        parsed.run = f"bundle-{Path(parsed.bundle).resolve().name}"
    if parsed.tasks is not None:
        parsed.overrides = [*parsed.overrides, f"data.tasks=[{parsed.tasks}]"]
    config = settings(parsed, of_run=parsed.bundle is None)
    asked = any(override.startswith("data.tasks=") for override in parsed.overrides)
    written = RunFolder(config).path / "config.yaml"
    if config.data.suite == "mmeb_v2" and not asked and parsed.bundle is None and written.is_file():
        before = load_config(written, folder=CONFIGS)
        if before.data.suite != "mmeb_v2":
            config = dataclasses.replace(config, data=dataclasses.replace(config.data, tasks=()))
    return config


def _suffix(config: RunConfig) -> str:
    """What tells evaluations apart: which tasks and queries, if not all; of MMEB-V2 the profile and the file of instructions too."""
    part = "" if not config.data.tasks else "_" + "+".join(config.data.tasks)
    if len(part) > _LONGEST_NAME:
        part = f"_{hashlib.sha256(part.encode()).hexdigest()[:8]}"
    queries = "" if config.evaluation.max_queries is None else f"_{config.evaluation.max_queries}_queries"
    if config.data.suite == "mini":
        return f"{part}{queries}"
    file = config.evaluation.instructions
    wording = f"_{Path(file).stem}-{hashlib.sha256(Path(file).read_bytes()).hexdigest()[:8]}" if file else ""
    return f"_{config.data.suite}_{config.evaluation.profile}{wording}{part}{queries}"


def _origin(config: RunConfig, subject: Subject, store: VectorStore | None, writer: ThoughtWriter) -> dict[str, str]:
    """What a report's figures are made with, besides the data."""
    of = {"run": config.name, "bundle": subject.step} if subject.step else {"bundle": subject.bundle.name}
    digests = {} if store is None else {f"digest of {name}": store.made_by[name] for name in ("bundle", "backbone")}
    decoding = ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(config.decoding).items())
    return {**of, **digests, "decoding": decoding, "precision": config.trainer.precision, "thoughts": writer.name}


def evaluate(config: RunConfig, subject: Subject, sides: Sequence[ThinkSides], *, budget: float | None = None, skip_missing: bool = False) -> None:
    """Evaluate a model, once for each choice of sides, and record it in its MLflow run; all ranks call this.

    Args:
        config: The run's settings.
        subject: The model.
        sides: Which sides may think.
        budget: Reasoning tokens a query; None for the gate's own threshold.
        skip_missing: Leaves tasks out whose files are faulty, and inputs that cannot be opened.

    Raises:
        ConfigError: The gate's curve knows no threshold for the budget, or vLLM is to write and cannot.
        DataError: Files of a task are faulty, or an input cannot be opened.
    """
    from experiments.build import inference_device
    from experiments.evaluate_model import load_subject, open_store, open_writer
    from experiments.evaluate_suite import open_suite, profile_changes
    from experiments.evaluate_tasks import evaluate_tasks
    from experiments.gating import budget_threshold
    from experiments.results import budget_line, log_report, show_report, write_report
    from experiments.tracking import Tracking, environment_tags
    from twn_lightning.distributed import gather_objects, rank
    from twn_lightning.evaluation.report import Report

    changes = profile_changes(config)
    suite = open_suite(config, subject.folder / "evaluation", skip_missing=skip_missing)
    model = load_subject(config, subject, changes)
    writer = open_writer(config, model, subject)  # before the model is on the GPU, of which vLLM takes its share first
    model.to(inference_device(config))
    store = open_store(config, model, subject, writer)
    origin = {**_origin(config, subject, store, writer), **environment_tags(config), **suite.tags}
    thresholds = {side: None if budget is None else budget_threshold(model, suite.tasks, budget, think_sides=side) for side in sides}
    with Tracking(config, subject.folder).running() as tracking:
        for side, threshold in thresholds.items():
            name = (side if budget is None else f"{side}_budget_{budget:g}") + _suffix(config)
            path = subject.folder / "evaluation" / name
            results, missing = evaluate_tasks(
                config,
                model,
                suite,
                predictions=path / "predictions",
                think_sides=side,
                threshold=threshold,
                store=store,
                writer=writer,
                skip_unreadable=skip_missing,
            )
            if rank() != 0:
                continue
            asked = {} if budget is None else {"budget": f"{budget:g} reasoning tokens a query", "threshold": f"{threshold:.4f}"}
            provenance = {**origin, "think_sides": side, **asked, **missing}
            report = Report.from_results(results, expected=suite.expected, provenance=provenance, wholes=suite.wholes, revisions=suite.revisions)
            write_report(report, path, {})
            logger = tracking.child("evaluation" if name == "both" else f"evaluation_{name}", suite.tags, same_settings=True)
            log_report(report, path, logger)
            logger.finalize("success")
            show_report(report, f"{suite.title}, {subject.title}, thinking side: {side}")
            log.info("report: %s", path / "report.md")
            if budget is not None:
                log.info(budget_line(results, budget=budget))
        if store is not None:
            counts = [sum(column) for column in zip(*gather_objects(dataclasses.astuple(store.counts)), strict=True)]
            log.info("vectors: %d read, %d encoded and kept, %d damaged files, in %s", *counts, store.folder)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
