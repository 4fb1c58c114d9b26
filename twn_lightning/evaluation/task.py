"""A retrieval task: queries, candidates, and which answers which."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args, overload

import numpy as np
import numpy.typing as npt

from twn_lightning.batches import Item
from twn_lightning.errors import DataError

Modality: TypeAlias = Literal["image", "video", "visdoc"]
MetricName: TypeAlias = Literal["hit@1", "ndcg@5"]
Scope: TypeAlias = Literal["local", "global"]
Kind: TypeAlias = Literal["composing", "plain", ""]


@dataclass(frozen=True)
class Query:
    """One query of a task.

    Attributes:
        item: What is searched with.
        labels: Key of each relevant candidate → its grade, above 0.
        candidates: Keys of the candidates it chooses among (local scope), or None for all candidates of the task (global scope).
        key: Unique within the task and stable over runs.
    """

    item: Item
    labels: Mapping[str, float]
    candidates: tuple[str, ...] | None
    key: str


class LazyItems(Sequence[Item]):
    """Items that are asked for one by one, when they are needed: a task may open what they show only then.

    Args:
        num_items: How many there are.
        item: Gives the item of a number.
    """

    def __init__(self, num_items: int, item: Callable[[int], Item]) -> None:
        self._num_items, self._item = num_items, item

    def __len__(self) -> int:
        return self._num_items

    @overload
    def __getitem__(self, index: int) -> Item: ...

    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...

    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        chosen = range(self._num_items)[index]
        return self._item(chosen) if isinstance(chosen, int) else [self._item(number) for number in chosen]


@dataclass(frozen=True)
class RetrievalTask:
    """A task in the form that all of MMEB-V2 takes; it checks itself.

    Attributes:
        name: Unique among the tasks of a suite.
        modality: Which of the three averages it belongs to.
        subgroup: The average below that one, such as ``IMG_CLS``.
        metric: Its headline figure.
        scope: ``local``: each query brings its candidates; ``global``: one corpus for all.
        queries: At least one.
        candidates: Key → item. Each is encoded once.
        kind: Whether reasoning has to compose the answer, for the groups of the report; empty if not said.
    """

    name: str
    modality: Modality
    subgroup: str
    metric: MetricName
    scope: Scope
    queries: Sequence[Query]
    candidates: Mapping[str, Item]
    kind: Kind = ""

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("modality", self.modality, get_args(Modality)),
            ("metric", self.metric, get_args(MetricName)),
            ("scope", self.scope, get_args(Scope)),
            ("kind", self.kind, get_args(Kind)),
        ):
            if value not in allowed:
                raise DataError(f'Task {self.name}: {name} is "{value}", but must be one of {", ".join(map(repr, allowed))}.')
        if not self.queries:
            raise DataError(f"Task {self.name} has no query: a mean over nothing has no value. Leave the task out, or look at its file.")
        if len({query.key for query in self.queries}) != len(self.queries):
            raise DataError(f"Task {self.name}: two queries have the same key; keys must be unique, since results are stored by them.")
        for query in self.queries:
            self._check_query(query)

    @property
    def query_items(self) -> LazyItems:
        """What is searched with, in the queries' order."""
        return LazyItems(len(self.queries), lambda number: self.queries[number].item)

    @property
    def candidate_items(self) -> LazyItems:
        """The candidates, in their order."""
        keys = tuple(self.candidates)
        return LazyItems(len(keys), lambda number: self.candidates[keys[number]])

    @functools.cached_property
    def candidate_numbers(self) -> dict[str, int]:
        """Place of each candidate in their order, by key."""
        return {key: number for number, key in enumerate(self.candidates)}

    @functools.cached_property
    def own_candidates(self) -> tuple[npt.NDArray[np.int32], ...]:
        """Places of the candidates that each query chooses among, none in global scope; kept, since a task is ranked many times."""
        place = self.candidate_numbers.__getitem__
        return tuple(np.fromiter(map(place, query.candidates or ()), dtype=np.int32) for query in self.queries)

    def _check_query(self, query: Query) -> None:
        where = f'Task {self.name}, query "{query.key}"'
        if not query.labels:
            raise DataError(f"{where} has no label: name at least one relevant candidate.")
        for key, grade in query.labels.items():
            if not grade > 0:
                raise DataError(f'{where}: the grade of "{key}" is {grade}, but labels are relevant: leave it out, or give a grade above 0.')
        if (query.candidates is None) != (self.scope == "global"):
            rule = "brings no candidates of its own" if self.scope == "global" else "brings its candidates"
            raise DataError(f"{where}: in {self.scope} scope a query {rule}.")
        offered = self.candidates.keys() if query.candidates is None else set(query.candidates)
        if query.candidates is not None and len(offered) != len(query.candidates):
            raise DataError(f"{where} names a candidate twice; it would tie with itself.")
        for key in query.labels:
            if key not in offered:
                raise DataError(f'{where}: its label "{key}" is not among its candidates, so it could never be found.')
        for key in query.candidates or ():
            if key not in self.candidates:
                raise DataError(f'{where}: its candidate "{key}" is not in the task\'s candidates.')
