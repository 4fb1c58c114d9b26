"""python -m experiments.evaluate --run mini

Evaluates the last bundle of a run on the test tasks and prints the table; ``--sides all`` compares thinking on the query side, on the
candidate side and on both. ``--budget 20``: the gate's threshold is then the one that should spend 20 reasoning tokens a query (those of the
candidates included, each candidate once), by the curve that was stored when the gate was trained; prints what was asked and what was spent.
Needs a run with a finished stage; leaves report.json and report.md in the run's folder under evaluation/.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from experiments.command_line import add_settings, new_parser, prepare_process, require_finished, run_command, settings
from experiments.runs import RunFolder

if TYPE_CHECKING:
    from twn_lightning.configs.run import RunConfig
    from twn_lightning.evaluation.evaluate import ThinkSides

log = logging.getLogger(__name__)

SIDES: tuple[ThinkSides, ...] = ("both", "query", "candidate")


def main(arguments: Sequence[str]) -> None:
    """Check the arguments without torch, then evaluate.

    Raises:
        TwnError: Something the user can mend.
    """
    parser = new_parser("evaluate", __doc__)
    parser.add_argument("--sides", choices=("set", "all"), default="set", help="the side of evaluation.think_sides, or all three (default: set)")
    parser.add_argument("--budget", type=float, help="reasoning tokens a query that the gate should spend (default: the threshold chosen by quality)")
    add_settings(parser, of_run=True)
    parsed = parser.parse_intermixed_args(arguments)
    config = settings(parsed, of_run=True)
    folder = require_finished(config)
    prepare_process()
    evaluate(config, folder, SIDES if parsed.sides == "all" else (config.evaluation.think_sides,), budget=parsed.budget)


def evaluate(config: RunConfig, folder: RunFolder, sides: Sequence[ThinkSides], *, budget: float | None = None) -> None:
    """Evaluate the run's last bundle, once for each choice of sides, and record it in the run's MLflow run.

    Args:
        config: The run's settings.
        folder: The run's folder.
        sides: Which sides may think.
        budget: Reasoning tokens a query; None for the gate's own threshold.

    Raises:
        ConfigError: The gate's curve knows no threshold for the budget.
    """
    from experiments.build import build_model, build_tasks, data_tags, inference_device
    from experiments.gating import budget_threshold
    from experiments.results import budget_line, evaluate_tasks, log_report, make_report, save_report, show_report
    from experiments.tracking import Tracking, environment_tags
    from twn_lightning.checkpoints import load_bundle_into

    last = folder.last_done()
    assert last is not None
    model = build_model(config).to(inference_device(config))
    load_bundle_into(model, folder.bundle(last))
    tasks = build_tasks(config, "test", max_queries=config.evaluation.max_queries)
    origin = {"run": config.name, "bundle": last.name, **environment_tags(config), **data_tags(config)}
    with Tracking(config, folder.path, data_tags(config)).running() as tracking:
        for side in sides:
            threshold = None if budget is None else budget_threshold(model, tasks, budget, think_sides=side)
            results = evaluate_tasks(config, model, tasks, think_sides=side, threshold=threshold)
            asked = {} if budget is None else {"budget": f"{budget:g} reasoning tokens a query", "threshold": f"{threshold:.4f}"}
            report = make_report(tasks, results, {**origin, "think_sides": side, **asked})
            name = side if budget is None else f"{side}_budget_{budget:g}"
            path = folder.path / "evaluation" / name
            save_report(report, tasks, results, path, {})
            logger = tracking.child("evaluation" if name == "both" else f"evaluation_{name}")
            log_report(report, path, logger)
            logger.finalize("success")
            show_report(report, f"Test tasks, run {config.name}, after {last.title}, thinking side: {side}")
            if budget is not None:
                log.info(budget_line(results, budget=budget))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
