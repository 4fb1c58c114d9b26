"""How much each part of the benchmark is given: on two cores of a CPU, in a hurry, on a GPU. Loads without torch."""

from __future__ import annotations

from dataclasses import dataclass, replace

MEDIUM = "100M"
"""The large backbone on a CPU: Qwen3-VL-2B with three eighths of its widths, ten layers and the tiny backbone's vocabulary."""


@dataclass(frozen=True)
class Size:
    """How much a subject is given.

    Attributes:
        rounds: Each times every variant twice; at least 1.
        inputs: That are encoded in the parts that think.
        batch_size: Of those.
        prompt_tokens: Of each long prompt, at least.
        prompts: Long prompts that are read together.
        pairs: Of a training step; chunks of GradCache have half as many rows.
        group_size: G, thoughts of a prompt.
        rollout_prompts: P, prompts that thoughts are sampled for.
        thought_tokens: Most tokens of a sampled or random thought.
        task_queries: Queries of each test task; None for all.
        task_step: Every so manieth test task.
        batches: Batch sizes of the scaling.
        lengths: Prompt lengths of the scaling.
        widths: Of the vectors that are ranked.
        corpora: How many candidates are ranked.
        ranked_queries: By so many queries.
    """

    rounds: int = 3
    inputs: int = 384
    batch_size: int = 32
    prompt_tokens: int = 512
    prompts: int = 8
    pairs: int = 8
    group_size: int = 8
    rollout_prompts: int = 4
    thought_tokens: int = 64
    task_queries: int | None = None
    task_step: int = 1
    batches: tuple[int, ...] = (1, 4, 16, 64)
    lengths: tuple[int, ...] = (64, 128, 256, 512, 896)
    widths: tuple[int, ...] = (1024, 2048, 2560)
    corpora: tuple[int, ...] = (1000, 10_000, 50_000)
    ranked_queries: int = 256


SMALL = Size()
LARGE = replace(SMALL, rounds=1, inputs=64, prompts=2, pairs=2, rollout_prompts=1, batches=(1, 4, 16), lengths=(64, 128, 256, 512))
GPU = replace(
    SMALL,
    inputs=512,
    batch_size=64,
    prompts=16,
    pairs=2,
    rollout_prompts=4,
    thought_tokens=128,
    batches=(1, 4, 16, 64, 256),
    lengths=(128, 512, 2048, 4096),
)


def sizes(*, device: str, quick: bool) -> dict[str, Size]:
    """By subject: "small" and "large"."""
    chosen = {"small": SMALL, "large": GPU if device == "cuda" else LARGE}
    return {name: quickened(size) for name, size in chosen.items()} if quick else chosen


def quickened(size: Size) -> Size:
    """Enough to see that all runs, and about where the ratios lie."""
    return replace(
        size,
        rounds=1,
        inputs=size.inputs // 8,
        prompts=max(1, size.prompts // 4),
        pairs=2,
        rollout_prompts=1,
        thought_tokens=8,
        task_queries=12,
        task_step=6,
        batches=size.batches[:3],
        lengths=size.lengths[:3],
        widths=size.widths[:1],
        corpora=size.corpora[:2],
    )
