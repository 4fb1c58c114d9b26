"""`twn serve`: the search page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from twn_lightning.errors import ConfigError


def serve(  # noqa: PLR0917 - each is an option of the command line
    index: Annotated[Path, typer.Argument(help="Folder that `twn index` made.", show_default=False)],
    port: Annotated[int, typer.Option(help="Of the page.")] = 8000,
    host: Annotated[str, typer.Option(help="127.0.0.1: this machine alone; 0.0.0.0: whoever reaches it, without a password.")] = "127.0.0.1",
    instruction: Annotated[list[str] | None, typer.Option(help="An instruction to choose from; may be given several times.")] = None,
    upload_mb: Annotated[float, typer.Option(help="Largest picture that may be sent, in megabytes.")] = 10.0,
    bundle: Annotated[Path | None, typer.Option(help="Folder of the model; by default the one that the index names.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Take a bundle that is not the one the index was made with.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, …; default: a GPU if there is one.")] = None,
) -> None:
    """Serves a page to search an index with words and pictures: results without and with thinking, side by side.

    Programs use POST /api/search, a form with the fields text, image, instruction, top_k and budget; /openapi.json describes it.

    Examples:
        twn serve index

        twn serve index --port 9000 --instruction "Find a picture of" --instruction "Which capital?"

        curl -F text="a red bird" -F top_k=5 http://127.0.0.1:8000/api/search
    """
    try:
        from twn_lightning.web.server import PageOptions, run_page
    except ImportError as error:
        raise ConfigError(f"The page needs the package {error.name}: pip install 'twn-lightning[web]'.") from error
    from twn_lightning.index.searcher import Searcher

    options = PageOptions(host=host, port=port, instructions=tuple(instruction or ()), max_upload_bytes=round(upload_mb * 1_000_000))
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    searcher = Searcher.open(index, bundle=bundle, device=device, force=force)
    run_page(searcher, options, console=console)
