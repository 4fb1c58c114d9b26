"""`twn info`: what is in a bundle, and what is wrong with it."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from twn_lightning.command_line.search import result_console
from twn_lightning.errors import CheckpointError, TwnError

if TYPE_CHECKING:
    from torch import Tensor

Facts: TypeAlias = dict[str, Any]
T = TypeVar("T")

CONFIG = "twn_config.json"
_CURVE_ROWS, _BAR = 10, 24


def info(
    bundle: Annotated[Path, typer.Argument(help="Folder that training left.", show_default=False)],
    as_json: Annotated[bool, typer.Option("--json", help="Everything as JSON, with the whole curve.")] = False,
) -> None:
    """Says what a bundle is made of: its parameters, adapters, queries and gate, what thinking costs and brings, how it was made.

    A broken or foreign bundle is described as far as its files tell; what is wrong with it is named, and the exit code is 1.

    Examples:
        twn info runs/mini/5_gate_refit/bundle

        twn info bundle --json | jq .gate.threshold
    """
    facts = describe(bundle)
    if as_json:
        sys.stdout.write(json.dumps(facts, ensure_ascii=False) + "\n")
    else:
        _print(result_console(), facts)
    if facts["problems"]:
        raise typer.Exit(1)


def describe(bundle: Path) -> Facts:
    """What is known of a bundle, as plain values; "problems" names what is wrong with it, in words.

    Raises:
        CheckpointError: There is no such folder, or it is an index.
    """
    from twn_lightning.bundle_files import read_gate, read_queries, read_spec

    if not bundle.is_dir():
        raise CheckpointError(f"There is no bundle at {bundle}: name the folder that training left.")
    if (bundle / "index.json").is_file():
        raise CheckpointError(f"{bundle} is an index, not a bundle: `twn search {bundle} WORDS` searches it; its index.json names its bundle.")
    problems: list[str] = []
    config = _tried(problems, lambda: _config(bundle)) or {}
    reasoning, embedding = (_tried(problems, partial(read_spec, bundle / name)) for name in ("reasoning", "embedding"))
    queries = _tried(problems, lambda: read_queries(bundle / "queries.pt"))
    gate = _tried(problems, lambda: read_gate(bundle / "gate_mlp.pt"))
    parameters = None if problems else _tried(problems, lambda: _parameters(bundle))
    backbone, about_gate = config.get("backbone", {}), config.get("gate", {})
    return {
        "bundle": str(bundle),
        "problems": problems,
        "backbone": {key: backbone.get(key) for key in ("path", "dtype", "attn_implementation")},
        "interface": config.get("interface"),
        "detach": config.get("detach"),
        "adapters": config.get("adapters", "dual"),
        "reasoning": reasoning and dataclasses.asdict(reasoning),
        "embedding": embedding and dataclasses.asdict(embedding),
        "queries": None if queries is None else {"number": queries.shape[0], "width": queries.shape[1]},
        "gate": _gate_facts(gate, about_gate),
        "parameters": parameters,
        "prompts": config.get("processor", {}),
        "provenance": config.get("provenance", {}),
        "twn_lightning": config.get("twn_lightning"),
    }


def _tried(problems: list[str], read: Callable[[], T]) -> T | None:
    try:
        return read()
    except TwnError as error:
        problems.append(str(error))
        return None


def _config(bundle: Path) -> Facts:
    path = bundle / CONFIG
    if not path.is_file():
        raise CheckpointError(
            f"{bundle} has no {CONFIG}, so that backbone, interface, threshold and prompts are not known: in Python, "
            "Encoder.from_pretrained(bundle, fallback=BundleDefaults(…)) says them."
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} is not JSON ({error}): write the bundle again.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds no settings: it is no bundle of ours.")
    return config


def _parameters(bundle: Path) -> Facts:
    from twn_lightning.checkpoints import load_bundle

    return dict(load_bundle(bundle).parameter_report())


def _gate_facts(gate: Mapping[str, Tensor] | None, about: Mapping[str, Any]) -> Facts | None:
    if gate is None:
        return None
    hidden, width = gate["0.weight"].shape
    return {"width": width, "hidden_size": hidden, "reads": about.get("reads"), "threshold": about.get("threshold"), "curve": about.get("curve", [])}


def _print(console: Console, facts: Facts) -> None:
    console.print(Text(facts["bundle"], style="bold"))
    for problem in facts["problems"]:
        console.print(Text.assemble(("Problem: ", "bold red"), (problem, "red")), soft_wrap=True)
    for name, words in _lines(facts):
        console.print(Text.assemble((f"{name:<12}", "bold"), words), soft_wrap=True)
    if facts["parameters"] is not None:
        console.print(_parameter_table(facts["parameters"]))
    if facts["gate"] and facts["gate"]["curve"]:
        console.print(_curve_table(facts["gate"]["curve"], facts["gate"]["threshold"]))
    for title, values in (("Prompts", facts["prompts"]), ("Made by", facts["provenance"])):
        if values:
            console.print(Text(f"\n{title}", style="bold"))
            console.print(Text("\n".join(f"  {key:<24}{value}" for key, value in _short(values).items())), soft_wrap=True)


def _short(values: Mapping[str, object]) -> Facts:
    """Without what is empty, and with one line for the digests of all data sets."""
    digests = [key for key in values if key.startswith("data.")]
    shown = {key: value for key, value in values.items() if value not in (None, "") and key not in digests}
    return shown | ({"data": f"digests of {len(digests)} data sets (--json lists them)"} if digests else {})


def _lines(facts: Facts) -> list[tuple[str, str]]:
    backbone, queries, gate = facts["backbone"], facts["queries"], facts["gate"]
    lines = [("backbone", f"{backbone['path']} ({backbone['dtype']}, {backbone['attn_implementation']})")] if backbone["path"] else []
    if facts["interface"]:
        detached = {True: "gradients stop between them", False: "gradients flow between them"}[bool(facts["detach"])]
        lines.append(("interface", f"{facts['interface']}; {facts['adapters']} adapters, {detached}"))
    for name in ("reasoning", "embedding"):
        spec = facts[name]
        if spec is not None:
            lines.append((name, f"LoRA of rank {spec['rank']}, alpha {spec['alpha']}, on {', '.join(spec['target_modules'])}"))
    if queries is not None:
        lines.append(("queries", f"{queries['number']} of width {queries['width']}" if queries["number"] else "none: the last token is the vector"))
    if gate is not None:
        reads = {"embedding": "the vector's state", "prompt": "the prompt's words", "both": "the vector's state and the prompt's words"}
        known = f", thinks from {gate['threshold']:.4g} on" if gate["threshold"] is not None else ""
        lines.append(("gate", f"reads {reads.get(gate['reads'], 'what is not said')} ({gate['width']} → {gate['hidden_size']} → 1){known}"))
    return lines


def _parameter_table(parameters: Mapping[str, float]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", title="\nParameters", title_justify="left", title_style="bold")
    for heading in ("part", "number", "of the backbone"):
        table.add_column(heading, justify="left" if heading == "part" else "right")
    for part in ("backbone", "reasoning", "embedding", "queries", "gate", "added"):
        table.add_row(part, f"{parameters[part]:,.0f}", f"{parameters[part] / parameters['backbone']:.2%}")
    return table


def _curve_table(curve: Sequence[Mapping[str, float]], threshold: float) -> Table:
    """Quality against reasoning tokens, some ten points of the curve, the bundle's own among them."""
    title = "\nWhat thinking costs and brings, on the tasks of validation"
    table = Table(box=None, pad_edge=False, header_style="bold", title=title, title_justify="left", title_style="bold")
    for heading in ("tokens a query", "a document", "think rate", "threshold", "quality"):
        table.add_column(heading, justify="right")
    table.add_column("")
    low, high = (pick(point["quality"] for point in curve) for pick in (min, max))
    for point in _points(curve, threshold):
        is_own = point["threshold"] == threshold
        bar = "█" * round(1 + (_BAR - 1) * (point["quality"] - low) / ((high - low) or 1.0))
        numbers = (point.get("query_tokens"), point.get("candidate_tokens"))
        tokens = ("–" if number is None else f"{number:.2f}" for number in numbers)
        rate = f"{point['think_rate']:.0%}" if "think_rate" in point else "–"
        mark = Text.assemble((bar, "cyan" if is_own else "dim"), " ◀ threshold" if is_own else "")
        table.add_row(*tokens, rate, f"{point['threshold']:.4g}", f"{point['quality']:.2f}", mark, style="bold" if is_own else "")
    return table


def _points(curve: Sequence[Mapping[str, float]], threshold: float) -> list[Mapping[str, float]]:
    ordered = sorted(curve, key=lambda point: -point["threshold"])
    step = max(1.0, (len(ordered) - 1) / (_CURVE_ROWS - 1))
    chosen = {round(number * step) for number in range(_CURVE_ROWS) if round(number * step) < len(ordered)}
    chosen |= {number for number, point in enumerate(ordered) if point["threshold"] == threshold}
    return [ordered[number] for number in sorted(chosen)]
