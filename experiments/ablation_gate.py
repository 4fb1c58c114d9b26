"""python -m experiments.ablation_gate --run mini

On a finished run: never, always, auto and oracle on every test task, and a sweep over the gate's threshold, all from one encoding of each
task. Prints both tables, leaves them with the figure in the run's folder under ablation_gate/, and makes one nested MLflow run for each
mode, every fifth threshold and the sweep, so that they can be compared in the UI. Takes as long as one evaluation. What the run's record says of
thinking at random and by confidence, as often as the gate, stands below. ``--seeds 1,2,3`` prints instead the mean over the base runs of a sweep,
from their records.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments.command_line import add_settings, new_parser, prepare_process, require_finished, run_command, settings
from experiments.runs import RunFolder, write_atomically

if TYPE_CHECKING:
    from rich.table import Table

    from experiments.tracking import Tracking
    from twn_lightning.configs.run import RunConfig
    from twn_lightning.evaluation.evaluate import SweepPoint
    from twn_lightning.evaluation.report import Report

READS = {mode: mode for mode in ("never", "always", "auto", "random", "confidence", "oracle")}
REFERENCE = "auto"
NUM_STEPS, SHOWN_EVERY = 50, 5
"""Steps of equal cost into which the thresholds of the sweep divide what always thinking costs, and which of them the terminal and MLflow show."""


def main(arguments: Sequence[str]) -> None:
    """Check the arguments without torch, then compare.

    Raises:
        TwnError: Something the user can mend.
    """
    parser = new_parser("ablation_gate", __doc__)
    parser.add_argument("--seeds", help="the base runs of these seeds, with commas between, instead of one run")
    add_settings(parser, of_run=True)
    parsed = parser.parse_intermixed_args(arguments)
    if parsed.seeds:
        from experiments.sweep import main as sweep  # which gathers this module

        sweep(["gate", "--no-training", *arguments])
        return
    config = settings(parsed, of_run=True)
    folder = require_finished(config)
    prepare_process()
    compare(config, folder)


def compare(config: RunConfig, folder: RunFolder) -> list[SweepPoint]:
    """Encode the test tasks once and score every mode and threshold.

    Args:
        config: The run's settings.
        folder: The run's folder.

    Returns:
        The mean sweep over all tasks, one point for each threshold.
    """
    from experiments.build import build_model, build_tasks, inference_device
    from experiments.display import show
    from experiments.encoded_tasks import encode_tasks
    from experiments.gating import even_thresholds, mean_sweep
    from experiments.results import make_report, save_report, show_report
    from experiments.tracking import Tracking, environment_tags
    from twn_lightning.checkpoints import load_bundle_into
    from twn_lightning.evaluation.evaluate import MODES, evaluate_encoded
    from twn_lightning.evaluation.figures import quality_against_tokens

    last = folder.last_done()
    assert last is not None
    model = build_model(config).to(inference_device(config))
    load_bundle_into(model, folder.bundle(last))
    tasks = build_tasks(config, "test", max_queries=config.evaluation.max_queries)
    encoded = encode_tasks(config, model, tasks)
    threshold = model.gate.threshold
    results = [evaluate_encoded(each.task, each.queries, each.candidates, modes=MODES, threshold=threshold) for each in encoded]
    report = make_report(tasks, results, {"run": config.name, "bundle": last.name, "threshold": f"{threshold:.4f}", **environment_tags(config)})
    points = mean_sweep(encoded, sorted({*even_thresholds(encoded, num_steps=NUM_STEPS), threshold}))
    references: dict[str, tuple[float, float]] = {
        mode: (float(sum(result.modes[mode].reasoning_tokens for result in results)), _kind_mean(report, mode)) for mode in MODES
    }
    figure = quality_against_tokens(points, references=references, title=f"test tasks, run {config.name}")
    path = folder.path / "ablation_gate"
    save_report(report, tasks, results, path, {"quality_against_tokens.png": figure})
    table = sweep_table(points, threshold)
    write_atomically(path / "sweep.md", sweep_markdown(points))
    with Tracking(config, folder.path).running() as tracking:
        _log(report, points, _shown(points, threshold), tracking)
        tracking.parent.log_figure("figures/ablation_gate.png", figure)
        tracking.parent.log_artifact(path / "sweep.md", "ablation_gate")
    show_report(report, f"Gate ablation, run {config.name}, threshold {threshold:.4f}")
    show(table)
    show(_references(folder, config.seed))
    return points


def _references(folder: RunFolder, seed: int) -> Table | str:
    """Thinking by the gate beside thinking as often at random, by confidence, and with the answer known."""
    from experiments.comparison import OWN, compare_modes, comparison_table
    from experiments.record import RECORD, read_record

    path = folder.path / RECORD
    if not path.is_file():
        return f"{path} is not there, so nothing is known of random and confidence: a run leaves it after the test tasks."
    rows = compare_modes({seed: read_record(path)}, READS, reference=REFERENCE)
    return comparison_table("Who thinks, as of the run's record", rows, modes=(OWN,), reference=REFERENCE)


def sweep_table(points: Sequence[SweepPoint], threshold: float) -> Table:
    """The sweep for the terminal: the first, the last, every fifth and the chosen threshold."""
    from rich.table import Table

    table = Table(title="Threshold sweep: mean over kinds of tasks", title_justify="left")
    for heading in ("threshold", "score", "think rate", "reasoning tokens"):
        table.add_column(heading, justify="right")
    for point in _shown(points, threshold):
        mark = " ← chosen on validation" if point.threshold == threshold else ""
        table.add_row(f"{point.threshold:.4f}{mark}", f"{point.score:.1f}", f"{point.think_rate:.2f}", f"{point.reasoning_tokens:,}")
    return table


def _shown(points: Sequence[SweepPoint], threshold: float) -> list[SweepPoint]:
    last = len(points) - 1
    return [point for number, point in enumerate(points) if number % SHOWN_EVERY == 0 or number == last or point.threshold == threshold]


def sweep_markdown(points: Sequence[SweepPoint]) -> str:
    """The whole sweep as a Markdown table."""
    lines = ["| threshold | score | think rate | reasoning tokens |", "|---:|---:|---:|---:|"]
    lines += [f"| {point.threshold:.4f} | {point.score:.2f} | {point.think_rate:.3f} | {point.reasoning_tokens} |" for point in points]
    return "\n".join(lines) + "\n"


def _kind_mean(report: Report, mode: str) -> float:
    kinds = dict.fromkeys(row.kind for row in report.rows)
    means = []
    for kind in kinds:
        scores = [dict(row.scores)[mode] for row in report.rows if row.kind == kind]
        means.append(sum(scores) / len(scores))
    return sum(means) / len(means)


def _log(report: Report, points: Sequence[SweepPoint], shown: Sequence[SweepPoint], tracking: Tracking) -> None:
    for mode in ("never", "always", "auto", "oracle"):
        logger = tracking.child(f"ablation_gate/{mode}", {"ablation": "gate", "variant": mode}, same_settings=True)
        rows = [*report.rows, *(group.row for group in report.groups())]
        logger.log_metrics({f"test/{row.name}/score": dict(row.scores)[mode] for row in rows})
        logger.log_metrics({f"test/{row.name}/tokens_per_query": dict(row.tokens_per_query)[mode] for row in rows})
        logger.finalize("success")
    sweep = tracking.child("ablation_gate/sweep", {"ablation": "gate", "variant": "threshold sweep"}, same_settings=True)
    for number, point in enumerate(points):
        numbers = {f"sweep/{name}": float(value) for name, value in dataclasses.asdict(point).items()}
        sweep.log_metrics(numbers, step=number)
        if point in shown:
            variant = f"threshold_{point.threshold:.4f}"
            logger = tracking.child(f"ablation_gate/{variant}", {"ablation": "gate", "variant": variant}, same_settings=True)
            logger.log_metrics(numbers)
            logger.finalize("success")
    sweep.finalize("success")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
