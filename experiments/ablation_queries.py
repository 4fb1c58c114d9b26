"""python -m experiments.ablation_queries --run mini --seeds 1,2,3

How many learnable queries make an embedding, and the last token's state instead of any (last; it needs the reencode interface). Each variant
trains all four stages: about as long as `make train`, for each seed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments.command_line import run_command

VARIANTS: dict[str, Sequence[str]] = {
    "k1": ["model.num_queries=1"],
    "k2": ["model.num_queries=2"],
    "k4": ["model.num_queries=4"],
    "k16": ["model.num_queries=16"],
    "last": ["model.pooling=last", "model.interface=reencode"],
}


def main(arguments: Sequence[str]) -> None:
    """Train the variants that are not finished, and print their table."""
    from experiments.sweep import main as sweep  # which gathers this module

    sweep(["queries", *arguments])


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
