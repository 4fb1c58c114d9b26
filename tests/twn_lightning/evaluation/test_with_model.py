"""Evaluation and self-labelling with a real, tiny, random model: what one pass gives is what separate passes give."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from twn_lightning.batches import Inputs, Item, PairBatch
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.evaluation.encode import KnownItems, encode_items
from twn_lightning.evaluation.evaluate import evaluate_encoded, evaluate_task
from twn_lightning.evaluation.self_label import self_label
from twn_lightning.evaluation.task import Query, RetrievalTask
from twn_lightning.losses.info_nce import false_negative_mask, positive_log_probs
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.outputs import Decoding
from twn_lightning.models.prefix import Prefix

SHORT = Decoding(max_new_tokens=4)


@pytest.fixture
def task(make_items: Callable[[int], list[Item]]) -> RetrievalTask:
    items = make_items(4)
    candidates = {f"c{number}": Item(text=f"candidate {number}") for number in range(4)}
    queries = [Query(item=item, labels={f"c{number}": 1.0}, candidates=None, key=str(number)) for number, item in enumerate(items)]
    return RetrievalTask("toy", "image", "IMG_RET", "hit@1", "global", queries, candidates, "plain")


def counted_rows(model: DualLoRAModel, method: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each call of a method from now on."""
    rows: list[int] = []
    original = getattr(model, method)

    def counted(batch: Inputs | Prefix, *args: object, **settings: object) -> object:
        rows.append(len(batch))
        return original(batch, *args, **settings)

    monkeypatch.setattr(model, method, counted)
    return rows


def test_batches_by_length_keep_the_items_order(tiny_model: DualLoRAModel, make_items: Callable[[int], list[Item]]) -> None:
    items = make_items(5)
    seen: list[tuple[int, int]] = []
    together = encode_items(tiny_model, items, batch_size=2, decoding=SHORT, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(2, 5), (4, 5), (5, 5)]
    assert together.generative is not None
    for number, item in enumerate(items):
        alone = encode_items(tiny_model, [item], batch_size=1, decoding=SHORT)
        assert alone.generative is not None
        assert torch.allclose(alone.discriminative[0], together.discriminative[number], atol=1e-4)
        assert torch.allclose(alone.generative[0], together.generative[number], atol=1e-4)
        assert alone.thoughts[0] == together.thoughts[number]
        assert int(alone.num_reasoning_tokens[0]) == int(together.num_reasoning_tokens[number])


def test_equal_items_are_encoded_once(tiny_model: DualLoRAModel, make_items: Callable[[int], list[Item]]) -> None:
    first = [*make_items(4), Item(text="7"), Item(text="7", instruction="Read the number.")]
    second = [Item(text="7"), *make_items(5), Item(text="7")]  # pictures and clips are drawn anew, with equal pixels
    known: KnownItems = {}
    encode_items(tiny_model, first, batch_size=3, decoding=SHORT, known=known)
    seen: list[tuple[int, int]] = []
    shared = encode_items(tiny_model, second, batch_size=3, decoding=SHORT, known=known, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(7, 7)]
    assert len(known) == 7  # the number with and without an instruction are two; the fifth item is new
    alone = encode_items(tiny_model, second, batch_size=3, decoding=SHORT)
    assert shared.generative is not None
    assert alone.generative is not None
    assert torch.allclose(shared.discriminative, alone.discriminative, atol=1e-5)
    assert torch.allclose(shared.generative, alone.generative, atol=1e-5)
    assert shared.thoughts == alone.thoughts
    assert torch.equal(shared.num_reasoning_tokens, alone.num_reasoning_tokens)
    assert shared.seconds > 0.0
    encode_items(tiny_model, second, batch_size=7, think="never", known=known)
    assert len(known) == 7 + 6  # what was encoded thinking does not serve a pass that must not think


def test_tasks_share_candidates(tiny_model: DualLoRAModel, task: RetrievalTask, monkeypatch: pytest.MonkeyPatch) -> None:
    known: KnownItems = {}
    first = evaluate_task(tiny_model, task, batch_size=4, decoding=SHORT, known=known)
    sizes = counted_rows(tiny_model, "encode", monkeypatch)
    second = evaluate_task(tiny_model, task, batch_size=4, decoding=SHORT, known=known)
    assert sizes == [4]  # the queries
    assert second.modes == first.modes


