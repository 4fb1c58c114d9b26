"""`twn search`: words, a picture or a clip in, documents out."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from twn_lightning.index.hits import Document
    from twn_lightning.index.searcher import Hit, Thinking

_WIDTH = 120


def search(  # noqa: PLR0913, PLR0917 - each is an option of the command line
    index: Annotated[Path, typer.Argument(help="Folder that `twn index` made.", show_default=False)],
    words: Annotated[str, typer.Argument(help="What to search with; may be left out if there is a picture or a clip.")] = "",
    image: Annotated[str | None, typer.Option(metavar="FILE", help="A picture to search with, or its address.")] = None,
    video: Annotated[str | None, typer.Option(metavar="FILE", help="A clip, a folder of its frames, or its address.")] = None,
    instruction: Annotated[str, typer.Option(help="What the search is for, as in training; default: the bundle's.")] = "",
    think: Annotated[Literal["auto", "always", "never"], typer.Option(help="Whether to reason first; auto: the gate decides.")] = "auto",
    budget: Annotated[float | None, typer.Option(help="Reasoning tokens a query that auto may spend on average.")] = None,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Documents wanted.")] = 10,
    exact: Annotated[bool, typer.Option("--exact", help="Look at every vector, even in an approximate index.")] = False,
    bundle: Annotated[Path | None, typer.Option(help="Folder of the model; by default the one that the index names.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Take a bundle that is not the one the index was made with.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …; default: a GPU if there is one.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The results as JSON.")] = False,
) -> None:
    """Finds the best documents for words, a picture, a clip, or several of them together.

    The model is the one that made the index; another one is refused, because scores across models mean nothing. Of equally good documents the first
    by id comes first, so that the same search gives the same answer.

    Examples:
        twn search index "a red bird"

        twn search index --image flag.png --instruction "Which capital?" --think always

        twn search index "seven" --top-k 3 --json
    """
    from twn_lightning.index.payload import ranking_payload, thinking_payload
    from twn_lightning.index.searcher import Query, Searcher

    query = Query(words, medium(image), medium(video), instruction)
    query.value()  # an empty one is refused before a model is loaded
    searcher = Searcher.open(index, bundle=bundle, device=device, force=force)
    ranking, thinking = searcher.search(query, top_k=top_k, think=think, budget=budget, exact=exact)
    if as_json:
        content = {"query": words, "thinking": thinking_payload(thinking), **ranking_payload(ranking)}
        sys.stdout.write(json.dumps(content, ensure_ascii=False) + "\n")
        return
    console = result_console()
    console.print(thinking_lines(thinking, think=think))
    console.print(_table(ranking.hits))
    console.print(f"{ranking.encode_ms:,.0f} ms for the vector, {ranking.search_ms:,.0f} ms for {len(searcher.index):,} documents", style="dim")


def medium(given: str | None) -> Path | str | None:
    """A file's path; an address as it is."""
    return Path(given) if given and "://" not in given else given


def result_console() -> Console:
    """Standard output, of a width that a table needs where it is no terminal."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_WIDTH)


def shown(document: Document) -> Text:
    """A document for a table: its words, or the name of its file."""
    return Text(document.text or document.path, style="" if document.text else "dim", overflow="ellipsis", no_wrap=True)


def thinking_lines(thinking: Thinking, *, think: str) -> Text:
    """Whether a query was thought about, why, and what was thought."""
    sign = "≥" if thinking.is_chosen else "<"
    why = {"auto": f"gate {thinking.probability:.4f} {sign} threshold {thinking.threshold:.4f}"}.get(think, f"think is {think}")
    if not thinking.thinks:
        return Text(f"Did not think ({why}).")
    return Text.assemble(f"Thought for {thinking.num_reasoning_tokens} tokens ({why}):\n", (f"  {thinking.thought or '(nothing)'}", "italic cyan"))


def _table(hits: Iterable[Hit]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("rank", justify="right")
    table.add_column("score", justify="right")
    table.add_column("id", overflow="fold", max_width=48)
    table.add_column("text or file", ratio=1)
    for hit in hits:
        table.add_row(str(hit.rank), f"{hit.score:.4f}", Text(hit.document.id), shown(hit.document))
    return table
