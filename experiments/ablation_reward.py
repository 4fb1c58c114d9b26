"""python -m experiments.ablation_reward --run mini --seeds 1,2,3

What stage 4 rewards a thought for: all parts (full), all but one, or the one reward of another method beside the format (group_margin as in
UME-R1, outcome as in Embed-RL). Stages 1 to 3 are those of the base run, so that a variant takes stage 4, its gate refit and the test tasks.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments.command_line import run_command

PARTS = ("retrieval", "rank", "gain", "length", "format")
_NONE_BUT_FORMAT = [f"stages.grpo.rewards.{part}=0" for part in PARTS if part != "format"]
VARIANTS: dict[str, Sequence[str]] = {
    "full": [],
    **{f"without_{part}": [f"stages.grpo.rewards.{part}=0"] for part in PARTS},
    "group_margin": [*_NONE_BUT_FORMAT, "stages.grpo.rewards.group_margin=1"],
    "outcome": [*_NONE_BUT_FORMAT, "stages.grpo.rewards.outcome=1"],
}


def main(arguments: Sequence[str]) -> None:
    """Train the variants that are not finished, and print their table."""
    from experiments.sweep import main as sweep  # which gathers this module

    sweep(["reward", *arguments])


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