def test_never_thinking_writes_no_thought(tiny_model: DualLoRAModel, task: RetrievalTask, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a thought was written")

    monkeypatch.setattr(tiny_model, "think", refuse)
    result = evaluate_task(tiny_model, task, modes=("never",), batch_size=4)
    assert list(result.modes) == ["never"]
    assert result.modes["never"].reasoning_tokens == 0


def test_one_pass_for_all_modes_equals_a_pass_for_each(tiny_model: DualLoRAModel, task: RetrievalTask) -> None:
    seen: list[tuple[int, int]] = []
    queries = encode_items(tiny_model, [query.item for query in task.queries], batch_size=4, decoding=SHORT)
    threshold = float(queries.gate_probability.median())
    tiny_model.gate.threshold = threshold
    whole = evaluate_task(tiny_model, task, batch_size=4, decoding=SHORT, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(4, 8), (8, 8)]
    assert whole.threshold == threshold
    for mode in ("never", "auto"):
        alone = evaluate_task(tiny_model, task, modes=(mode,), batch_size=4, decoding=SHORT).modes[mode]
        assert alone.values == whole.modes[mode].values
        assert alone.reasoning_tokens == whole.modes[mode].reasoning_tokens
        assert alone.query_think_rate == whole.modes[mode].query_think_rate
    assert 0 < whole.modes["auto"].query_think_rate < 1
    assert whole.modes["oracle"].score >= max(whole.modes["never"].score, whole.modes["always"].score)


def test_a_side_that_may_not_think_costs_nothing(tiny_model: DualLoRAModel, task: RetrievalTask) -> None:
    result = evaluate_task(tiny_model, task, think_sides="candidate", batch_size=4, decoding=SHORT)
    assert result.modes["always"].query_reasoning_tokens == 0
    assert result.modes["always"].candidate_reasoning_tokens > 0
    queries = encode_items(tiny_model, [query.item for query in task.queries], batch_size=4, think="never")
    assert queries.generative is None
    candidates = encode_items(tiny_model, list(task.candidates.values()), batch_size=4, decoding=SHORT)
    by_hand = evaluate_encoded(task, queries, candidates, think_sides="candidate", threshold=tiny_model.gate.threshold)
    assert by_hand.modes["always"].values == result.modes["always"].values


def test_encoding_restores_the_training_mode_and_refuses_nothing(tiny_model: DualLoRAModel) -> None:
    tiny_model.train()
    encode_items(tiny_model, [Item(text="a")], batch_size=1, think="never")
    assert tiny_model.training
    with pytest.raises(DataError, match="nothing to encode"):
        encode_items(tiny_model, [], batch_size=1)


def pair_batch(model: DualLoRAModel) -> PairBatch:
    def inputs(words: list[str]) -> Inputs:
        return model.processor.inputs([Item(text=word) for word in words])

    return PairBatch(
        query=inputs(["one", "two", "three"]),
        positive=inputs(["uno", "due", "uno"]),
        positive_hash=torch.tensor([5, 6, 5]),
        source="numbers",
        keys=("0", "1", "2"),
        negative=inputs(["quattro"]),
        negative_hash=torch.tensor([9]),
    )


def test_gains_are_differences_of_log_softmax_scores_of_own_thoughts(tiny_model: DualLoRAModel) -> None:
    batch = pair_batch(tiny_model)
    seen: list[tuple[int, int]] = []
    examples = self_label(tiny_model, [batch, batch], decoding=SHORT, temperature=0.1, progress=lambda *counts: seen.append(counts))
    assert seen == [(3, 6), (6, 6)]
    assert len(examples) == 12
    assert examples.side == ("query",) * 3 + ("positive",) * 3 + ("query",) * 3 + ("positive",) * 3
    assert set(examples.source) == {"numbers"}
    assert batch.negative is not None
    query, positive, negative = (
        tiny_model.encode(inputs, think=think, decoding=SHORT)  # type: ignore[arg-type]
        for inputs, think in ((batch.query, "always"), (batch.positive, "always"), (batch.negative, "never"))
    )
    column = torch.arange(3)
    targets = torch.cat([positive.discriminative, negative.discriminative])
    mask = false_negative_mask(batch.positive_hash, torch.tensor([5, 6, 5, 9]), column)
    before, after = (positive_log_probs(vectors, targets, column, temperature=0.1, mask=mask) for vectors in (query.discriminative, query.generative))
    assert torch.allclose(examples.gain[:3], after - before, atol=1e-5)
    back, forth = (
        positive_log_probs(vectors, query.discriminative, column, temperature=0.1, mask=mask[:, :3])
        for vectors in (positive.discriminative, positive.generative)
    )
    assert torch.allclose(examples.gain[3:6], forth - back, atol=1e-5)
    assert torch.allclose(examples.state[:3], query.state, atol=1e-5)
    assert int(examples.num_reasoning_tokens[0]) == int(query.num_reasoning_tokens[0])


def test_equal_inputs_of_a_batch_think_once(
    tiny_model: DualLoRAModel, make_items: Callable[[int], list[Item]], monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [make_items(5)[number] for number in (0, 1, 2, 3, 1, 2, 0, 3, 4)]  # text, image, clip, two images, and again
    inputs = tiny_model.processor.inputs(items)
    rows, places = inputs.distinct()
    assert rows.tolist() == [0, 1, 2, 3, 8]
    assert places.tolist() == [0, 1, 2, 3, 1, 2, 0, 3, 4]
    numbers = tiny_model.processor.inputs([Item(text=str(number)) for number in range(9)])
    batch = PairBatch(query=inputs, positive=numbers, positive_hash=torch.arange(9), source="toy", keys=tuple("abcdefghi"))
    expected = tiny_model.encode(inputs, think="always", decoding=SHORT)
    thought = counted_rows(tiny_model, "think", monkeypatch)
    examples = self_label(tiny_model, [batch], decoding=SHORT, sides="query")
    assert thought == [5]
    assert expected.thoughts is not None
    assert list(examples.thoughts) == tiny_model.processor.decode(expected.thoughts)
    assert torch.allclose(examples.state, expected.state, atol=1e-5)
    assert torch.equal(examples.num_reasoning_tokens, expected.num_reasoning_tokens)


def test_one_side_alone_can_be_labelled(tiny_model: DualLoRAModel) -> None:
    examples = self_label(tiny_model, iter([pair_batch(tiny_model)]), decoding=SHORT, sides="positive")
    assert examples.side == ("positive",) * 3


def test_labelling_needs_pairs_and_a_temperature(tiny_model: DualLoRAModel) -> None:
    with pytest.raises(DataError, match="no pair to label"):
        self_label(tiny_model, [], decoding=SHORT)
    with pytest.raises(ConfigError, match="temperature is 0"):
        self_label(tiny_model, [], temperature=0.0)
