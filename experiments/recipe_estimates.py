"""python -m experiments.recipe_estimates

Rewrites the "estimated, not run" lines in the heads of the recipes (experiments/configs/*.yaml) from the settings below them: memory of a GPU, and
time. Needs no weights and no GPU; some seconds. ``--check`` writes nothing, and fails naming the recipes whose lines are not what it gives.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from experiments.command_line import new_parser, prepare_process, run_command
from experiments.runs import CONFIGS, write_atomically
from twn_lightning.configs.load import load_config
from twn_lightning.configs.run import RunConfig
from twn_lightning.errors import DataError

_BLOCK = re.compile(r"^# Memory of a GPU \(estimated.*\n(?:#   .*\n|# Time on .*\n)+", re.MULTILINE)
GIB = 2**30
NUM_GPUS = 8
MOST_WHOLE = 40 * GIB
"""Weights above this are spread over the GPUs (zero3)."""
PROMPT_TOKENS = 400
"""Assumed of a query or a positive: a picture of 640 × 480 (300 tokens of Qwen3-VL) and a text of 100."""
THOUGHT_TOKENS = 250
"""Assumed of a chain of thought."""
OPERATIONS_A_SECOND = 4.0e14
"""Assumed: 40 % of what an H100's data sheet says for dense bfloat16 (989e12)."""
SECONDS_A_TOKEN = 0.03
"""Assumed for one token of each row of a batch; a pass that reads all weights once takes a tenth of it."""
GATHERED_A_SECOND = 3.5e11
"""Assumed: bytes of weights that a GPU gathers from the others over NVLink; under zero3 it does so for every token that stage 4 writes."""


def main(arguments: Sequence[str]) -> None:
    """Rewrite the heads, or check them.

    Raises:
        ConfigError: A recipe's settings are wrong, or nothing is known of its backbone's architecture.
        DataError: There are no recipes; with ``--check`` also heads that their settings do not give.
    """
    parser = new_parser("recipe_estimates", __doc__)
    parser.add_argument("--configs", type=Path, default=CONFIGS, metavar="FOLDER", help="where the recipes lie (default: experiments/configs)")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a head differs")
    parsed = parser.parse_args(arguments)
    recipes = {path: text for path in sorted(parsed.configs.glob("*.yaml")) if _BLOCK.search(text := path.read_text(encoding="utf-8"))}
    if not recipes:
        raise DataError(f"{parsed.configs} holds no recipe with estimates at its head: give another folder with --configs.")
    prepare_process()
    new = {path: with_estimates(text, load_config(path, folder=parsed.configs, overrides=["data.root=FOLDER"])) for path, text in recipes.items()}
    stale = [path for path, text in recipes.items() if new[path] != text]
    if parsed.check and stale:
        raise DataError(
            f"The estimates at the head of {', '.join(map(str, stale))} are not those of the settings below them: "
            "run 'python -m experiments.recipe_estimates'."
        )
    for path in stale:
        write_atomically(path, new[path])


def with_estimates(text: str, config: RunConfig) -> str:
    """The text of a recipe, with the estimates of these settings in the place of those at its head."""
    return _BLOCK.sub(lambda _: "".join(f"{line}\n" for line in estimates(config)), text)


@dataclass(frozen=True)
class Size:
    """What the arithmetic needs to know of an architecture.

    Attributes:
        parameters: All of them.
        decoder: Weights of the decoder layers that a token meets.
        cache: Bytes of keys and values that a token leaves, in bfloat16.
        layer_inputs: Bytes that a token leaves for recomputing, one hidden state a layer.
        lora: Parameters of an adapter on all projections for each unit of its rank.
        lora_attention: Likewise, on those of the attention alone.
    """

    parameters: int
    decoder: int
    cache: int
    layer_inputs: int
    lora: int
    lora_attention: int


@cache
def size_of(name: str) -> Size:
    """Counted on a model without weights.

    Args:
        name: Of the architecture.
    """
    from twn_lightning.models.backbones.shapes import without_weights

    model = without_weights(name)
    text = model.config.get_text_config()
    parameters = {key: value.numel() for key, value in model.named_parameters()}
    layers = {key: number for key, number in parameters.items() if "language_model.layers." in key}
    experts = sum(number for key, number in layers.items() if ".experts." in key)
    chosen = text.num_experts_per_tok / text.num_experts if experts else 0.0
    head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    query, key_value = text.num_attention_heads * head, text.num_key_value_heads * head
    attention = text.num_hidden_layers * 2 * (2 * text.hidden_size + query + key_value)
    return Size(
        parameters=sum(parameters.values()),
        decoder=sum(layers.values()) - experts + round(experts * chosen),
        cache=text.num_hidden_layers * 2 * key_value * 2,
        layer_inputs=text.num_hidden_layers * text.hidden_size * 2,
        lora=attention + text.num_hidden_layers * 3 * (text.hidden_size + text.intermediate_size),
        lora_attention=attention,
    )


def architecture(config: RunConfig) -> str:
    """The architecture of a recipe's backbone: "Qwen/Qwen3-VL-4B-Instruct" is "qwen3-vl-4b"."""
    return config.backbone.path.rpartition("/")[2].lower().removesuffix("-instruct")


