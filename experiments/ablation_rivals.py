"""python -m experiments.ablation_rivals --run mini --seeds 1,2,3

Other published methods as settings of the same four stages, on the same backbone, data and steps: their idea, not their numbers. Each is
compared in the mode that it would be used in with the base in auto. Each trains what it has of the four stages, for each seed.

vlm2vec_v2_like: contrastive learning alone, for the steps of stages 1 and 2, the last token's state. ume_r1_like: one adapter for everything, the
last token's state, discriminative and generative embeddings never contrasted with each other, margin within the group as reward.
think_then_embed_like: an embedder that reads prompt and thought anew, no stage 4. embed_rl_like: the outcome of the retrieval as reward.
mmemb_r1_like: thinks where the gate finds a gain likelier than not.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from experiments.ablation_dual_lora import SHARED
from experiments.command_line import run_command

_ONLY_FORMAT = [f"stages.grpo.rewards.{part}=0" for part in ("retrieval", "rank", "gain", "length")]
_LAST_TOKEN = ["model.interface=reencode", "model.pooling=last"]
VARIANTS: dict[str, Sequence[str]] = {
    "twn": [],
    "vlm2vec_v2_like": [
        *(*_LAST_TOKEN, "stages.gate.steps=0", "stages.grpo.steps=0", "stages.cot_sft.cot_every=1"),
        *(f"stages.cot_sft.{part}_weight=0" for part in ("cot", "generative", "mixed")),
    ],
    "ume_r1_like": [
        *(*SHARED, "model.pooling=last", "stages.cot_sft.mixed_weight=0"),
        *(*_ONLY_FORMAT, "stages.grpo.rewards.group_margin=1"),
    ],
    "think_then_embed_like": [*_LAST_TOKEN, "stages.grpo.steps=0"],
    "embed_rl_like": [*_ONLY_FORMAT, "stages.grpo.rewards.outcome=1"],
    "mmemb_r1_like": ["stages.gate.margin=0", "stages.gate.dead_zone=0", "stages.gate.balanced=false", "stages.gate.fixed_threshold=0.5"],
}
MODES = {"vlm2vec_v2_like": "never", "ume_r1_like": "always", "think_then_embed_like": "always", "embed_rl_like": "always"}


def main(arguments: Sequence[str]) -> None:
    """Train the variants that are not finished, and print their table."""
    from experiments.sweep import main as sweep  # which gathers this module

    sweep(["rivals", *arguments])


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
