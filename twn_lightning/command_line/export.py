"""`twn export`: the model for people who use other libraries."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer
from rich.console import Console

from twn_lightning.errors import ConfigError

Library: TypeAlias = Literal["sentence-transformers", "transformers"]

_FOR_SENTENCES, _FOR_PLAIN = "With --to sentence-transformers", "With --to transformers"


def export(
    bundle: Annotated[Path, typer.Argument(help="Folder that training left.", show_default=False)],
    folder: Annotated[Path, typer.Argument(help="Folder to write; it must not be there, or be empty.", show_default=False)],
    *,
    to: Annotated[Library, typer.Option("--to", help="The library that is to load it.", show_default=False)],
    with_backbone: Annotated[
        bool, typer.Option("--with-backbone", help="Copy the backbone too, for another machine.", rich_help_panel=_FOR_SENTENCES)
    ] = False,
    think: Annotated[
        Literal["auto", "always", "never"] | None,
        typer.Option(help="When to think unless a call says; default: auto.", rich_help_panel=_FOR_SENTENCES),
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Reasoning tokens an input that auto may spend on average.", rich_help_panel=_FOR_SENTENCES)
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        typer.Option(help="Of the merged weights; default: the bundle's.", rich_help_panel=_FOR_PLAIN),
    ] = None,
) -> None:
    """Writes the model for another library, with a README.md that shows how to use it there.

    **--to sentence-transformers**: a folder of the bundle's size, with adapters, queries and gate. It names the backbone by its path or hub name,
    and needs this package where it is loaded, as SentenceTransformer("my-model", trust_remote_code=True):

        twn export BUNDLE my-model --to sentence-transformers

    **--to transformers**: for people who have nothing else. The adapters are merged into a whole model that reads prompts and writes thoughts (it
    serves wherever such a model does), and into the layers that make a vector of what it has read; 30 lines of Python in the README.md give the same
    vectors as here. Since two adapters change nearly every matrix, this takes nearly twice the backbone's space:

        twn export BUNDLE my-model --to transformers --dtype bfloat16
    """
    _refuse_foreign(to, {"with-backbone": with_backbone or None, "think": think, "budget": budget}, {"dtype": dtype})
    with contextlib.redirect_stdout(sys.stderr):  # some libraries speak up when they are first used
        if to == "transformers":
            from twn_lightning.integrations.export import export_transformers

            export_transformers(bundle, folder, dtype=dtype)
        else:
            from twn_lightning.integrations.sentence_transformers import export_sentence_transformers

            export_sentence_transformers(bundle, folder, think=think or "auto", budget=budget, with_backbone=with_backbone)
    Console(stderr=True).print(f"How to use it: {folder / 'README.md'}", highlight=False, soft_wrap=True)
    sys.stdout.write(f"{folder}\n")


def _refuse_foreign(to: str, of_sentence_transformers: dict[str, object], of_transformers: dict[str, object]) -> None:
    """Refuses an option that the other library's folder has."""
    foreign = of_sentence_transformers if to == "transformers" else of_transformers
    if given := [f"--{name}" for name, value in foreign.items() if value is not None]:
        other = "sentence-transformers" if to == "transformers" else "transformers"
        raise ConfigError(f"{', '.join(given)} is for --to {other}; --to {to} has no such option: leave it out.")
