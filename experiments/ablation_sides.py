"""python -m experiments.ablation_sides --run mini --seeds 1,2,3

Which side should think: none, all queries, all candidates, or both. Trains nothing: the table comes from the records that the base runs of these
seeds left after their test tasks. `python -m experiments.evaluate --sides all` does the same for one run, with a report for each.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments.command_line import run_command

READS = {"never": "never", "query": "query", "candidate": "candidate", "both": "always"}
REFERENCE = "both"


def main(arguments: Sequence[str]) -> None:
    """Print the table of the base runs that are finished."""
    from experiments.sweep import main as sweep  # which gathers this module

    sweep(["sides", "--no-training", *arguments])


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
