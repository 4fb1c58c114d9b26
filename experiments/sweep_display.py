"""How a sweep shows where it is: a live table on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from experiments.display import has_terminal
from experiments.scheduler import LOG, Job

log = logging.getLogger(__name__)

LINE_SECONDS = 60.0


class LineDisplay:
    """A line as a run begins or ends, and one a minute."""

    def __init__(self) -> None:
        self._said = time.monotonic()

    def started(self, job: Job) -> None:
        """Says which run begins."""
        log.info("%s: begins with %s (%s)", job.name, job.state(), job.folder.path / LOG)

    def ended(self, job: Job, failure: str) -> None:
        """Says how it ended."""
        log.info("%s: %s", job.name, f"failed: {failure}" if failure else "finished")

    def refresh(self, running: Sequence[Job], num_done: int, num_jobs: int, seconds_left: float | None) -> None:
        """Says where the running ones are, if it is time to."""
        if running and time.monotonic() - self._said >= LINE_SECONDS:
            self._said = time.monotonic()
            places = "; ".join(f"{job.name} at {job.state()}" for job in running)
            log.info("%s; %s", heading(num_done, num_jobs, seconds_left), places)


class LiveDisplay(LineDisplay):
    """A table of the running runs that stays at the foot of the terminal.

    Args:
        live: Draws it.
    """

    def __init__(self, live: Live) -> None:
        super().__init__()
        self._live = live

    def refresh(self, running: Sequence[Job], num_done: int, num_jobs: int, seconds_left: float | None) -> None:
        """Redraws it."""
        self._live.update(running_table(running, num_done, num_jobs, seconds_left))


def running_table(running: Sequence[Job], num_done: int, num_jobs: int, seconds_left: float | None) -> Group:
    """The sweep's state: a heading, and for each running run its step and the last line of its log."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, overflow="ellipsis", style="dim")
    for job in running:
        table.add_row(job.name, job.state(), Text(job.last_line()))
    return Group(Text(heading(num_done, num_jobs, seconds_left)), table)


def heading(num_done: int, num_jobs: int, seconds_left: float | None) -> str:
    """Such as: sweep: 3 of 12 runs done, about 1:20:00 left."""
    left = "" if seconds_left is None else f", about {datetime.timedelta(seconds=round(seconds_left))} left"
    return f"sweep: {num_done} of {num_jobs} runs done{left}"


@contextmanager
def sweep_display() -> Iterator[LineDisplay]:
    """What fits standard error."""
    if not has_terminal():
        yield LineDisplay()
        return
    with Live(console=Console(stderr=True), refresh_per_second=2, transient=True) as live:
        yield LiveDisplay(live)
