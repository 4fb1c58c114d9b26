"""python -m experiments.bench_stage1

Stage 1's step (K queries over a cache that was made without a graph) against plain LoRA contrastive training (graph over the whole
sequence, last-token pooling) of the same backbone, adapter and batches. Prints time, saved activations and resident memory of both; about
two minutes on two cores. Steps of the two are interleaved, and the ratio is the median of the ratios of neighbours. The suite's prompts have 3
to about 30 tokens; --prompt-tokens 256 shows what prompts of the length that large models read would cost.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.command_line import add_settings, new_parser, prepare_process, require_sources, run_command, settings
from experiments.runs import STEPS

if TYPE_CHECKING:
    from torch import Tensor

    from twn_lightning.batches import Inputs, PairBatch
    from twn_lightning.configs.run import RunConfig
    from twn_lightning.models.dual_lora import DualLoRAModel

_STATUS, _RESET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")
VARIANTS = ("stage1", "plain")
TITLES = {"stage1": "stage 1 (queries over a cache)", "plain": "plain LoRA (whole sequence)"}


def main(arguments: Sequence[str]) -> None:
    """Check the arguments without torch, then measure.

    Raises:
        TwnError: Something the user can mend.
    """
    parser = new_parser("bench_stage1", __doc__)
    parser.add_argument("--rounds", type=int, default=12, help="interleaved steps of each (default: 12)")
    parser.add_argument("--prompt-tokens", type=int, default=0, help="lengthen every prompt to this many tokens (default: as they are)")
    parser.add_argument("--only", choices=VARIANTS, help="a few steps of one variant alone; prints the memory it added, as JSON")
    add_settings(parser)
    parsed = parser.parse_intermixed_args(arguments)
    config = settings(parsed)
    require_sources(config)
    prepare_process()
    if parsed.only:
        sys.stdout.write(json.dumps({"added_mib": added_memory(config, parsed.only, prompt_tokens=parsed.prompt_tokens)}) + "\n")
        return
    times, saved = measure(config, rounds=parsed.rounds, prompt_tokens=parsed.prompt_tokens)
    memory = {variant: _memory_alone(arguments, variant) for variant in VARIANTS}
    _show(config, times, saved, memory, prompt_tokens=parsed.prompt_tokens)


def measure(config: RunConfig, *, rounds: int, prompt_tokens: int = 0) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each step and saved activations of one, by variant.

    Args:
        config: The run's settings; batch size, rank and backbone are stage 1's.
        rounds: Steps of each variant, after one that is not counted.
        prompt_tokens: Columns that each batch of prompts has at least.

    Returns:
        Seconds, ``rounds`` of each; and MiB kept for the backward pass.
    """
    batches = _batches(config, rounds + 1, prompt_tokens)
    steps = {variant: _step(config, variant) for variant in VARIANTS}
    times: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    saved = {variant: saved_mib(lambda batch=batches[0], step=steps[variant]: step(batch)) for variant in VARIANTS}  # type: ignore[misc]
    for number, batch in enumerate(batches[1:]):
        for variant in VARIANTS if number % 2 else reversed(VARIANTS):
            started = time.perf_counter()
            steps[variant](batch)
            times[variant].append(time.perf_counter() - started)
    return times, saved


def saved_mib(step: Callable[[], None]) -> float:
    """MiB of activations that a step keeps for its backward pass: distinct storages, parameters left out."""
    import torch

    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step()
    return sum(storages.values()) / 2**20


def added_memory(config: RunConfig, variant: str, *, num_steps: int = 3, prompt_tokens: int = 0) -> float:
    """MiB between the process's resident memory before a few steps of one variant and its peak during them.

    Where the peak cannot be reset (outside Linux), an earlier peak may hide part of it.
    """
    batches, step = _batches(config, num_steps, prompt_tokens), _step(config, variant)
    if _RESET_PEAK.exists():
        _RESET_PEAK.write_text("5")
    before = _resident_mib("VmRSS")
    for batch in batches:
        step(batch)
    return _resident_mib("VmHWM") - before


