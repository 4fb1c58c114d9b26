"""`twn explain`: why a query was thought about, and what that changed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from twn_lightning.command_line.search import medium, result_console

if TYPE_CHECKING:
    from twn_lightning.index.explanation import CurvePlace, Gains
    from twn_lightning.index.searcher import Comparison, Hit


def explain(  # noqa: PLR0913, PLR0917 - each is an option of the command line
    index: Annotated[Path, typer.Argument(help="Folder that `twn index` made.", show_default=False)],
    words: Annotated[str, typer.Argument(help="What to search with; may be left out if there is a picture or a clip.")] = "",
    image: Annotated[str | None, typer.Option(metavar="FILE", help="A picture to search with, or its address.")] = None,
    video: Annotated[str | None, typer.Option(metavar="FILE", help="A clip, a folder of its frames, or its address.")] = None,
    instruction: Annotated[str, typer.Option(help="What the search is for, as in training; default: the bundle's.")] = "",
    relevant: Annotated[list[str] | None, typer.Option(metavar="ID", help="A document that should be found; may be given several times.")] = None,
    temperature: Annotated[
        float, typer.Option(help="Divides the scores in the gain: the run's stages.gate.temperature, 0.02 by default and 0.07 in mini.")
    ] = 0.02,
    budget: Annotated[float | None, typer.Option(help="Reasoning tokens a query on average: the gate's threshold for it.")] = None,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Documents to show.")] = 10,
    bundle: Annotated[Path | None, typer.Option(help="Folder of the model; by default the one that the index names.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Take a bundle that is not the one the index was made with.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …; default: a GPU if there is one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Everything as JSON.")] = False,
) -> None:
    """Shows why the gate has a query thought about or not, the thought, and the results without and with it.

    With --relevant it says what the thought was worth: the gain u_gen - u_disc in nats, where u is the log-softmax of the relevant document's score
    among the documents of the index (of more than 100,000, among the best 1,000 without and with thinking). Above 0 thinking helped; the gate was
    trained to foresee it.

    Examples:
        twn explain index "Nairobi" --instruction "Profile of the country with capital"

        twn explain index --image flag.png --relevant capitals/nairobi.txt
    """
    from twn_lightning.index.explanation import gains, place_on_curve
    from twn_lightning.index.payload import explanation_payload
    from twn_lightning.index.searcher import Query, Searcher

    query = Query(words, medium(image), medium(video), instruction)
    query.value()  # an empty one is refused before a model is loaded
    searcher = Searcher.open(index, bundle=bundle, device=device, force=force)
    documents = searcher.index.documents(relevant or [])
    comparison = searcher.compare(query, top_k=top_k, budget=budget)
    worth = gains(searcher.index, comparison, [one.id for one in documents], temperature=temperature) if documents else None
    curve, thinking = searcher.encoder.model.gate.curve, comparison.thinking
    gate, own = (place_on_curve(curve, value) for value in (thinking.threshold, thinking.probability))
    if as_json:
        content = {"query": words, **explanation_payload(comparison, gate, own, worth)}
        sys.stdout.write(json.dumps(content, ensure_ascii=False) + "\n")
        return
    console = result_console()
    _print_gate(console, comparison, gate, own)
    console.print(_side_by_side(comparison))
    if worth is not None:
        console.print(_worth(worth))


def _print_gate(console: Console, comparison: Comparison, gate: CurvePlace | None, own: CurvePlace | None) -> None:
    thinking = comparison.thinking
    verdict = "≥ threshold {:.4f}: thinks" if thinking.is_chosen else "< threshold {:.4f}: does not think"
    console.print(Text.assemble(("Gate     ", "bold"), f"{thinking.probability:.4f} ", verdict.format(thinking.threshold)))
    if gate is not None and own is not None:
        console.print(f"         At this threshold, on the tasks of validation: {_place(gate)}.")
        wakes = f"thinks from a budget of about {own.query_tokens:.2f} tokens a query on" if own.query_tokens else "thinks at any budget"
        console.print(f"         This query {wakes} (there: {_place(own)}).")
    else:
        console.print("         The gate has no curve: what other thresholds cost is not known.")
    console.print(
        Text.assemble(("Thought  ", "bold"), (thinking.thought or "(nothing)", "italic cyan"), f"  ({thinking.num_reasoning_tokens} tokens)")
    )
    without, after = comparison.without, comparison.after
    console.print(Text.assemble(("Vector   ", "bold"), f"cosine {comparison.cosine:.4f} between without and with the thought"))
    console.print(Text.assemble(("Time     ", "bold"), f"{without.encode_ms:,.0f} ms without, {after.encode_ms:,.0f} ms with thinking\n"))


def _place(place: CurvePlace) -> str:
    return f"quality {place.quality:.1f}, {place.query_tokens:.2f} tokens a query, {place.think_rate:.0%} of inputs think"


def _side_by_side(comparison: Comparison) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("rank", justify="right")
    for heading in ("without thinking", "with thinking"):
        table.add_column("score", justify="right")
        table.add_column(heading, ratio=1)
    table.add_column("moved", justify="right")
    for rank, (before, after) in enumerate(zip_longest(comparison.without.hits, comparison.after.hits), 1):
        table.add_row(str(rank), *_cells(before), *_cells(after), _moved(after))
    return table


def _cells(hit: Hit | None) -> Iterable[Text]:
    if hit is None:
        return Text(), Text()
    about = f"  {hit.document.text}" if hit.document.text else ""
    return Text(f"{hit.score:.4f}"), Text.assemble(hit.document.id, (about, "dim"), overflow="ellipsis", no_wrap=True)


def _moved(hit: Hit | None) -> Text:
    if hit is None or hit.previous_rank == hit.rank:
        return Text("=", style="dim")
    if hit.previous_rank is None:
        return Text("new", style="green")
    up = hit.previous_rank - hit.rank
    return Text(f"▲ {up}", style="green") if up > 0 else Text(f"▼ {-up}", style="red")


def _worth(worth: Gains) -> Table:
    among = f"all {worth.num_documents:,} documents" if worth.are_all else f"the best {worth.num_documents:,} documents without and with thinking"
    table = Table(
        box=None,
        pad_edge=False,
        header_style="bold",
        title=f"\nWhat thinking was worth, over {among} at temperature {worth.temperature:g}",
        title_justify="left",
        title_style="bold",
    )
    for heading in ("gain in nats", "rank without", "with", "score without", "with"):
        table.add_column(heading, justify="right")
    table.add_column("relevant document", ratio=1)
    for gain in worth.gains:
        ranks = ("beyond" if rank is None else f"{rank:,}" for rank in (gain.rank_before, gain.rank_after))
        style = "green" if gain.nats > 0 else "red"
        table.add_row(Text(f"{gain.nats:+.3f}", style=style), *ranks, f"{gain.score_before:.4f}", f"{gain.score_after:.4f}", Text(gain.id))
    return table
