"""python -m experiments.ablation_dual_lora --run mini --seeds 1,2,3

Two adapters with a stop-gradient between them, against what others do: the contrastive gradient reaches the reasoning adapter (attached), one
adapter for everything (shared), and an embedder that reads the prompt and the thought anew, as after another model (two_models). Each variant
trains all four stages: about as long as `make train`, for each seed. The one adapter has the rank of both together, and the higher learning rate;
detached_wide gives both to the reasoning adapter of the two, so that it tells what sharing brings from what rank and rate bring.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments.command_line import run_command

SHARED = (
    *("model.adapters=shared", "model.detach=false", "model.reasoning.rank=80", "model.reasoning.alpha=160"),
    "stages.cot_sft.reasoning_learning_rate=null",
)
VARIANTS: dict[str, Sequence[str]] = {
    "detached": [],
    "detached_wide": [option for option in SHARED if not option.startswith(("model.adapters", "model.detach"))],
    "attached": ["model.detach=false"],
    "shared": SHARED,
    "two_models": ["model.interface=reencode", "model.pooling=last"],
}


def main(arguments: Sequence[str]) -> None:
    """Train the variants that are not finished, and print their table."""
    from experiments.sweep import main as sweep  # which gathers this module

    sweep(["dual_lora", *arguments])


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
