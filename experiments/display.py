"""Progress bars and tables on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from twn_lightning.evaluation.evaluate import MODES
from twn_lightning.evaluation.report import Report, ReportRow

Advance = Callable[[int, int], None]


@contextmanager
def progress(title: str, *, shown: bool = True) -> Iterator[Advance]:
    """A progress bar; the block gets a function of (done, total), where total -1 means that nobody knows.

    Args:
        title: What is being done.
        shown: False shows nothing.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not shown, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None)

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total if total >= 0 else None)

        yield advance


def report_table(report: Report, title: str) -> Table:
    """The report's tasks and groups as a table for the terminal."""
    table = Table(title=title, title_justify="left", caption="Scores 0 to 100, ties against us. Think rate: of auto. Tokens/query: auto (always).")
    for heading in ("task", "kind", "metric"):
        table.add_column(heading, no_wrap=True)
    for heading in (*MODES, "think rate", "tokens/query"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report.rows:
        table.add_row(row.name, row.kind, row.metric, *_figures(row))
    table.add_section()
    for group in report.groups():
        table.add_row(group.label, "", group.row.metric, *_figures(group.row), style="bold")
    return table


def show(renderable: Table | str) -> None:
    """Write a table or a line to standard output, at least 120 columns wide where that is no terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print(renderable)


def _figures(row: ReportRow) -> list[str]:
    scores = [f"{row.scores[mode]:.1f}" if mode in row.scores else "–" for mode in MODES]
    rate = f"{row.think_rate['auto']:.2f}" if "auto" in row.think_rate else "–"
    tokens = [f"{row.tokens_per_query[mode]:.1f}" if mode in row.tokens_per_query else "–" for mode in ("auto", "always")]
    return [*scores, rate, f"{tokens[0]} ({tokens[1]})"]
