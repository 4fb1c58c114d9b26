"""All commands of `twn` in one place; each is a function in a file of its own name, and loads torch only when it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer
from rich.console import Console

from twn_lightning import __version__
from twn_lightning.command_line.embed import embed
from twn_lightning.command_line.explain import explain
from twn_lightning.command_line.export import export
from twn_lightning.command_line.index import index
from twn_lightning.command_line.info import info
from twn_lightning.command_line.search import search
from twn_lightning.command_line.serve import serve
from twn_lightning.errors import TwnError

FAILED, STOPPED = 1, 130

app = typer.Typer(
    name="twn",
    help="Embed, search and explain with a model that thinks only when thinking helps.\n\nA *bundle* is the folder that training left; `twn info "
    "BUNDLE` says what is in it. The usual way: `twn embed` a corpus, `twn index` it, `twn search` it.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
for command in (embed, index, search, explain, serve, info, export):
    app.command(name=command.__name__)(command)


@app.callback(invoke_without_command=True)
def _whole(version: bool = typer.Option(False, "--version", help="The version of this program.")) -> None:
    if version:
        sys.stdout.write(f"twn-lightning {__version__}\n")
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        arguments: Of the command line; None for the program's own.

    Returns:
        The exit code: 0; 1 for what the user can mend, said in one line; 2 for arguments that are none; 130 after Ctrl-C.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: spinning threads collapse when something else wants the cores
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # loading a checkpoint is not worth a bar
    try:
        app(args=None if arguments is None else list(arguments), prog_name="twn", standalone_mode=True)
    except TwnError as error:
        Console(stderr=True, soft_wrap=True).print(f"twn: {error}", style="red", markup=False, highlight=False)
        return FAILED
    except KeyboardInterrupt:
        Console(stderr=True).print("twn: stopped.")
        return STOPPED
    except SystemExit as finished:
        return finished.code if isinstance(finished.code, int) else FAILED
    return 0
