"""python -m experiments.ablation_interface --run mini --seeds 1,2,3

What the embedding adapter reads: the reasoning adapter's cache (kv), or prompt and thought anew (reencode). Each variant trains all four
stages: about as long as `make train`, for each seed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments.command_line import run_command

VARIANTS: dict[str, Sequence[str]] = {"kv": ["model.interface=kv"], "reencode": ["model.interface=reencode"]}


def main(arguments: Sequence[str]) -> None:
    """Train the variants that are not finished, and print their table."""
    from experiments.sweep import main as sweep  # which gathers this module

    sweep(["interface", *arguments])


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
