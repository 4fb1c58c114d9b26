"""`twn index`: vectors of documents become a store that can be searched."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from twn_lightning.index.vector_index import VectorIndex


def index(  # noqa: PLR0917 - each is an option of the command line
    embeddings: Annotated[Path, typer.Argument(help="Folder that `twn embed` wrote.", show_default=False)],
    out: Annotated[Path, typer.Option("--out", help="Folder for the index.", show_default=False)],
    bundle: Annotated[Path | None, typer.Option(help="Where searches find the model; by default where it was when it embedded.")] = None,
    ann: Annotated[Literal["auto", "always", "never"], typer.Option(help="Search approximately: for many documents, always, never.")] = "auto",
    ann_from: Annotated[int, typer.Option(help="Documents from which on auto searches approximately.")] = 100_000,
    recall: Annotated[float, typer.Option(help="Share of the ten nearest documents that an approximate search is to find.")] = 0.95,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at vectors that cannot be searched, and at ids that occur twice.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an index that is there.")] = False,
) -> None:
    """Makes a searchable index of embedded documents.

    Up to 100,000 documents a search looks at every vector. With more, it looks into those clusters of vectors that are nearest to the query, as many
    of them as it takes to find 95 of 100 of the true ten nearest; how many it finds is measured and printed. Vectors that are not finite or not of
    length 1 are counted, named and left out. The documents' words and pictures are read from the files that were embedded, for showing them.

    Examples:
        twn index vectors --out index

        twn index vectors --out index --ann always --recall 0.99
    """
    from twn_lightning.index.build import BuildOptions
    from twn_lightning.index.vector_index import VectorIndex

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    options = BuildOptions(bundle=bundle, ann=ann, ann_from=ann_from, recall=recall, strict=strict, overwrite=overwrite)
    columns = (TextColumn("indexing"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("indexing", total=None)
        made = VectorIndex.build(embeddings, out, options=options, progress=lambda done, total: bar.update(task, completed=done, total=total))
    console.print(_report(made), markup=False)


def _report(made: VectorIndex) -> str:
    facts = made.facts
    lines = [f"{made.folder}: {len(made):,} documents, vectors of {made.dim} numbers."]
    if facts.ann is None:
        lines.append("  search      exact: every vector is looked at")
    else:
        ann = facts.ann
        lines.append(
            f"  search      approximate ({ann.kind}): {ann.probes:,} of {ann.partitions:,} clusters are looked into; recall@10 {ann.recall:.3f} on "
            f"{ann.sampled:,} documents"
        )
    lines += [f"  left out    {count:,} {'vector' if count == 1 else 'vectors'} {reason}" for reason, count in facts.left_out.items()]
    lines.append(f"  model       {facts.bundle or 'not named: search with --bundle FOLDER'}")
    return "\n".join(lines)