def estimates(config: RunConfig) -> list[str]:
    """The header's lines of memory and time."""
    size = size_of(architecture(config))
    return [
        f"# Memory of a GPU (estimated, not run; {PROMPT_TOKENS} tokens a prompt and {THOUGHT_TOKENS} a thought are assumed):",
        *(f"#   {line}" for line in _memory(config, size)),
        f"# Time on {NUM_GPUS} H100 (estimated, not run; the rates are assumptions; vision tower, backward of the queries, "
        "loading and test tasks come on top):",
        *(f"#   {line}" for line in _time(config, size)),
    ]


def _rank(config: RunConfig) -> int:
    return config.model.reasoning.rank + (config.model.embedding.rank if config.model.adapters == "dual" else 0)


def _memory(config: RunConfig, size: Size) -> Iterator[str]:
    rank = _rank(config)
    per_rank = size.lora if "up_proj" in config.model.reasoning.target_modules else size.lora_attention
    weights, trained = size.parameters * 2, rank * per_rank * 16
    share = f"; / {NUM_GPUS} GPUs = {weights / NUM_GPUS / GIB:.1f} GiB under zero3 while a stage trains" if weights > MOST_WHOLE else ""
    yield f"weights {size.parameters / 1e9:.2f}e9 × 2 B = {weights / GIB:.1f} GiB{share}"
    yield f"adapters {rank} × {per_rank / 1e6:.3f}e6 × 16 B (weight, gradient, two moments) = {trained / GIB:.1f} GiB"
    first, second, fourth, whole = config.stages.contrastive, config.stages.cot_sft, config.stages.grpo, PROMPT_TOKENS + THOUGHT_TOKENS
    is_kv = config.model.interface == "kv"
    if first.steps:
        tokens = first.batch_size * (2 + first.max_negatives) * PROMPT_TOKENS
        yield _caches(size, "stage 1", tokens) if is_kv else _inputs(size, "stage 1", tokens)
    if second.steps:
        read = second.batch_size * (2 * (whole + PROMPT_TOKENS) + second.max_negatives * PROMPT_TOKENS)
        if is_kv:
            yield _caches(size, "stage 2", read)
        yield _inputs(size, "stage 2", second.batch_size * 2 * whole + (0 if is_kv else read))
    if fourth.steps:
        tokens = fourth.batch_size * fourth.group_size * (PROMPT_TOKENS + fourth.max_new_tokens)
        yield _inputs(size, "stage 4", tokens)
        yield f"stage 4: {tokens} tokens × {size.cache // 1024} KiB of keys and values while it writes = {tokens * size.cache / GIB:.1f} GiB"


def _caches(size: Size, stage: str, tokens: int) -> str:
    return f"{stage}: {tokens} tokens × {size.cache // 1024} KiB of keys and values = {tokens * size.cache / GIB:.1f} GiB"


def _inputs(size: Size, stage: str, tokens: int) -> str:
    return f"{stage}: {tokens} tokens × {size.layer_inputs // 1024} KiB of layer inputs = {tokens * size.layer_inputs / GIB:.1f} GiB"


def _time(config: RunConfig, size: Size) -> Iterator[str]:
    stages, forward, is_kv = config.stages, 2 * size.decoder, config.model.interface == "kv"
    whole = PROMPT_TOKENS + THOUGHT_TOKENS
    if stages.contrastive.steps:
        tokens = stages.contrastive.batch_size * (2 + stages.contrastive.max_negatives) * PROMPT_TOKENS
        yield _computed("stage 1", stages.contrastive.steps, forward * tokens, 1 if is_kv else 3)
    if stages.cot_sft.steps:
        passes = 8 * whole if is_kv else 6 * (2 * whole + PROMPT_TOKENS)
        tokens = stages.cot_sft.batch_size * (passes + stages.cot_sft.max_negatives * PROMPT_TOKENS)
        yield _computed("stage 2", stages.cot_sft.steps, forward * tokens, 1)
    if stages.gate.steps:
        batches = 2 * -(-stages.gate.num_pairs // stages.gate.label_batch_size // NUM_GPUS)
        yield _written("stage 3 and its refit", batches, 2 * config.decoding.max_new_tokens, "batches of labels")
    if stages.grpo.steps:
        weights = size.parameters * 2
        gathered = weights * (NUM_GPUS - 1) / NUM_GPUS / GATHERED_A_SECOND if weights > MOST_WHOLE else 0.0
        yield _written("stage 4", stages.grpo.steps, stages.grpo.max_new_tokens, "steps", gathered=gathered)


def _computed(stage: str, steps: int, operations: float, passes: int) -> str:
    hours = steps * operations * passes / OPERATIONS_A_SECOND / 3600
    return f"{stage}: {steps} steps × {operations * passes:.2e} operations / {OPERATIONS_A_SECOND / 1e14:.1f}e14 a second = {hours:.1f} h"


def _written(stage: str, number: int, tokens: int, of: str, *, gathered: float = 0.0) -> str:
    seconds = SECONDS_A_TOKEN + round(gathered, 2)
    shown = f"({SECONDS_A_TOKEN} + {gathered:.2f} to gather the weights)" if gathered else f"{SECONDS_A_TOKEN}"
    return f"{stage}: {number} {of} × {tokens} tokens, one after another, × {shown} s = {number * tokens * seconds / 3600:.1f} h"


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
