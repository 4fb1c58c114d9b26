"""Modes, sides and sweeps on vectors written down by hand; no model is needed for any of it."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from twn_lightning.batches import Item
from twn_lightning.errors import ConfigError, TwnError
from twn_lightning.evaluation.encode import EncodedItems
from twn_lightning.evaluation.evaluate import evaluate_encoded, threshold_sweep
from twn_lightning.evaluation.rank import blocks, rank_task
from twn_lightning.evaluation.task import Query, RetrievalTask

EYE = torch.eye(4)


def make_task(labels: list[dict[str, float]], *, candidates: list[tuple[str, ...] | None] | None = None, metric: str = "hit@1") -> RetrievalTask:
    offered = candidates or [None] * len(labels)
    return RetrievalTask(
        name="toy",
        modality="image",
        subgroup="IMG_RET",
        metric=metric,  # type: ignore[arg-type]
        scope="local" if candidates else "global",
        queries=[Query(Item(text=str(number)), each, offered[number], str(number)) for number, each in enumerate(labels)],
        candidates={key: Item(text=key) for key in "abcd"},
        kind="composing",
    )


def encoded(discriminative: Tensor, generative: Tensor | None, probability: list[float], tokens: list[int]) -> EncodedItems:
    number = len(discriminative)
    return EncodedItems(
        discriminative=discriminative,
        generative=generative,
        gate_probability=torch.tensor(probability),
        num_reasoning_tokens=torch.tensor(tokens),
        thoughts=("",) * number,
        seconds=1.5,
        thought=torch.full((number,), generative is not None),
    )


# Query 0 is right without thinking and wrong after it, query 1 the reverse, query 2 right either way.
TASK = make_task([{"a": 1.0}, {"b": 1.0}, {"c": 1.0}])
QUERIES = encoded(EYE[[0, 3, 2]], EYE[[3, 1, 2]], [0.1, 0.9, 0.6], [10, 20, 30])
PLAIN = encoded(EYE, None, [0.5] * 4, [0] * 4)


def test_the_four_modes_of_a_thinking_query_side() -> None:
    result = evaluate_encoded(TASK, QUERIES, PLAIN, think_sides="query", threshold=0.5)
    never, always, auto, oracle = (result.modes[mode] for mode in ("never", "always", "auto", "oracle"))
    assert never.values == (1.0, 0.0, 1.0)
    assert always.values == (0.0, 1.0, 1.0)
    assert auto.values == (1.0, 1.0, 1.0)
    assert oracle.values == (1.0, 1.0, 1.0)
    assert never.score == pytest.approx(200 / 3)
    assert [mode.reasoning_tokens for mode in (never, always, auto, oracle)] == [0, 60, 50, 20]
    assert [round(result.think_rate(mode), 3) for mode in result.modes] == [0.0, 1.0, 0.667, 0.333]
    assert always.candidate_think_rate == 0.0
    assert auto.top[1][0] == "b"
    assert result.seconds == 3.0


def test_the_gate_decides_on_both_sides_and_both_cost_tokens() -> None:
    candidates = encoded(EYE, EYE[[3, 1, 2, 0]], [0.2, 0.8, 0.1, 0.1], [1, 2, 3, 4])
    result = evaluate_encoded(TASK, QUERIES, candidates, threshold=0.5)
    auto, always = result.modes["auto"], result.modes["always"]
    assert (auto.query_reasoning_tokens, auto.candidate_reasoning_tokens) == (50, 2)
    assert (always.query_reasoning_tokens, always.candidate_reasoning_tokens) == (60, 10)
    assert auto.candidate_think_rate == 0.25
    assert result.think_rate("auto") == pytest.approx((2 + 1) / (3 + 4))
    assert always.values == (1.0, 1.0, 1.0)  # query 0 thinks of d, and so does candidate a
    only_candidates = evaluate_encoded(TASK, QUERIES, candidates, think_sides="candidate", threshold=0.5)
    assert only_candidates.modes["always"].values == (0.0, 0.0, 1.0)
    assert only_candidates.modes["always"].query_reasoning_tokens == 0
    assert only_candidates.modes["never"].values == (1.0, 0.0, 1.0)
    oracle = result.modes["oracle"]
    assert (oracle.candidate_think_rate, oracle.candidate_reasoning_tokens, oracle.query_reasoning_tokens) == (1.0, 10, 20)


def test_modes_that_were_not_asked_for_are_not_reported() -> None:
    assert list(evaluate_encoded(TASK, QUERIES, PLAIN, modes=("oracle",), threshold=0.5).modes) == ["oracle"]
    assert list(evaluate_encoded(TASK, QUERIES, PLAIN, modes=("auto", "never"), threshold=0.5).modes) == ["never", "auto"]


def test_a_sweep_goes_from_always_to_never() -> None:
    points = threshold_sweep(TASK, QUERIES, PLAIN, [0.0, 0.5, 0.7, 1.0])
    assert [point.score for point in points] == pytest.approx([200 / 3, 100.0, 100.0, 200 / 3])
    assert [point.reasoning_tokens for point in points] == [60, 50, 20, 0]
    assert [point.think_rate for point in points] == pytest.approx([1.0, 2 / 3, 1 / 3, 0.0])


def test_local_scope_ranks_each_query_among_its_own_candidates() -> None:
    task = make_task([{"a": 1.0}, {"b": 1.0}], candidates=[("a", "d"), ("d", "c", "b")])
    vectors = torch.nn.functional.normalize(torch.tensor([[0.5, 0.9, 0.0, 0.1], [0.9, 0.2, 0.1, 0.3]]), dim=1)
    ranking = rank_task(task, vectors, EYE)
    assert ranking.values.tolist() == [1.0, 0.0]  # globally b and a would have come first
    assert ranking.top == (("a", "d"), ("d", "b", "c"))
    assert ranking.tie_rate == 0.0


def test_graded_ndcg_of_a_task_by_hand() -> None:
    task = make_task([{"a": 1.0, "c": 3.0}], metric="ndcg@5")
    vectors = torch.nn.functional.normalize(torch.tensor([[0.5, 0.9, 0.7, 0.1]]), dim=1)  # b, c, a, d
    ranking = rank_task(task, vectors, EYE)
    linear = (3 / math.log2(3) + 1 / 2) / (3 + 1 / math.log2(3))
    assert ranking.values.item() == pytest.approx(linear)
    assert ranking.metrics["ndcg_linear@5"] == pytest.approx(linear)
    assert ranking.metrics["ndcg_exponential@5"] == pytest.approx((7 / math.log2(3) + 1 / 2) / (7 + 1 / math.log2(3)))
    assert ranking.metrics["hit@1"] == 0.0


@pytest.mark.parametrize("candidates", [None, [("a", "b", "c", "d")] * 3])
def test_a_collapsed_model_scores_zero_in_every_mode(candidates: list[tuple[str, ...] | None] | None) -> None:
    task = make_task([{"a": 1.0}] * 3, candidates=candidates)
    generator = torch.Generator().manual_seed(0)
    one = torch.nn.functional.normalize(torch.randn(1, 257, generator=generator), dim=1)  # a width at which products round unevenly
    same = encoded(one.repeat(3, 1), one.repeat(3, 1), [0.5] * 3, [1] * 3)
    result = evaluate_encoded(task, same, encoded(one.repeat(4, 1), one.repeat(4, 1), [0.5] * 4, [1] * 4), threshold=0.5)
    assert [mode.score for mode in result.modes.values()] == [0.0] * 4
    assert [mode.tie_rate for mode in result.modes.values()] == [1.0] * 4


def test_nan_is_an_error_that_names_the_task() -> None:
    broken = encoded(torch.full((3, 4), math.nan), None, [0.5] * 3, [0] * 3)
    with pytest.raises(TwnError, match="Task toy, queries 0 to 2: 3 of 3 queries have a score that is NaN"):
        evaluate_encoded(TASK, broken, PLAIN, modes=("never",), threshold=0.5)


def test_vectors_of_another_task_are_refused() -> None:
    with pytest.raises(TwnError, match="3 queries and 4 candidates, but 2 and 4 vectors"):
        rank_task(TASK, EYE[:2], EYE)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="threshold is 1.5"):
        evaluate_encoded(TASK, QUERIES, PLAIN, threshold=1.5)
    with pytest.raises(ConfigError, match=r"modes is \['sometimes'\]"):
        evaluate_encoded(TASK, QUERIES, PLAIN, modes=("sometimes",), threshold=0.5)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match='think_sides is "none"'):
        evaluate_encoded(TASK, QUERIES, PLAIN, think_sides="none", threshold=0.5)  # type: ignore[arg-type]


def test_chunks_do_not_change_the_ranking(monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task([{"a": 1.0}, {"b": 1.0}, {"c": 1.0}], candidates=[("a", "b"), ("b", "c", "d"), ("a", "c")])
    vectors = torch.nn.functional.normalize(torch.randn(3, 4, generator=torch.Generator().manual_seed(1)), dim=1)
    whole = rank_task(task, vectors, EYE)
    monkeypatch.setattr("twn_lightning.evaluation.rank._CHUNK_NUMBERS", 1)
    pieces = rank_task(task, vectors, EYE)
    assert torch.equal(whole.values, pieces.values)
    assert whole.top == pieces.top
    assert whole.metrics == pytest.approx(pieces.metrics)


def test_queries_that_share_their_candidates_are_scored_by_one_product(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(2)
    offered: list[tuple[str, ...] | None] = [("a", "b"), ("b", "c", "d"), ("a", "c", "d")]
    task = make_task([{"a": 1.0}, {"d": 2.0, "b": 1.0}, {"c": 1.0}], candidates=offered, metric="ndcg@5")
    queries, candidates = (torch.nn.functional.normalize(torch.randn(rows, 4, generator=generator), dim=1) for rows in (3, 4))
    together = rank_task(task, queries, candidates)
    monkeypatch.setattr("twn_lightning.evaluation.rank._SHARED", 0)
    apart = rank_task(task, queries, candidates)
    assert together.top == apart.top
    assert torch.equal(together.values, apart.values)
    assert together.metrics == pytest.approx(apart.metrics)


def test_the_scores_of_a_large_task_come_in_blocks_that_fit_into_memory() -> None:
    number = 4478
    keys = [str(key) for key in range(number)]
    queries = [Query(Item(text=key), {key: 1.0}, None, key) for key in keys]
    task = RetrievalTask("large", "video", "VID_RET", "hit@1", "global", queries, {key: Item(text=key) for key in keys})
    sizes = [block.grades.numel() for block in blocks(task, width=4096)]
    assert max(sizes) <= 2**24
    assert sum(sizes) == number * number
    many = [dataclasses.replace(query, candidates=tuple(keys[:1000])) for query in queries[:1000]]
    local = RetrievalTask("local", "image", "IMG_RET", "hit@1", "local", many, {key: Item(text=key) for key in keys[:1000]})
    found = list(blocks(local, width=4096))
    assert all(block.shares for block in found)
    assert max(block.columns.numel() for block in found) <= 2**24
    far = dict.fromkeys([*keys, *(f"x{key}" for key in range(12000))], Item(text="x"))
    apart = RetrievalTask("apart", "image", "IMG_RET", "hit@1", "local", many[:8], far)
    assert [(block.shares, len(block.columns)) for block in blocks(apart, width=4096)][:2] == [(False, 4), (False, 4)]
