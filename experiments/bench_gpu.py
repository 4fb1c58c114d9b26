"""python -m experiments.bench_gpu --shape qwen3-vl-4b

Tokens a second, share of the device's peak (MFU) and peak memory of all four stages by batch size, at a backbone's true shape with random
weights; stage 1's two interfaces beside plain LoRA contrastive training with and without GradCache. A batch size that does not fit is recorded
as such, and larger ones of it are not tried. On a GPU it writes docs/bench_gpu.md and docs/bench_gpu.json; some minutes for 4B on 80 GB.
``--device cpu --shrink`` goes the same way in seconds, with numbers that mean nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import logging
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.command_line import new_parser, prepare_process, run_command
from experiments.runs import write_atomically
from twn_lightning.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from experiments.bench_steps import Load, Measured
    from twn_lightning.models.dual_lora import DualLoRAModel

log = logging.getLogger(__name__)

ROOT = Path(__file__).parents[1]
NAME = "bench_gpu"
PEAKS = {"H200 NVL": 836e12, "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 836e12, "H100": 989e12, "A100": 312e12}
"""Dense bfloat16 operations a second by part of the device's name, the first that fits, as NVIDIA's data sheets say (without sparsity)."""
_STATUS, _RESET_PEAK = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Reading:
    """One variant at one batch size.

    Attributes:
        variant: Key of `VARIANTS`.
        batch_size: Pairs; prompts in stage 4.
        status: "measured", "out of memory", or "not tried" behind a smaller batch size that was out of memory.
        seconds: Of each measured step.
        tokens: A step, see `Measured`.
        flops: A step.
        peak_gib: Most memory in use during the steps: of the GPU, or resident memory of the process.
        mfu: Share of the device's peak, or None where that is not known.
    """

    variant: str
    batch_size: int
    status: str
    seconds: tuple[float, ...] = ()
    tokens: int = 0
    flops: float = 0.0
    peak_gib: float = 0.0
    mfu: float | None = None

    @property
    def tokens_per_second(self) -> float:
        """By the median step."""
        return self.tokens / statistics.median(self.seconds)


def main(arguments: Sequence[str]) -> None:
    """Check the arguments without torch, then measure and write.

    Raises:
        TwnError: Something the user can mend.
    """
    parsed = _parser().parse_args(arguments)
    sizes = _numbers(parsed.batch_sizes)
    prepare_process()
    import torch

    if parsed.device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device is cuda, but torch sees no GPU here: run it where there is one, or choose --device cpu --shrink.")
    from experiments.bench_steps import VARIANTS, Load

    chosen = parsed.variants.split(",") if parsed.variants else list(VARIANTS)
    unknown = [name for name in chosen if name not in VARIANTS]
    if unknown:
        raise ConfigError(f"There is no variant {unknown[0]!r}; choose among {', '.join(VARIANTS)}.")
    load = Load(**{field.name: getattr(parsed, field.name) for field in dataclasses.fields(Load)})
    with tempfile.TemporaryDirectory() as temporary:
        model = make_model(parsed, Path(parsed.folder or temporary))
    folder = Path(parsed.out) if parsed.out else ROOT / "docs" if parsed.device == "cuda" else Path("runs") / NAME
    unfinished = folder / "unfinished"
    readings: list[Reading] = []
    for reading in measure(model, chosen, sizes, load, rounds=parsed.rounds, dtype=parsed.dtype):
        readings.append(reading)
        write(unfinished, make_record(parsed, model, readings))  # a later one may run out of time
    record = make_record(parsed, model, readings)
    write(folder, record)
    shutil.rmtree(unfinished)
    log.info("%s\n%s", page(record), folder / f"{NAME}.md")


def write(folder: Path, record: dict[str, Any]) -> None:
    """The record as JSON and as a page."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{NAME}.json", json.dumps(record, indent=1))
    write_atomically(folder / f"{NAME}.md", page(record))


