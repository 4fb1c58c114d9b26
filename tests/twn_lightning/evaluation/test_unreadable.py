"""What a query or a candidate that cannot be opened does to a task's score: on vectors written down by hand, and on files that break."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support.ranks import run_ranks
from twn_lightning.batches import Item
from twn_lightning.distributed import barrier, join_process_group, rank
from twn_lightning.errors import DataError
from twn_lightning.evaluation.encode import encode_items
from twn_lightning.evaluation.encoded import EncodedItems
from twn_lightning.evaluation.evaluate import evaluate_encoded, evaluate_task
from twn_lightning.evaluation.rank import rank_task
from twn_lightning.evaluation.store import VectorStore
from twn_lightning.evaluation.task import Query, RetrievalTask
from twn_lightning.evaluation.unreadable import NothingReadableError, Unreadable, rank_readable
from twn_lightning.models.adapters import LoraSpec
from twn_lightning.models.backbones import load_backbone
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.outputs import Decoding

EYE = torch.eye(4)
SHORT = Decoding(max_new_tokens=4)


def graded_task() -> RetrievalTask:
    """Query 0 is to find a (2) and b (1), query 1 c, query 2 d."""
    labels = [{"a": 2.0, "b": 1.0}, {"c": 1.0}, {"d": 1.0}]
    queries = [Query(Item(text=str(number)), each, None, str(number)) for number, each in enumerate(labels)]
    return RetrievalTask("graded", "visdoc", "VDR", "ndcg@5", "global", queries, {key: Item(text=key) for key in "abcd"})


def test_an_unreadable_query_has_no_points_and_stays_in_the_denominator() -> None:
    task = graded_task()
    queries = EYE[[0, 2, 3]]
    (whole,) = rank_readable(task, Unreadable(), [(queries, EYE)])
    assert torch.equal(whole.values, rank_task(task, queries, EYE).values)
    assert whole.values[1:].tolist() == [1.0, 1.0]
    (lacking,) = rank_readable(task, Unreadable(queries={"2": "gone"}), [(queries, EYE)])
    assert lacking.values.tolist() == [*whole.values[:2].tolist(), 0.0]
    assert lacking.top == (*whole.top[:2], ())
    two = rank_task(dataclasses.replace(task, queries=task.queries[:2]), queries[:2], EYE)
    assert lacking.metrics == pytest.approx({name: value * 2 / 3 for name, value in two.metrics.items()})
    assert max(lacking.metrics.values()) <= 2 / 3


def test_an_unreadable_candidate_stands_behind_all_others_and_its_label_still_counts() -> None:
    task = graded_task()
    queries = torch.nn.functional.normalize(torch.tensor([[1.0, 0.5, -0.5, -0.9], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]]), dim=1)
    (lacking,) = rank_readable(task, Unreadable(candidates={"a": "gone"}), [(queries, EYE)])
    assert lacking.top[0] == ("b", "c", "d", "a")  # although c and d score below 0
    ideal = 2.0 + 1.0 / np.log2(3.0)
    assert lacking.values.tolist() == pytest.approx([(1.0 + 2.0 / np.log2(5.0)) / ideal, 1.0, 1.0])
    assert lacking.top[1][0] == "c"


def test_a_task_without_a_readable_query_is_refused() -> None:
    with pytest.raises(NothingReadableError, match="graded: none of its queries can be opened. The first: 0.png: gone"):
        rank_readable(graded_task(), Unreadable(queries={str(number): f"{number}.png: gone" for number in range(3)}), [(EYE[:3], EYE)])


def test_all_modes_follow_the_rule() -> None:
    def encoded(discriminative: torch.Tensor, generative: torch.Tensor, thought: list[bool]) -> EncodedItems:
        number = len(discriminative)
        probability, tokens = torch.full((number,), 0.9), torch.full((number,), 3)
        return EncodedItems(discriminative, generative, probability, tokens, ("",) * number, 1.0, torch.tensor(thought))

    task, zero = graded_task(), torch.zeros(1, 4)
    queries = encoded(torch.cat([EYE[[0, 3]], zero]), torch.cat([EYE[[0, 2]], zero]), [True, True, False])
    result = evaluate_encoded(
        task, queries, encoded(EYE, EYE, [True] * 4), think_sides="query", threshold=0.5, unreadable=Unreadable(queries={"2": "gone"})
    )
    assert {mode: figures.values[2] for mode, figures in result.modes.items()} == dict.fromkeys(result.modes, 0.0)
    first = (2.0 + 1.0 / np.log2(5.0)) / (2.0 + 1.0 / np.log2(3.0))  # its second answer ties with two others, which come before it
    assert result.modes["oracle"].score == pytest.approx(100 * (first + 1.0 + 0.0) / 3)
    assert result.num_queries == 3
    assert result.modes["always"].query_think_rate == pytest.approx(2 / 3)


class Pictures(Mapping[str, Item]):
    """Candidates in files, some of which are broken, and one that cannot even be asked for."""

    def __init__(self, folder: Path, broken: tuple[str, ...], closed: str = "") -> None:
        self.folder, self.closed = folder, closed
        for number in range(6):
            pixels = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
        for name in broken:
            (folder / f"{name}.png").write_bytes(b"no picture")

    def __getitem__(self, key: str) -> Item:
        if key == self.closed:
            raise DataError(f"page {key} is torn: download it again.")
        return Item(images=(self.folder / f"{key}.png",))

    def __contains__(self, key: object) -> bool:
        return str(key).isdigit()

    def __iter__(self) -> Iterator[str]:
        return iter(map(str, range(6)))

    def __len__(self) -> int:
        return 6


def picture_task(candidates: Mapping[str, Item], folder: Path) -> RetrievalTask:
    items = [Item(text="which", images=(folder / "2.png",)), Item(text="picture 1"), Item(text="picture 5")]
    queries = [Query(item, {label: 1.0}, None, label) for item, label in zip(items, "215", strict=True)]
    return RetrievalTask("pictures", "image", "IMG_RET", "hit@1", "global", queries, candidates)


def test_what_cannot_be_opened_is_an_error_with_the_file_named_or_is_skipped_and_counted(tiny_model: DualLoRAModel, tmp_path: Path) -> None:
    task = picture_task(Pictures(tmp_path, broken=("2",), closed="4"), tmp_path)
    with pytest.raises(DataError, match=r"2\.png: this image cannot be read"):
        evaluate_task(tiny_model, task, modes=("never",), batch_size=2)
    store = VectorStore(tmp_path / "store", {"bundle": "one"}, width=tiny_model.hidden_size)
    result = evaluate_task(tiny_model, task, batch_size=2, decoding=SHORT, store=store, skip_unreadable=True)
    assert set(result.unreadable.queries) == {"2"}
    assert "2.png" in result.unreadable.queries["2"]
    assert set(result.unreadable.candidates) == {"2", "4"}
    assert result.unreadable.candidates["4"] == "page 4 is torn: download it again."
    assert (result.num_queries, result.num_candidates) == (3, 6)
    assert {figures.values[0] for figures in result.modes.values()} == {0.0}
    assert {set(best[-2:]) == {"2", "4"} for figures in result.modes.values() for best in figures.top if best} == {True}
    assert store.counts.written == 2 + 4
    again = evaluate_task(tiny_model, task, batch_size=2, decoding=SHORT, store=store, skip_unreadable=True)
    assert again.modes == result.modes
    assert again.unreadable == result.unreadable
    assert store.counts.written == 2 + 4  # nothing that was readable is encoded again


def test_the_readable_rows_are_those_of_a_pass_without_the_others(tiny_model: DualLoRAModel, tmp_path: Path) -> None:
    shelf = Pictures(tmp_path, broken=("0", "3"))
    items = [shelf[key] for key in shelf] + [shelf["0"]]
    faults: dict[int, str] = {}
    found = encode_items(tiny_model, items, batch_size=4, max_batch_tokens=60, decoding=SHORT, unreadable=faults)
    assert sorted(faults) == [0, 3, 6]
    readable = [number for number in range(7) if number not in faults]
    expected = encode_items(tiny_model, [items[number] for number in readable], batch_size=4, decoding=SHORT)
    assert found.generative is not None
    assert expected.generative is not None
    assert torch.allclose(found.discriminative[readable], expected.discriminative, atol=1e-5)
    assert torch.allclose(found.generative[readable], expected.generative, atol=1e-5)
    assert [found.thoughts[number] for number in readable] == list(expected.thoughts)
    assert not found.discriminative[[0, 3, 6]].any()
    assert not found.thought[[0, 3, 6]].any()


def encode_on_a_rank(folder: Path, backbone: Path) -> None:
    with join_process_group(use_gpu=False):
        torch.manual_seed(3)
        spec, shelf = LoraSpec(rank=4, alpha=8, dropout=0.0), Pictures(folder, broken=(), closed="4")
        model = DualLoRAModel(load_backbone(backbone), reasoning=spec, embedding=spec, num_queries=2).eval()
        barrier()
        (folder / "1.png").write_bytes(b"no picture")
        barrier()
        faults: dict[int, str] = {}
        found = encode_items(model, picture_task(shelf, folder).candidate_items, batch_size=2, think="never", over_ranks=True, unreadable=faults)
        torch.save({"rows": found.discriminative, "faults": torch.tensor(sorted(faults))}, folder / f"rank{rank()}.pt")


def test_ranks_agree_on_what_is_unreadable(tiny_backbone_path: Path, tmp_path: Path) -> None:
    run_ranks(encode_on_a_rank, tmp_path, tiny_backbone_path)
    first, second = (torch.load(tmp_path / f"rank{number}.pt", weights_only=True) for number in range(2))
    assert first["faults"].tolist() == second["faults"].tolist() == [1, 4]
    assert torch.equal(first["rows"], second["rows"])
    assert first["rows"].norm(dim=1).tolist() == pytest.approx([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])


def test_a_pass_of_which_nothing_is_readable_has_empty_rows(tiny_model: DualLoRAModel, tmp_path: Path) -> None:
    faults: dict[int, str] = {}
    found = encode_items(tiny_model, [Item(images=(tmp_path / "a.png",))], batch_size=1, think="never", unreadable=faults)
    assert (len(found), list(faults), found.thoughts) == (1, [0], ("",))
    assert not found.discriminative.any()
