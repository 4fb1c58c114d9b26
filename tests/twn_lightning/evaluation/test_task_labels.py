"""What a validation task teaches the gate, and that its threshold is chosen on other queries."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from twn_lightning.batches import Item
from twn_lightning.errors import DataError
from twn_lightning.evaluation.encode import encode_items
from twn_lightning.evaluation.routing import candidate_gain, query_gain
from twn_lightning.evaluation.self_label import LabelSides
from twn_lightning.evaluation.task import Query, RetrievalTask
from twn_lightning.evaluation.task_labels import fold_of, label_task, query_subjects, subject_folds
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.outputs import Decoding


def make_task(items: list[Item], *, num_subjects: int) -> RetrievalTask:
    candidates = {f"c{number}": Item(text=f"candidate {number}") for number in range(num_subjects)}
    queries = [Query(item, {f"c{number % num_subjects}": 2.0}, None, str(number)) for number, item in enumerate(items)]
    return RetrievalTask("toy", "image", "IMG_RET", "hit@1", "global", queries, candidates, "plain")


def test_folds_are_of_about_one_size_and_another_source_has_others() -> None:
    folds = [[fold_of(source, f"c{number}", num_folds=5) for number in range(400)] for source in ("toy", "other")]
    assert all(50 <= each.count(fold) <= 110 for each in folds for fold in range(5))
    assert folds[0] != folds[1]
    assert folds[0] == [fold_of("toy", f"c{number}", num_folds=5) for number in range(400)]


def test_equal_inputs_of_several_subjects_and_tasks_are_in_one_fold() -> None:
    words = [Item(text=f"sum {number // 3}") for number in range(60)]  # each asked for three subjects
    task = make_task(words, num_subjects=60)
    other = dataclasses.replace(task, name="other", queries=[dataclasses.replace(query, item=Item(text=query.key)) for query in task.queries])
    folds = subject_folds([task, other], num_folds=5)
    assert set(folds) == {(name, f"c{number}") for name in ("toy", "other") for number in range(60)}
    assert all(len({folds[name, f"c{3 * group + place}"] for name in ("toy", "other") for place in range(3)}) == 1 for group in range(20))
    assert len(set(folds.values())) > 2


def test_a_query_is_about_its_best_candidate() -> None:
    task = make_task([Item(text="one"), Item(text="two")], num_subjects=2)
    labels = {"c1": 1.0, "c0": 3.0}, {"c1": 2.0, "c0": 2.0}
    graded = [dataclasses.replace(query, labels=given) for query, given in zip(task.queries, labels, strict=True)]
    assert query_subjects(dataclasses.replace(task, queries=graded)) == ["c0", "c1"]


@pytest.mark.parametrize(("sides", "expected"), [("query", 5), ("positive", 3), ("both", 8)])
def test_examples_are_the_gains_against_the_tasks_own_candidates(
    tiny_model: DualLoRAModel, make_items: Callable[[int], list[Item]], sides: LabelSides, expected: int
) -> None:
    task = make_task(make_items(5), num_subjects=3)
    task = dataclasses.replace(task, candidates={**task.candidates, "never right": Item(text="another")})
    decoding = Decoding(max_new_tokens=4)
    queries = encode_items(tiny_model, [query.item for query in task.queries], batch_size=3, decoding=decoding, keep_states=True)
    candidates = encode_items(tiny_model, list(task.candidates.values()), batch_size=3, decoding=decoding, keep_states=True)
    examples = label_task(task, queries, candidates, temperature=0.1, sides=sides)
    assert len(examples) == expected
    found = candidate_gain(task, queries, candidates, temperature=0.1)
    own = {"query": query_gain(task, queries, candidates, temperature=0.1), "positive": found.gain}
    rows = {"query": torch.arange(5), "positive": found.rows}
    start = 0
    for side in dict.fromkeys(examples.side):
        part = slice(start, start + len(own[side]))
        items = queries if side == "query" else candidates
        assert items.state is not None
        assert torch.allclose(examples.gain[part], own[side].float())
        assert torch.equal(examples.state[part], items.state[rows[side]])
        assert torch.allclose(tiny_model.gate.probability(examples.state[part]), examples.gate_probability[part], atol=1e-6)
        assert torch.equal(examples.num_reasoning_tokens[part], items.num_reasoning_tokens[rows[side]])
        names = query_subjects(task) if side == "query" else list(task.candidates)
        assert list(examples.subject[part]) == [names[row] for row in rows[side].tolist()]
        start = part.stop
    assert start == len(examples)


def test_without_states_there_is_nothing_to_learn_from(tiny_model: DualLoRAModel, make_items: Callable[[int], list[Item]]) -> None:
    task = make_task(make_items(2), num_subjects=2)
    items = encode_items(tiny_model, [query.item for query in task.queries], batch_size=2, decoding=Decoding(max_new_tokens=2))
    assert items.state is None
    with pytest.raises(DataError, match="Task toy was encoded without the gate's states"):
        label_task(task, items, items, temperature=0.1, sides="both")
