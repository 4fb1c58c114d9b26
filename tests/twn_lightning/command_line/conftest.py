"""An index to search, and `twn` as a function."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.index_files import make_index
from twn_lightning.command_line.app import main

Twn = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="session")
def searched_index(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of pictures and texts, made with the tiny bundle."""
    return make_index(tiny_bundle, tmp_path_factory.mktemp("searched"))


@pytest.fixture
def twn(capsys: pytest.CaptureFixture[str]) -> Twn:
    """Runs a command in this process; gives its exit code, and what it wrote to standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run
