"""A bar over inputs on standard error."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def progress_bar(num_inputs: int, *, shown: bool | None, batch_size: int) -> Iterator[Callable[[int], None]]:
    """Gives what is to be told of inputs that are done.

    Args:
        num_inputs: All.
        shown: None shows the bar on a terminal, for more than a batch.
        batch_size: Inputs of a batch.
    """
    if not (shown if shown is not None else num_inputs > batch_size and sys.stderr.isatty()):
        yield lambda done: None
        return
    columns = (TextColumn("encoding"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("encoding", total=num_inputs)
        yield lambda done: bar.advance(task, done)
