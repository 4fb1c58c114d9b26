"""`twn embed`: a corpus in files in, parts of vectors out."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from twn_lightning.errors import ConfigError

if TYPE_CHECKING:
    from twn_lightning.corpus.embed import Outcome

Side: TypeAlias = Literal["document", "query"]
Think: TypeAlias = Literal["auto", "always", "never"]

_SECONDS_A_LINE = 30.0
_COLUMNS, _HOW, _OUTPUT, _WORK = "Columns of tables", "How", "Output", "Work"


def embed(  # noqa: PLR0913, PLR0917 - each is an option of the command line
    bundle: Annotated[str, typer.Argument(help="Folder that training left.", show_default=False)],
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="INPUT...", help="CSV, TSV, JSON Lines or Parquet files, a folder, or a quoted pattern.", show_default=False),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the vectors; an unfinished one is gone on with.", show_default=False)],
    id_column: Annotated[str | None, typer.Option("--id", metavar="COLUMN", help="Names the rows.", rich_help_panel=_COLUMNS)] = None,
    text: Annotated[str | None, typer.Option(metavar="COLUMN", help="Words.", rich_help_panel=_COLUMNS)] = None,
    image: Annotated[str | None, typer.Option(metavar="COLUMN", help="Paths, addresses or bytes of pictures.", rich_help_panel=_COLUMNS)] = None,
    video: Annotated[str | None, typer.Option(metavar="COLUMN", help="Paths or addresses of clips.", rich_help_panel=_COLUMNS)] = None,
    side: Annotated[Side, typer.Option(help="Whether the rows are searched, or searched with.", rich_help_panel=_HOW)] = "document",
    think: Annotated[Think, typer.Option(help="Whether to reason first; auto: the gate decides.", rich_help_panel=_HOW)] = "auto",
    budget: Annotated[float | None, typer.Option(help="Reasoning tokens a row that auto may spend on average.", rich_help_panel=_HOW)] = None,
    instruction: Annotated[str | None, typer.Option(help="Of rows without their own; default: the bundle's.", rich_help_panel=_HOW)] = None,
    output: Annotated[
        Literal["parquet", "npy"], typer.Option("--format", help="npy adds vectors.npy and ids.parquet at the end.", rich_help_panel=_OUTPUT)
    ] = "parquet",
    dtype: Annotated[Literal["float32", "float16"], typer.Option(help="Of stored vectors.", rich_help_panel=_OUTPUT)] = "float32",
    part_rows: Annotated[int, typer.Option(help="Rows of a part: what is lost if the run is killed.", rich_help_panel=_OUTPUT)] = 2048,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first row that cannot be embedded.", rich_help_panel=_OUTPUT)] = False,
    retry_errors: Annotated[
        bool,
        typer.Option("--retry-errors", help="Make parts with rows that could not be embedded again: a server was down.", rich_help_panel=_OUTPUT),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The summary as JSON.", rich_help_panel=_OUTPUT)] = False,
    batch_size: Annotated[str, typer.Option(help="Rows that run together, or auto.", rich_help_panel=_WORK)] = "auto",
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …; default: a GPU if there is one.", rich_help_panel=_WORK)] = None,
    shard: Annotated[str, typer.Option(metavar="I/N", help="Make only every N-th part, from part I on.", rich_help_panel=_WORK)] = "0/1",
    ray: Annotated[int, typer.Option(metavar="WORKERS", help="Share the parts out among so many workers of Ray.", rich_help_panel=_WORK)] = 0,
) -> None:
    """Embeds texts, pictures and clips, of whatever number, into a folder of vectors.

    A table's columns id, text, image, video and instruction are read, or those you choose; without ids, rows are named by number, from 0. Of a
    folder, every picture, clip and .txt file below it is embedded, and its path is its id.

    OUT gets part-00000.parquet … in the input's order (id, vector, what was thought), part-00000.errors.jsonl with the rows that could not be
    embedded, and embedding.json, which says what the vectors were made of. **Run the same command again to go on** after Ctrl-C or a crash: at
    most the part in work is lost. The same command on several GPUs or machines at once, with one OUT, shares the work. Rows that failed stay out
    until you add `--retry-errors`, which makes their parts again.

    A table, a folder, and a quarter of many files:

        twn embed BUNDLE products.parquet --text title --out vectors

        twn embed BUNDLE photos/ --out vectors --format npy --think never

        twn embed BUNDLE 'crawl/*.jsonl' --out vectors --shard 0/4
    """
    number_of_shard = _shard(shard)
    if ray and number_of_shard != (0, 1):
        raise ConfigError(f"--ray {ray} and --shard {shard}: Ray shares all parts out by itself; leave one of them out.")
    rows = _rows_together(batch_size)
    from twn_lightning.corpus.embed import embed_corpus
    from twn_lightning.corpus.plan import EmbedSettings
    from twn_lightning.corpus.rows import Columns
    from twn_lightning.corpus.sources import open_inputs

    settings = EmbedSettings(
        side, think, budget, instruction, batch_size=rows, part_rows=part_rows, dtype=dtype, strict=strict, retry_errors=retry_errors
    )
    source = open_inputs(inputs, Columns(id=id_column, text=text, image=image, video=video), without=out)
    try:
        with _watched() as progress:
            if ray:
                from twn_lightning.integrations.ray_data import embed_with_ray

                outcome = embed_with_ray(bundle, source, out, num_workers=ray, settings=settings, output=output, device=device, progress=progress)
            else:
                from twn_lightning.encoder import Encoder

                encoder = Encoder.from_pretrained(bundle, device=device)
                outcome = embed_corpus(encoder, source, out, settings=settings, shard=number_of_shard, output=output, progress=progress)
    except KeyboardInterrupt:
        said = f"Stopped. The parts that are done stay in {out}: run the same command again to go on."
        Console(stderr=True).print(said, markup=False, highlight=False, soft_wrap=True)
        raise
    if as_json:
        sys.stdout.write(json.dumps(_summary(outcome, out), ensure_ascii=False) + "\n")
    else:
        Console(stderr=True, highlight=False).print(_report(outcome, out), markup=False, soft_wrap=True)


def _shard(value: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", value)
    if found is None or int(found[1]) >= int(found[2]):
        raise ConfigError(f"--shard is {value!r}: write I/N with I from 0 to N - 1; 0/4, 1/4, 2/4 and 3/4 together make everything.")
    return int(found[1]), int(found[2])


def _rows_together(value: str) -> int | Literal["auto"]:
    if value != "auto" and not (value.isdecimal() and int(value)):
        raise ConfigError(f"--batch-size is {value!r}: choose a number of at least 1, or auto.")
    return "auto" if value == "auto" else int(value)


class _Speed(ProgressColumn):
    """Rows a second, and how many are left."""

    def render(self, task: Task) -> Text:
        """See `ProgressColumn`."""
        left = "" if task.total is None else f"{int(task.remaining or 0):,} left"
        return Text(f"{task.speed:,.1f} rows/s, {left}" if task.speed else left, style="progress.data.speed")


@contextlib.contextmanager
def _watched() -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, or a line now and then where nobody watches."""
    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield _Lines(console).tell
        return
    columns = (TextColumn("embedding"), BarColumn(), MofNCompleteColumn(), _Speed(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, speed_estimate_period=300.0) as bar:
        task = bar.add_task("embedding", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class _Lines:
    """What stands in for a bar in a file or a pipe."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._first: tuple[float, int] | None = None
        self._said = 0.0

    def tell(self, done: int, total: int) -> None:
        """Writes a line if it is time to."""
        now = time.monotonic()
        self._first = self._first or (now, done)
        if done == total or now - self._said >= _SECONDS_A_LINE:
            started, before = self._first
            speed = f", {(done - before) / (now - started):,.1f} rows/s" if done > before else ""
            self._console.print(f"embedding: {done:,} of {total:,} rows{speed}, {total - done:,} left", soft_wrap=True)
            self._said = now


def _summary(outcome: Outcome, out: Path) -> dict[str, object]:
    """What a program may want to know."""
    made = outcome.made
    rate = round((made.num_rows + made.num_errors) / outcome.seconds, 2) if outcome.seconds else 0.0
    this_run = {**vars(made), "seconds": outcome.seconds, "rows_per_second": rate, "parts_kept": outcome.num_kept, "parts_busy": outcome.num_busy}
    known = {key: value for key, value in outcome.manifest.items() if key not in ("made_of", "format")}
    return {"folder": str(out), **known, "this_run": this_run}


def _report(outcome: Outcome, out: Path) -> str:
    """The same for people, a line each."""
    manifest, made, counts = outcome.manifest, outcome.made, outcome.manifest["counts"]
    num_made = made.num_rows + made.num_errors
    speed = f" in {outcome.seconds:,.1f} s, {num_made / outcome.seconds:,.1f} rows/s" if num_made else ""
    lines = [
        f"{out}: {counts['num_rows']:,} of {manifest['rows']:,} rows have a vector of {manifest['dim']} numbers.",
        f"  this run     {num_made:,} rows in {made.num_parts:,} parts{speed}; {outcome.num_kept:,} parts were there",
        f"  thinking     {counts['think_rate']:.1%} of rows, {counts['num_reasoning_tokens']:,} tokens",
    ]
    lines += [f"  text cut     {counts['num_truncated']:,} rows"] * bool(counts["num_truncated"])
    lines += [f"  not embedded {count:,} rows: {reason}" for reason, count in counts["reasons"].items()]
    lines += [f"  named in     {out}/part-….errors.jsonl; --retry-errors makes their parts again"] * bool(counts["num_errors"])
    lines += [f"  left out     {count:,} files: {suffix}" for suffix, count in manifest["left_out"].items()]
    twice = manifest.get("duplicate_ids", {"rows": 0})
    lines += [f"  same id      {twice['rows']:,} rows have the id of an earlier row: {', '.join(twice.get('examples', ()))}"] * bool(twice["rows"])
    if not manifest["complete"]:
        missing = manifest["parts"] - counts["num_parts"]
        num_busy = min(outcome.num_busy, missing)  # others have been finished meanwhile
        busy = f", {num_busy:,} of them in work elsewhere" * bool(num_busy)
        lines.append(f"  unfinished   {missing:,} of {manifest['parts']:,} parts are still to be made{busy}")
    return "\n".join(lines)
