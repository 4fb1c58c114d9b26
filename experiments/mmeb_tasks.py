"""Tasks of MMEB-V2 by the settings of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import overload

from datamodules.mmeb.instructions import Instructions, read_instructions
from datamodules.mmeb.profiles import PROFILES, Profile
from datamodules.mmeb.suite import open_task
from datamodules.mmeb.table import TaskRow, select
from twn_lightning.configs.run import RunConfig
from twn_lightning.evaluation.task import RetrievalTask


class TasksInTurn(Sequence[RetrievalTask]):
    """Tasks of MMEB-V2, each opened when it is asked for and kept by nobody.

    Args:
        root: Folder of all data sets and media.
        rows: Which tasks.
        profile: How they are shown.
        max_queries: Of each task; None for all.
        instructions: Wording in place of that of the files or of the table; see `open_task`.
    """

    def __init__(
        self, root: Path, rows: Sequence[TaskRow], *, profile: Profile, max_queries: int | None, instructions: Mapping[str, str] | None = None
    ) -> None:
        self._root, self._rows, self._profile, self._max_queries = root, tuple(rows), profile, max_queries
        self._instructions = instructions

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> RetrievalTask: ...

    @overload
    def __getitem__(self, index: slice) -> TasksInTurn: ...

    def __getitem__(self, index: int | slice) -> RetrievalTask | TasksInTurn:
        if isinstance(index, slice):
            chosen = self._rows[index]
            return TasksInTurn(self._root, chosen, profile=self._profile, max_queries=self._max_queries, instructions=self._instructions)
        return open_task(self._root, self._rows[index], profile=self._profile, max_queries=self._max_queries, instructions=self._instructions)


def given_instructions(config: RunConfig) -> Instructions:
    """Those of the file that the settings name; none where they name none.

    Raises:
        ConfigError: The file cannot be used.
    """
    profile = PROFILES[config.evaluation.profile]
    return read_instructions(config.evaluation.instructions, with_candidates=profile.candidate_instructions)


def mmeb_tasks(config: RunConfig, split: str, *, max_queries: int | None) -> TasksInTurn:
    """Test tasks: those of ``data.tasks``; or, for validation, those of ``callbacks.evaluate_tasks``.

    There are none but test tasks. Those for validation are shown as in training, with ``evaluation.validation_queries`` queries each; they may be
    watched, and nothing may be chosen by them.

    Args:
        config: The run's settings.
        split: "validation" or "test".
        max_queries: Queries of each test task; None for all.

    Raises:
        ConfigError: A task is not in the suite.
    """
    root = Path(config.data.root)
    if split == "test":
        profile, texts = PROFILES[config.evaluation.profile], given_instructions(config).texts
        return TasksInTurn(root, select(config.data.tasks), profile=profile, max_queries=max_queries, instructions=texts)
    watched = config.callbacks.evaluate_tasks
    rows = select(watched) if watched else ()
    return TasksInTurn(root, rows, profile=PROFILES["trained"], max_queries=config.evaluation.validation_queries)