def _resident_mib(entry: str) -> float:
    if not _STATUS.exists():
        from callbacks.throughput import peak_memory_gib

        return peak_memory_gib() * 1024
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(entry))
    return float(line.split()[1]) / 1024


def _batches(config: RunConfig, number: int, prompt_tokens: int) -> list[PairBatch]:
    from experiments.bench_steps import lengthened
    from experiments.build import build_pair_data, build_processor

    loader = build_pair_data(config, STEPS[0], build_processor(config)).train_dataloader()
    batches = [batch for batch, _ in zip(loader, range(number), strict=False)]
    return [replace(batch, query=lengthened(batch.query, prompt_tokens), positive=lengthened(batch.positive, prompt_tokens)) for batch in batches]


def _step(config: RunConfig, variant: str) -> Callable[[PairBatch], None]:
    import torch

    from experiments.build import build_model
    from twn_lightning.losses.info_nce import false_negative_mask, info_nce

    model = build_model(config)
    model.set_trainable(*(("embedding", "queries") if variant == "stage1" else ("embedding",)))
    model.train()
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-4)
    temperature = config.stages.contrastive.temperature
    embed = _plain_vectors if variant == "plain" else _cached_vectors

    def sum_of_both_ways(query: Tensor, positive: Tensor, column: Tensor, mask: Tensor) -> Tensor:
        forward = info_nce(query, positive, column, temperature=temperature, mask=mask)
        return forward + info_nce(positive, query, column, temperature=temperature, mask=mask)

    def step(batch: PairBatch) -> None:
        column = torch.arange(len(batch))
        mask = false_negative_mask(batch.positive_hash, batch.positive_hash, column)
        query, positive = embed(model, batch.query), embed(model, batch.positive)
        loss = sum_of_both_ways(query, positive, column, mask)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()

    return step


def _cached_vectors(model: DualLoRAModel, inputs: Inputs) -> Tensor:
    return model.embed(model.prefill(inputs)).vector


def _plain_vectors(model: DualLoRAModel, inputs: Inputs) -> Tensor:
    import torch
    from torch.nn.functional import normalize

    from twn_lightning.models.adapters import lora_layers, use_adapter

    with use_adapter(lora_layers(model.backbone.model), "embedding"):
        hidden = model.backbone.decode_layers(model.backbone.prompt(inputs), inputs.attention_mask, None)
    last = inputs.attention_mask.shape[1] - 1 - inputs.attention_mask.flip(1).int().argmax(1)  # padding may stand on either side
    return normalize(hidden[torch.arange(len(hidden)), last].float(), dim=-1)


def _memory_alone(arguments: Sequence[str], variant: str) -> float:
    done = subprocess.run(
        [sys.executable, "-m", "experiments.bench_stage1", *arguments, "--only", variant], capture_output=True, text=True, check=True
    )
    return float(json.loads(done.stdout.splitlines()[-1])["added_mib"])


def _show(config: RunConfig, times: dict[str, list[float]], saved: dict[str, float], memory: dict[str, float], *, prompt_tokens: int) -> None:
    from statistics import median

    from rich.table import Table

    from experiments.display import show

    batch_size, queries = config.stages.contrastive.batch_size, config.model.num_queries
    length = f", prompts of {prompt_tokens} tokens" if prompt_tokens else ""
    table = Table(title=f"Stage 1, batch {batch_size}, K = {queries}, backbone {config.backbone.path}{length}", title_justify="left")
    for heading in ("", "step, ms (median)", "saved activations, MiB", "resident memory added, MiB"):
        table.add_column(heading, justify="left" if not heading else "right")
    for variant in VARIANTS:
        table.add_row(TITLES[variant], f"{1000 * median(times[variant]):.0f}", f"{saved[variant]:.1f}", f"{memory[variant]:.0f}")
    ratio = median(plain / ours for ours, plain in zip(times["stage1"], times["plain"], strict=True))
    table.add_row("plain / stage 1", f"{ratio:.2f}", f"{saved['plain'] / saved['stage1']:.1f}", f"{memory['plain'] / max(memory['stage1'], 1.0):.1f}")
    show(table)


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
