"""`twn export` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import typer
from safetensors.torch import load_file
from typer.testing import CliRunner

from twn_lightning.command_line.export import export
from twn_lightning.errors import ConfigError

app = typer.Typer()
app.command()(export)


def test_plain_transformers(tiny_bundle: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [str(tiny_bundle), str(tmp_path / "plain"), "--to", "transformers", "--dtype", "bfloat16"])
    assert done.exit_code == 0, done.stderr
    assert done.stdout == f"{tmp_path / 'plain'}\n"
    assert f"How to use it: {tmp_path / 'plain' / 'README.md'}" in done.stderr
    tensors = load_file(str(tmp_path / "plain" / "reasoning" / "model.safetensors"))
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_sentence_transformers(tiny_bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    done = CliRunner().invoke(app, ["--to", "sentence-transformers", "--with-backbone", "--budget", "4", str(tiny_bundle), str(tmp_path / "st")])
    assert done.exit_code == 0, done.stderr
    settings = json.loads((tmp_path / "st" / "twn_module.json").read_text())
    assert settings == {"think": "auto", "budget": 4.0, "max_prompt_tokens": 8192, "with_backbone": True}
    assert (tmp_path / "st" / "backbone" / "config.json").is_file()


@pytest.mark.parametrize(
    ("library", "options", "message"),
    [
        ("transformers", ["--with-backbone", "--think", "never"], "--with-backbone, --think is for --to sentence-transformers"),
        ("sentence-transformers", ["--dtype", "float32"], "--dtype is for --to transformers"),
    ],
)
def test_an_option_of_the_other_library_is_refused(library: str, options: list[str], message: str, tiny_bundle: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, [str(tiny_bundle), str(tmp_path / "x"), "--to", library, *options])
    assert isinstance(done.exception, ConfigError)
    assert message in str(done.exception)
    assert not (tmp_path / "x").exists()


def test_the_help_tells_both_libraries_apart() -> None:
    done = CliRunner().invoke(app, ["--help"])
    assert done.exit_code == 0
    assert all(words in done.stdout for words in ("--to", "sentence-transformers", "transformers", "--with-backbone", "README.md"))
