"""python -m experiments.ablation_stages --run mini --seeds 1,2,3

What each stage brings: all four (full), and each left out; the stages before the one that is left out are those of the base run. Without the
gate's stage, auto asks an untrained gate, so look at never and always there.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments.command_line import run_command

VARIANTS: dict[str, Sequence[str]] = {
    "full": [],
    **{f"without_{stage}": [f"stages.{stage}.steps=0"] for stage in ("contrastive", "cot_sft", "gate", "grpo")},
}


def main(arguments: Sequence[str]) -> None:
    """Train the variants that are not finished, and print their table."""
    from experiments.sweep import main as sweep  # which gathers this module

    sweep(["stages", *arguments])


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