def _parser() -> argparse.ArgumentParser:
    parser = new_parser(NAME, __doc__)
    parser.add_argument("--shape", default="qwen3-vl-4b", help="the architecture (default: qwen3-vl-4b)")
    parser.add_argument("--shrink", action="store_true", help="the same structure, tiny: to see that it runs")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: cuda")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of weights and arithmetic (default: bfloat16)")
    parser.add_argument("--attn-implementation", choices=("sdpa", "flash_attention_2", "eager"), default="sdpa", help="default: sdpa")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="recompute layers in backward")
    parser.add_argument("--batch-sizes", default="1,4,16,64", help="pairs a step (default: 1,4,16,64)")
    parser.add_argument("--variants", default="", help="some of them, with commas between (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="measured steps of each, after one that is not counted (default: 5)")
    parser.add_argument("--prompt-tokens", type=int, default=512, help="of each query and positive (default: 512)")
    parser.add_argument("--thought-tokens", type=int, default=128, help="of each thought (default: 128)")
    parser.add_argument("--group-size", type=int, default=8, help="thoughts of a prompt in stage 4 (default: 8)")
    parser.add_argument("--picture", type=int, default=448, help="side of each query's picture in pixels, 0 for none (default: 448)")
    parser.add_argument("--chunk", type=int, default=8, help="rows that GradCache runs at once (default: 8)")
    parser.add_argument("--max-prefill-tokens", type=int, default=None, help="prompt tokens that stage 1 reads at once (default: all)")
    parser.add_argument("--num-queries", type=int, default=16, help="K (default: 16)")
    parser.add_argument("--reasoning-rank", type=int, default=64, help="default: 64")
    parser.add_argument("--embedding-rank", type=int, default=32, help="default: 32")
    parser.add_argument("--folder", default="", help="where the random weights are written (default: a temporary folder)")
    parser.add_argument("--out", default="", help="where the page and the record go (default: docs on a GPU, runs/bench_gpu on the CPU)")
    return parser


def _numbers(text: str) -> list[int]:
    if not all(part.strip().isdigit() and int(part) for part in text.split(",")):
        raise ConfigError(f"--batch-sizes is {text!r}, but it lists counts of pairs: write them with commas between, as in 1,4,16.")
    return sorted({int(part) for part in text.split(",")})


def make_model(parsed: argparse.Namespace, folder: Path) -> DualLoRAModel:
    """The model to be measured, on its device.

    Args:
        parsed: Of the command line.
        folder: Gets the random backbone.

    Raises:
        ConfigError: There is no such shape.
    """
    from experiments.shapes import make_backbone
    from twn_lightning.models.adapters import LoraSpec
    from twn_lightning.models.backbones import load_backbone
    from twn_lightning.models.backbones.base import ProcessorOptions
    from twn_lightning.models.dual_lora import DualLoRAModel

    make_backbone(folder, parsed.shape, shrink=parsed.shrink, dtype=parsed.dtype)
    options = ProcessorOptions(max_thought_tokens=max(256, parsed.thought_tokens))
    backbone = load_backbone(folder, dtype=parsed.dtype, attn_implementation=parsed.attn_implementation, options=options)
    model = DualLoRAModel(
        backbone,
        reasoning=LoraSpec(rank=parsed.reasoning_rank, alpha=2 * parsed.reasoning_rank, target_modules=_targets(parsed.shape)),
        embedding=LoraSpec(rank=parsed.embedding_rank, alpha=2 * parsed.embedding_rank, target_modules=_targets(parsed.shape)),
        num_queries=parsed.num_queries,
    )
    if parsed.gradient_checkpointing:
        model.enable_gradient_checkpointing()
    return model.to(parsed.device)


def _targets(shape: str) -> tuple[str, ...]:
    from twn_lightning.models.adapters import PROJECTIONS

    return PROJECTIONS[:4] if "a3b" in shape else PROJECTIONS  # experts are fused parameters


def measure(model: DualLoRAModel, variants: Sequence[str], sizes: Sequence[int], load: Load, *, rounds: int, dtype: str) -> Iterator[Reading]:
    """Every variant at every batch size, until one is out of memory, each as soon as it is read.

    Args:
        model: On its device; its interface and trainable parts are changed.
        variants: Keys of `VARIANTS`.
        sizes: Batch sizes, ascending.
        load: What a step is given.
        rounds: Measured steps of each.
        dtype: Of the arithmetic; bfloat16 runs under autocast, as in training.
    """
    import torch

    from experiments.bench_steps import VARIANTS, make_batch, make_step

    autocast = torch.bfloat16 if dtype == "bfloat16" else None
    peak = peak_flops(device_name(model.device)) if autocast is not None else None
    for name in variants:
        fits = True
        for size in sizes:
            reading = Reading(name, size, "not tried")
            if fits:

                def steps(size: int = size, name: str = name) -> Callable[[], Measured]:
                    run, batch = make_step(model, VARIANTS[name], load, autocast=autocast), make_batch(model, size, load)
                    return lambda: run(batch)

                reading = read(name, size, steps, model.device, rounds=rounds, peak=peak)
                fits = reading.status == "measured"
            log.info("%s, %d pairs: %s", VARIANTS[name].title, size, _said(reading))
            yield reading


def read(name: str, size: int, prepare: Callable[[], Callable[[], Measured]], device: torch.device, *, rounds: int, peak: float | None) -> Reading:
    """Steps of one variant at one batch size: one that is not counted, then ``rounds``.

    Args:
        name: Of the variant.
        size: Batch size.
        prepare: Makes the step; counts as part of it where memory runs out.
        device: Of the model.
        rounds: Measured steps.
        peak: Operations a second that the device can do, or None if that is not known.
    """
    _free(device)
    try:
        step = prepare()
        _reset_peak(device)
        done, seconds = step(), []
        for _ in range(rounds):
            started = _now(device)
            done = step()
            seconds.append(_now(device) - started)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        error.__traceback__ = None  # it holds the step's tensors
        return Reading(name, size, "out of memory", peak_gib=_peak_gib(device))
    mfu = None if peak is None else done.flops / statistics.median(seconds) / peak
    return Reading(name, size, "measured", tuple(seconds), done.tokens, done.flops, _peak_gib(device), mfu)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch had no memory left, on a GPU or on the CPU."""
    import torch

    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in ("DefaultCPUAllocator", "ALLOC_FAILED"))


def peak_flops(device: str) -> float | None:
    """Dense bfloat16 operations a second of a device, or None if it is not in the table."""
    return next((value for part, value in PEAKS.items() if part in device), None)


def device_name(device: torch.device) -> str:
    """What the numbers are measured on: the GPU's name, or the processor's with the number of threads."""
    from experiments.tracking import device_name as name_of
    from twn_lightning.configs.run import RunConfig, TrainerConfig

    return name_of(RunConfig(trainer=TrainerConfig(accelerator="gpu" if device.type == "cuda" else "cpu")))


def make_record(parsed: argparse.Namespace, model: DualLoRAModel, readings: Sequence[Reading]) -> dict[str, Any]:
    """Everything that the page is made of: device, commit, versions, settings, parameters, readings."""
    import importlib.metadata
    import platform

    import torch

    from experiments.tracking import PACKAGES, commit

    name = device_name(model.device)
    return {
        "device": name,
        "memory_gib": torch.cuda.get_device_properties(model.device).total_memory / 2**30 if model.device.type == "cuda" else None,
        "peak_flops": peak_flops(name),
        "commit": commit(),
        "made": time.strftime("%Y-%m-%d", time.gmtime()),
        "versions": {"python": platform.python_version(), **{package: importlib.metadata.version(package) for package in PACKAGES}},
        "settings": {key: value for key, value in vars(parsed).items() if key not in ("out", "folder")},
        "parameters": model.parameter_report(),
        "readings": [dataclasses.asdict(reading) for reading in readings],
    }


def page(record: dict[str, Any]) -> str:
    """The record for people, in Markdown."""
    from experiments.bench_steps import VARIANTS

    chosen, parameters = record["settings"], record["parameters"]
    shape = f"{chosen['shape']}{', shrunk: the numbers mean nothing' if chosen['shrink'] else ''}"
    memory = f", {record['memory_gib']:.0f} GiB" if record["memory_gib"] else ""
    peak = (
        f"{record['peak_flops'] / 1e12:.0f}e12 operations a second (dense bfloat16, data sheet)" if record["peak_flops"] else "not known, so no MFU"
    )
    lines = [
        "# All stages at true shapes",
        "",
        f"`python -m experiments.{NAME}` wrote this page and {NAME}.json beside it on {record['made']}. The weights are random: speed and memory are",
        "those of the shape, and thoughts go on to their last token. One device; a step includes its optimiser; medians of "
        f"{chosen['rounds']} steps after one that is not counted.",
        "",
        f"- Backbone: {shape}, {parameters['backbone'] / 1e9:.3g}e9 parameters in {chosen['dtype']}, {chosen['attn_implementation']}.",
        f"- Gradient checkpointing {'on' if chosen['gradient_checkpointing'] else 'off'}; adapters of rank {chosen['reasoning_rank']} and "
        f"{chosen['embedding_rank']}, K = {chosen['num_queries']}, {100 * parameters['ratio']:.2f} % added.",
        f"- A pair: two prompts of {chosen['prompt_tokens']} tokens, a picture of {chosen['picture']} × {chosen['picture']} pixels in the query,",
        f"  thoughts of {chosen['thought_tokens']} tokens, in stage 4 {chosen['group_size']} of them a query.",
        f"- GradCache runs {chosen['chunk']} rows at a time.",
        f"- Device: {record['device']}{memory}; peak {peak}.",
        f"- Commit {record['commit']}; " + ", ".join(f"{name} {version}" for name, version in record["versions"].items()) + ".",
        "",
        "| | pairs | ms a step | tokens a second | MFU, % | peak memory, GiB |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in record["readings"]:
        reading = Reading(**{**row, "seconds": tuple(row["seconds"])})
        lines.append(f"| {VARIANTS[reading.variant].title} | {reading.batch_size} | {' | '.join(_cells(reading))} |")
    return "\n".join([*lines, "", *_EXPLAINED, ""])


_EXPLAINED = (
    "Tokens are prompt tokens of both sides and thought tokens that are learned from or written, without padding. MFU counts what the result",
    "needs, by the formulas of `experiments/model_flops.py`: neither what gradient checkpointing computes again nor GradCache's first pass.",
    "Stage 3 is the labelling of pairs by the model's own thoughts; the gate's own steps take no time beside it. Out of memory: did not fit.",
)


def _cells(reading: Reading) -> tuple[str, ...]:
    if reading.status != "measured":
        return (reading.status, "–", "–", "–")
    mfu = "–" if reading.mfu is None else f"{100 * reading.mfu:.1f}"
    return f"{1000 * statistics.median(reading.seconds):.0f}", f"{reading.tokens_per_second:,.0f}", mfu, f"{reading.peak_gib:.2f}"


def _said(reading: Reading) -> str:
    return reading.status if reading.status != "measured" else f"{reading.tokens_per_second:,.0f} tokens a second, {reading.peak_gib:.2f} GiB"


def _free(device: torch.device) -> None:
    import torch

    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _now(device: torch.device) -> float:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _reset_peak(device: torch.device) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _RESET_PEAK.exists():
        _RESET_PEAK.write_text("5")


def _peak_gib(device: torch.device) -> float:
    import torch

    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    if not _STATUS.exists():
        from callbacks.throughput import peak_memory_gib

        return peak_memory_gib()
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return float(line.split()[1]) / 2**20


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
