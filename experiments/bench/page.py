"""The benchmark's record as a page: limits first, then the parts. The same record gives the same bytes. Loads without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.bench.cases import Result
from experiments.bench.limits import SLOPES, TITLES, Verdict, grows_by, growth, spread, verdicts
from experiments.bench.timing import Spread, ratios
from experiments.results_page.words import cell, number, percent, signed, table

HEADINGS = {
    "modes": "Think modes",
    "generate": "Against generating, then encoding anew",
    "never": "Not thinking, against the bare backbone",
    "stage1": "A step of stage 1",
    "rollouts": "Thoughts of stage 4",
    "ranking": "Ranking",
    "scaling": "How it grows",
}
REFERENCES = {"modes": "always", "generate": "generate", "never": "bare", "stage1": "plain", "rollouts": "separate", "ranking": "bare"}
"""Part → the variant whose time the others are divided by in its table."""
_EXPLAINED = {
    "modes": "`Encoder.encode` on queries and candidates of MMEB-mini's test tasks, each once, pictures opened and drawn before. Quality: mean over "
    "the tasks, all queries and candidates encoded in that mode, 0 to 100; its difference to always with the 95 % interval over queries. *auto, "
    "nearly always' quality*: the gate's threshold that costs least within half a point of always on the validation tasks. With random weights the "
    "threshold is the one at which 35 % of the inputs think. *Without any loss*: never, and the tokens that auto writes at always' price of a token.",
    "generate": "The rival thinks about every input with `generate` of transformers: adapter merged into the weights, KV cache, batches of the same "
    "size sorted by length and padded left, prompts made ahead in a thread, greedy. Then prompt and thought are read anew and the last token is the "
    "vector, as UME-R1 does it. Thoughts are compared as words. *Without any loss*: as above.",
    "never": '`Encoder.encode(think="never")`, tokenizer, queries and gate included, against one forward pass of the backbone without adapters, '
    "queries or output layer over the same tokens, which are ready.",
    "stage1": "Forward, backward and optimiser. Stage 1 reads prompts without an autograd graph, and K queries with one. Plain LoRA has a graph "
    "over the whole sequence and takes its last token. Memory: most MiB that autograd keeps at any time for the backward pass, weights left out.",
    "rollouts": "G sampled thoughts of each prompt. Reading: until the cache is there for every thought, copies included. With thoughts: until they "
    "are written.",
    "ranking": "Float32. The bare work is one product of the matrices and a list of the best 100 of each row. `rank_task` also resolves ties, "
    "computes the metrics of MMEB-V2 and names the candidates.",
    "scaling": "Least squares in logarithms on the median times: exponent 1 is twice the time for twice as much. Small sizes pay what every call "
    "costs, so that exponents lie below 1 where that counts.",
}


def make_page(record: Mapping[str, Any], *, picture: str) -> str:
    """Markdown.

    Args:
        record: See `make_record`.
        picture: File name of the scaling's picture, beside the page.
    """
    results = [Result.from_json(row) for row in record["results"]]
    found = verdicts(results)
    held = sum(verdict.holds for verdict in found)
    lines = [
        f"<!-- Written by `python -m experiments.bench` from {record['name']}.json; changes by hand are lost. -->",
        "",
        "# What it costs",
        "",
        "Everything is measured in turn on the same weights and inputs (A B B A …), after a run that is not counted. Ratios are medians over pairs "
        "of neighbouring runs, with their 10th and 90th percentile in brackets; times are medians likewise.",
        "",
        *_provenance(record),
        "",
        f"## Limits: {held} of {len(found)} hold",
        "",
        "The limits are aims of this project (`experiments/bench/limits.py`).",
        "",
        *table(("what", "on", "measured", "limit", "holds"), (_verdict_row(verdict) for verdict in found), left=2),
    ]
    for part, heading in HEADINGS.items():
        of_part = [result for result in results if result.part == part]
        if of_part:
            lines += ["", f"## {heading}", "", _EXPLAINED[part]]
            lines += _scaling(of_part, picture) if part == "scaling" else [line for result in of_part for line in ("", *_section(result))]
    return "\n".join([*lines, ""])


def _provenance(record: Mapping[str, Any]) -> list[str]:
    threads = f"{record['threads']} {'thread' if record['threads'] == 1 else 'threads'}"
    notes = [
        f"Made on {record['made']} at commit {record['commit']}" + (", in a hurry (`--quick`): few runs, small sizes." if record["quick"] else "."),
        f"Device: {record['device']}; {threads} of torch; {record['dtype']}.",
        ", ".join(f"{name} {version}" for name, version in record["versions"].items()) + ".",
        f"Bundle: {record['bundle']}. Seed of inputs and random weights: {record['seed']}.",
        f"Data: {record['data']}.",
        "Backbones: " + "; ".join(record["backbones"]) + ".",
    ]
    return [f"* {note}" for note in notes]


def _verdict_row(verdict: Verdict) -> tuple[str, ...]:
    return cell(verdict.what), cell(verdict.setting), verdict.value, verdict.limit, "yes" if verdict.holds else "**no**"


def _section(result: Result) -> list[str]:
    reference, titles = REFERENCES[result.part], TITLES[result.part]
    unit = {"stage1": "pairs a second", "rollouts": "thoughts a second", "ranking": "queries a second"}.get(result.part, "inputs a second")
    extra = _extra_columns(result)
    rows = []
    for name, seconds in result.seconds.items():
        times = Spread.of([1000.0 * value for value in seconds])
        relative = "1" if name == reference else spread(Spread.of(ratios(seconds, result.seconds[reference])))
        rate = result.per_second(name)
        cells = (titles[name], spread(times, 0 if times.median >= 100 else 1), f"{rate:,.0f}" if rate >= 100 else number(rate, 2), relative)
        rows.append((*cells, *(column[name] for column in extra.values())))
    head = ("", "ms", unit, f"time / {titles[reference]}", *extra)
    return [f"**{cell(result.setting)}**", "", *table(head, rows), *_no_loss(result)]


def _extra_columns(result: Result) -> dict[str, dict[str, str]]:
    """Columns of what was measured besides time, for each variant."""
    numbers = result.numbers

    def column(key: str, words: dict[str, str]) -> dict[str, str]:
        return {name: words.get(name, "–") for name in result.seconds} if words else {}

    def of(key: str) -> dict[str, float]:
        return {name: numbers[f"{key}.{name}"] for name in result.seconds if f"{key}.{name}" in numbers}

    columns = {
        "think rate": {name: percent(value) for name, value in of("think_rate").items()},
        "tokens an input": {name: number(value) for name, value in of("tokens").items()},
        "quality": {name: number(value) for name, value in of("quality").items()},
        "quality − always": {name: _gap(result, name) for name in of("gap")},
        "MiB kept": {name: number(value) for name, value in of("mib").items()},
        "MiB / plain LoRA": {name: number(value / numbers["mib.plain"], 2) for name, value in of("mib").items()},
    }
    return {heading: column(heading, words) for heading, words in columns.items() if words}


def _gap(result: Result, name: str) -> str:
    gap, low, high = (result.numbers[f"{key}.{name}"] for key in ("gap", "gap_low", "gap_high"))
    return f"{signed(gap)} [{number(low)}, {number(high)}]"


def _no_loss(result: Result) -> list[str]:
    """How far auto is from what it could be at its share of always' tokens."""
    reference = {"modes": "always", "generate": "generate"}.get(result.part)
    if reference is None or not result.numbers["tokens.always"]:
        return []
    share = result.numbers["tokens.auto"] / result.numbers["tokens.always"]
    best = [never + share * (always - never) for never, always in zip(result.seconds["never"], result.seconds["always"], strict=True)]
    possible = spread(Spread.of(ratios(result.seconds[reference], best)))
    return ["", f"Auto writes {percent(share)} of always' tokens; without any loss {TITLES[result.part][reference]} / auto would be {possible}."]


def _scaling(results: Sequence[Result], picture: str) -> list[str]:
    lines = ["", f"![How times grow]({picture})"]
    for axis in SLOPES:
        found = [result for result in results if grows_by(result) == axis]
        sizes = sorted({float(name) for result in found for name in result.seconds})
        rows = []
        for result in found:
            times = {float(name): Spread.of([1000.0 * value for value in values]) for name, values in result.seconds.items()}
            cells = [spread(times[size], 0 if times[size].median >= 100 else 1) if size in times else "" for size in sizes]
            rows.append((cell(result.setting), *cells, number(growth(result), 2)))
        if found:
            lines += ["", *table((f"ms by {axis}", *(f"{size:,.0f}" for size in sizes), "exponent"), rows)]
    return lines
