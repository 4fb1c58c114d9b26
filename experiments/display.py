"""Progress bars and tables on the terminal; in a file or a pipe, a line now and then."""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from twn_lightning.evaluation.evaluate import MODES
from twn_lightning.evaluation.report import Report, ReportRow

log = logging.getLogger(__name__)

Advance = Callable[[int, int], None]


class ProgressLines:
    """What stands in for a bar where nobody watches: "title: 12/40, loss 0.31, 0:01:05", every so many seconds and at the end.

    Args:
        title: What is being done.
        seconds: Between two lines.
    """

    def __init__(self, title: str, *, seconds: float = 20.0) -> None:
        self.title, self.seconds = title, seconds
        self._started = self._said = time.monotonic()

    def advance(self, done: int, total: int, note: str = "") -> None:
        """Writes a line, if it is time to.

        Args:
            done: How much is done.
            total: Of how much; -1 if nobody knows.
            note: Goes between the counts and the time.
        """
        now = time.monotonic()
        if done != total and now - self._said < self.seconds:
            return
        self._said = now
        counts = f"{done}/{total}" if total >= 0 else str(done)
        elapsed = datetime.timedelta(seconds=round(now - self._started))
        log.info("%s: %s", self.title, ", ".join(part for part in (counts, note, str(elapsed)) if part))


def has_terminal() -> bool:
    """Whether standard error, where progress is shown, is a terminal."""
    return Console(stderr=True).is_terminal


@contextmanager
def progress(title: str, *, shown: bool = True) -> Iterator[Advance]:
    """A progress bar; the block gets a function of (done, total), where total -1 means that nobody knows.

    Args:
        title: What is being done.
        shown: False shows nothing.
    """
    if shown and not has_terminal():
        yield ProgressLines(title).advance
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, disable=not shown, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None)

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total if total >= 0 else None)

        yield advance


def report_table(report: Report, title: str, *, wide: bool = True) -> Table:
    """The report's tasks and groups as a table for the terminal.

    Args:
        report: What to show.
        title: Stands above it.
        wide: With each row's kind and metric: about 110 columns, without them 80.
    """
    caption = "Scores 0 to 100, ties against us. Think rate: of auto. Tokens/query: auto (always)."
    table = Table(title=title, title_justify="left", caption=caption, box=box.HEAVY_HEAD if wide else box.SIMPLE_HEAD)
    for heading in ("task", "kind", "metric") if wide else ("task",):
        table.add_column(heading, no_wrap=True)
    for heading in (*MODES, "think rate", "tokens/query") if wide else (*MODES, "think", "tokens"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in report.rows:
        table.add_row(row.label, *((row.kind, row.metric) if wide else ()), *_figures(row, wide))
    table.add_section()
    for group in report.groups():
        table.add_row(group.label, *(("", group.row.metric) if wide else ()), *_figures(group.row, wide), style="bold")
    return table


def has_room() -> bool:
    """Whether standard output has the columns of a wide table; a file always has."""
    console = Console()
    return not console.is_terminal or console.width >= 110


def show(renderable: Table | str) -> None:
    """Write a table or a line to standard output, at least 120 columns wide where that is no terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print(renderable)


def _figures(row: ReportRow, wide: bool) -> list[str]:
    scores = [f"{row.scores[mode]:.1f}" if mode in row.scores else "–" for mode in MODES]
    rate = f"{row.think_rate['auto']:.2f}" if "auto" in row.think_rate else "–"
    tokens = [f"{row.tokens_per_query[mode]:.{1 if wide else 0}f}" if mode in row.tokens_per_query else "–" for mode in ("auto", "always")]
    return [*scores, rate, f"{tokens[0]} ({tokens[1]})"]
