"""python -m experiments.sweep queries --run mini

Runs each variant of an ablation (or of all) as a run of its own, ``<run>-<ablation>-<variant>``, and prints one table. Every variant is a
full pipeline, about as long as ``make train`` each; ``--profile smoke`` shows that it works. A variant that is finished is not trained again.
An ablation is a dict entry: variant → overrides.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from experiments.command_line import add_settings, new_parser, prepare_process, run_command, settings
from experiments.runs import RunFolder
from twn_lightning.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from twn_lightning.configs.run import RunConfig
    from twn_lightning.evaluation.report import Report

ABLATIONS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "queries": {"k1": ["model.num_queries=1"], "k2": ["model.num_queries=2"], "k4": ["model.num_queries=4"]},
    "interface": {"kv": [], "reencode": ["model.interface=reencode"]},
    "detach": {"detached": [], "attached": ["model.detach=false"]},
    "mixed": {"with": [], "without": ["stages.cot_sft.mixed_weight=0"]},
    "rewards": {
        "all": [],
        "margin": ["stages.grpo.rewards.rank=0", "stages.grpo.rewards.gain=0"],
        "gain": ["stages.grpo.rewards.rank=0", "stages.grpo.rewards.retrieval=0"],
    },
    "loss_type": {name: [f"stages.grpo.loss_type={name}"] for name in ("grpo", "dr_grpo", "dapo", "bnpo")},
}


def main(arguments: Sequence[str]) -> None:
    """Check everything without torch, then run the variants one after the other.

    Raises:
        TwnError: Something the user can mend.
    """
    parser = new_parser("sweep", __doc__)
    parser.add_argument("ablation", help=f"all, {', '.join(ABLATIONS)}")
    add_settings(parser)
    parsed = parser.parse_intermixed_args(arguments)
    if parsed.ablation != "all" and parsed.ablation not in ABLATIONS:
        near = difflib.get_close_matches(parsed.ablation, ABLATIONS, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"There is no ablation {parsed.ablation!r}.{hint} Available: all, {', '.join(ABLATIONS)}.")
    base = settings(parsed).name
    configs: dict[str, RunConfig] = {}
    for name in ABLATIONS if parsed.ablation == "all" else (parsed.ablation,):
        for variant, overrides in ABLATIONS[name].items():
            given = argparse.Namespace(**{**vars(parsed), "run": f"{base}-{name}-{variant}", "overrides": [*parsed.overrides, *overrides]})
            configs[f"{name} · {variant}"] = settings(given)
    for config in configs.values():
        RunFolder(config).check("all")
    prepare_process()
    run_variants(configs)


def run_variants(configs: Mapping[str, RunConfig]) -> dict[str, Report]:
    """Train and evaluate each variant, then print the table of group means.

    Args:
        configs: Settings by the variant's title.
    """
    from experiments.display import show
    from experiments.pipeline import run_pipeline

    reports = {}
    for title, config in configs.items():
        report = run_pipeline(config, "all")
        if report is not None:
            reports[title] = report
    show(comparison(reports))
    return reports


def comparison(reports: Mapping[str, Report]) -> Table:
    """A row for each variant: mean score under each think mode, think rate, tokens."""
    from rich.table import Table

    table = Table(title="Ablations: mean over the test tasks", title_justify="left")
    for heading in ("variant", "never", "always", "auto", "oracle", "think rate", "tokens/query"):
        table.add_column(heading, justify="left" if heading == "variant" else "right")
    for title, report in reports.items():
        row = report.group("all").row
        figures = [f"{dict(row.scores).get(mode, float('nan')):.1f}" for mode in ("never", "always", "auto", "oracle")]
        table.add_row(title, *figures, f"{row.think_rate.get('auto', 0.0):.2f}", f"{row.tokens_per_query.get('auto', 0.0):.1f}")
    return table


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
