"""Gains and reference routings on vectors written down by hand, or beside slow loops."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from twn_lightning.batches import Item
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.evaluation.encode import EncodedItems
from twn_lightning.evaluation.evaluate import evaluate_encoded, threshold_sweep
from twn_lightning.evaluation.routing import Routing, candidate_gain, discriminative_margin, query_gain, references, route, routed_values
from twn_lightning.evaluation.task import Query, RetrievalTask

EYE = torch.eye(4)


def make_task(labels: list[dict[str, float]], offered: list[tuple[str, ...]] | None = None, *, keys: str = "abcd") -> RetrievalTask:
    queries = [Query(Item(text=str(number)), each, offered[number] if offered else None, str(number)) for number, each in enumerate(labels)]
    scope = "local" if offered else "global"
    return RetrievalTask("toy", "image", "IMG_RET", "hit@1", scope, queries, {key: Item(text=key) for key in keys}, "plain")  # type: ignore[arg-type]


def encoded(discriminative: Tensor, generative: Tensor | None, probability: list[float], tokens: list[int]) -> EncodedItems:
    number = len(discriminative)
    return EncodedItems(
        discriminative=discriminative,
        generative=generative,
        gate_probability=torch.tensor(probability),
        num_reasoning_tokens=torch.tensor(tokens),
        thoughts=("",) * number,
        seconds=1.0,
        thought=torch.full((number,), generative is not None),
    )


# Query 0 is right without thinking and wrong after it, query 1 the reverse, query 2 right either way; no candidate's vector changes.
TASK = make_task([{"a": 1.0}, {"b": 1.0}, {"c": 1.0}])
QUERIES = encoded(EYE[[0, 3, 2]], EYE[[3, 1, 2]], [0.1, 0.9, 0.6], [10, 20, 30])
CANDIDATES = encoded(EYE, EYE, [0.2, 0.8, 0.1, 0.1], [1, 2, 3, 4])


def random_case(*, local: bool = False) -> tuple[RetrievalTask, EncodedItems, EncodedItems]:
    generator = torch.Generator().manual_seed(0)

    def vectors(number: int) -> Tensor:
        return functional.normalize(torch.randn(number, 8, generator=generator), dim=1)

    labels = [{"a": 2.0, "b": 1.0}, {"b": 1.0}, {"b": 3.0, "c": 3.0}, {"d": 1.0}, {"a": 1.0, "d": 2.0}, {"f": 1.0}]
    offered = [tuple(dict.fromkeys([*each, "e", "g"])) if number % 2 else tuple("abcdefg") for number, each in enumerate(labels)]
    task = make_task(labels, offered if local else None, keys="abcdefg")
    queries = encoded(vectors(6), vectors(6), torch.rand(6, generator=generator).tolist(), [3, 1, 4, 1, 5, 9])
    return task, queries, encoded(vectors(7), vectors(7), torch.rand(7, generator=generator).tolist(), [2, 7, 1, 8, 2, 8, 1])


@pytest.mark.parametrize("local", [False, True])
def test_a_routing_gives_what_the_mode_gives(local: bool) -> None:
    task, queries, candidates = random_case(local=local)
    result = evaluate_encoded(task, queries, candidates, threshold=0.5)
    never, always, auto, again = routed_values(
        task, queries, candidates, [route(queries, candidates, mode=mode, threshold=0.5) for mode in ("never", "always", "auto", "never")]
    )
    for mode, values in (("never", never), ("always", always), ("auto", auto), ("never", again)):
        assert tuple(values.tolist()) == result.modes[mode].values  # type: ignore[index]
    (point,) = threshold_sweep(task, queries, candidates, [0.5])
    assert point.score == pytest.approx(result.modes["auto"].score)
    assert point.reasoning_tokens == result.modes["auto"].reasoning_tokens


def test_a_side_that_may_not_think_does_not() -> None:
    sides = route(QUERIES, CANDIDATES, mode="always", think_sides="query", threshold=0.5)
    assert sides.queries.all()
    assert not sides.candidates.any()
    (point,) = threshold_sweep(TASK, QUERIES, CANDIDATES, [0.5], think_sides="candidate")
    assert point.reasoning_tokens == 2


def test_references_think_as_often_as_the_gate() -> None:
    auto = route(QUERIES, CANDIDATES, threshold=0.5)  # queries 1 and 2, candidate b
    results = references(TASK, QUERIES, CANDIDATES, auto, num_draws=2000)
    random = results["random"]
    assert random.values == pytest.approx((1 / 3, 2 / 3, 1.0), abs=0.04)  # each query thinks in two draws of three
    assert random.query_tokens == pytest.approx(2 / 3 * (10 + 20 + 30), abs=1.0)
    assert random.candidate_tokens == pytest.approx((1 + 2 + 3 + 4) / 4, abs=0.1)
    assert random.query_think_rate == pytest.approx(2 / 3)
    assert random.candidate_think_rate == pytest.approx(1 / 4)
    assert references(TASK, QUERIES, CANDIDATES, auto, seed=3) == references(TASK, QUERIES, CANDIDATES, auto, seed=3)
    assert results["query"].values == (0.0, 1.0, 1.0)
    assert (results["query"].query_tokens, results["query"].candidate_tokens) == (60, 0)
    assert results["candidate"].values == (1.0, 0.0, 1.0)
    assert (results["candidate"].query_tokens, results["candidate"].candidate_tokens) == (0, 10)


def test_the_least_confident_queries_think() -> None:
    queries = encoded(torch.tensor([[0.8, 0.6, 0, 0], [0.6, 0.8, 0, 0], [0, 0, 1.0, 0]]), EYE[[1, 1, 3]], [0.1, 0.2, 0.9], [10, 20, 30])
    assert discriminative_margin(TASK, queries, CANDIDATES).tolist() == pytest.approx([0.2, 0.2, 1.0])
    one = references(TASK, queries, CANDIDATES, route(queries, CANDIDATES, threshold=0.5))["confidence"]  # the gate chooses query 2
    assert one.values == (0.0, 1.0, 1.0)  # query 0 leads as little as query 1 and comes first; its thought misleads it
    assert (one.query_tokens, one.candidate_tokens) == (10, 2)


def test_where_all_or_none_think_every_draw_is_that_mode() -> None:
    task, queries, candidates = random_case()
    modes = evaluate_encoded(task, queries, candidates, threshold=0.5).modes
    for mode in ("never", "always"):
        drawn = references(task, queries, candidates, route(queries, candidates, mode=mode, threshold=0.5), num_draws=3)["random"]
        assert drawn.values == modes[mode].values
        assert drawn.query_tokens + drawn.candidate_tokens == modes[mode].reasoning_tokens


def test_a_query_with_one_candidate_is_sure() -> None:
    task = make_task([{"a": 1.0}], [("a",)])
    assert discriminative_margin(task, encoded(EYE[:1], None, [0.5], [0]), CANDIDATES).tolist() == [math.inf]


def test_gain_of_a_query_by_hand() -> None:
    # among scores 1, 0, 0, 0 the positive moves from a 0 to the 1, or back
    assert query_gain(TASK, QUERIES, CANDIDATES, temperature=0.5).tolist() == pytest.approx([-2.0, 2.0, 0.0], abs=1e-5)
    graded = make_task([{"a": 1.0, "b": 2.0}])
    gain = query_gain(graded, encoded(EYE[:1], EYE[1:2], [0.5], [1]), CANDIDATES, temperature=1.0)
    before, after = math.log(1 / 3), math.log(math.e / (math.e + 2))  # of b among b, c and d: a is relevant too
    assert gain.tolist() == pytest.approx([after - before])


@pytest.mark.parametrize("local", [False, True])
def test_gain_of_a_query_equals_a_slow_loop(local: bool) -> None:
    task, queries, candidates = random_case(local=local)
    keys = list(task.candidates)
    expected = []
    for number, query in enumerate(task.queries):
        offered = query.candidates or keys
        positive = max((key for key in offered if key in query.labels), key=lambda key: query.labels[key])
        competitors = [keys.index(key) for key in offered if key == positive or key not in query.labels]
        logs = []
        for vectors in (queries.discriminative, queries.generative):
            assert vectors is not None
            scores = {place: float(vectors[number] @ candidates.discriminative[place]) / 0.1 for place in competitors}
            logs.append(scores[keys.index(positive)] - math.log(sum(math.exp(score) for score in scores.values())))
        expected.append(logs[1] - logs[0])
    assert query_gain(task, queries, candidates, temperature=0.1).tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("local", [False, True])
def test_gain_of_a_candidate_equals_a_slow_loop(local: bool) -> None:
    task, queries, candidates = random_case(local=local)
    keys = list(task.candidates)
    gains: dict[int, list[float]] = {}
    for number, query in enumerate(task.queries):
        best = max((key for key in query.candidates or keys if key in query.labels), key=lambda key: query.labels[key])
        competitors = [other for other, each in enumerate(task.queries) if other == number or best not in each.labels]
        logs = []
        for vectors in (candidates.discriminative, candidates.generative):
            assert vectors is not None
            scores = {other: float(vectors[keys.index(best)] @ queries.discriminative[other]) / 0.1 for other in competitors}
            logs.append(scores[number] - math.log(sum(math.exp(score) for score in scores.values())))
        gains.setdefault(keys.index(best), []).append(logs[1] - logs[0])
    found = candidate_gain(task, queries, candidates, temperature=0.1)
    assert found.rows.tolist() == sorted(gains)
    assert found.gain.tolist() == pytest.approx([sum(gains[row]) / len(gains[row]) for row in sorted(gains)], abs=1e-4)


def test_a_query_that_is_asked_twice_is_no_mistake_of_either_candidate() -> None:
    task, queries, candidates = random_case(local=False)
    first, second = task.queries[:2]
    alone = dataclasses.replace(task, queries=[first, *task.queries[2:]])
    rows = torch.tensor([0, *range(2, len(task.queries))])
    expected = candidate_gain(alone, queries.select(rows), candidates, temperature=0.1)
    same = dataclasses.replace(task, queries=[first, dataclasses.replace(second, item=first.item), *task.queries[2:]])
    found = candidate_gain(same, queries, candidates, temperature=0.1)
    best = list(task.candidates).index(max(first.labels, key=lambda key: first.labels[key]))
    assert list(task.candidates).index(max(second.labels, key=lambda key: second.labels[key])) != best
    row, before = (gains.rows.tolist().index(best) for gains in (found, expected))
    assert float(found.gain[row]) == pytest.approx(float(expected.gain[before]), abs=1e-5)


def test_without_thoughts_there_is_nothing_to_compare() -> None:
    silent = encoded(EYE[:3], None, [0.5] * 3, [0] * 3)
    nobody = Routing(torch.zeros(3, dtype=torch.bool), torch.zeros(4, dtype=torch.bool))
    with pytest.raises(DataError, match="queries were encoded without thoughts"):
        references(TASK, silent, CANDIDATES, nobody)
    with pytest.raises(DataError, match="no gain to measure"):
        query_gain(TASK, silent, CANDIDATES, temperature=0.1)
    with pytest.raises(DataError, match="no gain to measure"):
        candidate_gain(TASK, QUERIES, encoded(EYE, None, [0.5] * 4, [0] * 4), temperature=0.1)
    with pytest.raises(ConfigError, match="temperature is 0"):
        query_gain(TASK, QUERIES, CANDIDATES, temperature=0.0)
    with pytest.raises(ConfigError, match="num_draws is 0"):
        references(TASK, QUERIES, CANDIDATES, nobody, num_draws=0)
