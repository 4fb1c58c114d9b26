from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules.mmeb.profiles import PROFILES
from datamodules.mmeb.suite import open_task
from datamodules.mmeb.table import TABLE
from tests.support.mmeb_tree import make_tree
from twn_lightning.evaluation.task import RetrievalTask


@pytest.fixture(scope="session")
def whole_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All 78 tasks, four rows each; not to be changed."""
    root = tmp_path_factory.mktemp("mmeb")
    make_tree(root, num_rows=4)
    return root


@pytest.fixture(scope="session")
def tasks(whole_tree: Path) -> dict[str, RetrievalTask]:
    """All 78 tasks of the tree, as in training."""
    return {row.name: open_task(whole_tree, row, profile=PROFILES["trained"]) for row in TABLE.values()}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Makes a tree of a few tasks that may be changed."""

    def made(*tasks: str, num_rows: int = 3) -> Path:
        make_tree(tmp_path, num_rows=num_rows, tasks=tasks)
        return tmp_path

    return made


@pytest.fixture(scope="session")
def opened() -> Callable[..., RetrievalTask]:
    """Opens a task of a tree."""

    def open_it(root: Path, name: str, *, profile: str = "trained", **options: int | dict[str, str]) -> RetrievalTask:
        return open_task(root, TABLE[name], profile=PROFILES[profile], **options)  # type: ignore[arg-type]

    return open_it
