from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import pytest

from twn_lightning.batches import Item
from twn_lightning.errors import DataError
from twn_lightning.evaluation.task import Query, RetrievalTask

CANDIDATES = {key: Item(text=key) for key in "abc"}


def query(labels: Mapping[str, float], candidates: tuple[str, ...] | None = None, key: str = "q") -> Query:
    return Query(item=Item(text="?"), labels=labels, candidates=candidates, key=key)


def task(*queries: Query, scope: str = "global") -> RetrievalTask:
    return RetrievalTask(
        name="flags",
        modality="image",
        subgroup="IMG_CLS",
        metric="hit@1",
        scope=scope,  # type: ignore[arg-type]
        queries=queries,
        candidates=CANDIDATES,
    )


def test_a_sound_task_of_either_scope_is_accepted() -> None:
    assert task(query({"a": 1.0})).kind == ""
    assert task(query({"a": 1.0}, ("a", "c")), scope="local").scope == "local"


@pytest.mark.parametrize(
    ("queries", "scope", "message"),
    [
        ((), "global", "has no query"),
        ((query({"a": 1.0}), query({"b": 1.0})), "global", "two queries have the same key"),
        ((query({}),), "global", 'query "q" has no label'),
        ((query({"a": 0.0}),), "global", 'the grade of "a" is 0.0'),
        ((query({"z": 1.0}),), "global", 'label "z" is not among its candidates'),
        ((query({"a": 1.0}, ("b", "c")),), "local", 'label "a" is not among its candidates'),
        ((query({"a": 1.0}, ("a", "z")),), "local", 'candidate "z" is not in the task'),
        ((query({"a": 1.0}, ("a", "a")),), "local", "names a candidate twice"),
        ((query({"a": 1.0}),), "local", "brings its candidates"),
        ((query({"a": 1.0}, ("a", "b")),), "global", "brings no candidates"),
        ((query({"a": 1.0}),), "nearby", 'scope is "nearby"'),
    ],
)
def test_a_task_that_could_not_be_scored_says_why(queries: tuple[Query, ...], scope: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        task(*queries, scope=scope)


def test_an_unknown_metric_names_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"metric is \"hit@3\", but must be one of 'hit@1', 'ndcg@5'"):
        dataclasses.replace(task(query({"a": 1.0})), metric="hit@3")  # type: ignore[arg-type]
