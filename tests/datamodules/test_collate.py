from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from datamodules.collate import PairCollator, target_hash
from datamodules.digests import content_digest, stable_hash
from twn_lightning.batches import Item, Pair
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.models.backbones import load_processor
from twn_lightning.models.backbones.base import Processor, ProcessorOptions


@pytest.fixture(scope="module")
def processor(tiny_backbone_path: Path) -> Processor:
    return load_processor(tiny_backbone_path, options=ProcessorOptions(num_frames=4, max_thought_tokens=48))


def _pair(number: int, **changes: object) -> Pair:
    values: dict[str, object] = {
        "query": Item(f"query {number}"),
        "positive": Item(f"positive {number}"),
        "source": "s",
        "key": str(number),
        **changes,
    }
    return Pair(**values)  # type: ignore[arg-type]


def test_batch_holds_both_sides_in_order(processor: Processor, make_items: Callable[[int], list[Item]]) -> None:
    items = make_items(5)
    batch = PairCollator(processor)([_pair(number, query=item) for number, item in enumerate(items)])
    expected = processor.inputs(items)
    assert torch.equal(batch.query.input_ids, expected.input_ids)
    assert batch.query.images_per_row.tolist() == [0, 1, 0, 2, 1]
    assert len(batch) == len(batch.positive) == 5
    assert (batch.source, batch.keys) == ("s", ("0", "1", "2", "3", "4"))
    assert batch.negative is None
    assert batch.negative_hash is None
    assert batch.query_thoughts is None
    assert batch.positive_thoughts is None


def test_equal_targets_have_equal_hashes(processor: Processor) -> None:
    pairs = [
        _pair(0),
        _pair(1, positive=Item("positive 0", instruction="another one")),
        _pair(2),
        _pair(3, positive_key="a"),
        _pair(4, positive_key="a"),
    ]
    first, second, third, fourth, fifth = PairCollator(processor)(pairs).positive_hash.tolist()
    assert first == second
    assert fourth == fifth
    assert len({first, third, fourth}) == 3


def test_hash_is_the_same_in_every_process() -> None:
    assert stable_hash(b"think") == int.from_bytes(bytes.fromhex("64378818169619da"), "little", signed=True)  # printf think | b2sum -l 64
    assert target_hash(_pair(0, positive_key="a")) != target_hash(_pair(0, positive_key="a", source="other"))


def test_content_tells_text_pictures_and_clips_apart() -> None:
    red, blue = Image.new("RGB", (2, 2), "red"), Image.new("RGB", (2, 2), "blue")
    items = [
        Item("a"), Item("b"), Item(images=(red,)), Item(images=(blue,)), Item(images=(red, blue)), Item(images=(blue, red)), Item(video=(red, blue)),
        Item(images=(Path("a.png"),)), Item(video=Path("a.png")), Item("a", images=(red,)), Item(images=(red.resize((4, 1)),)),
    ]  # fmt: skip
    assert len({content_digest(item) for item in items}) == len(items)
    assert content_digest(Item(images=(red.copy(),))) == content_digest(Item(images=(red,)))


def test_first_negatives_of_every_row_follow_one_another(processor: Processor) -> None:
    pairs = [_pair(0, negatives=(Item("n0"), Item("n1"), Item("n2"))), _pair(1), _pair(2, negatives=(Item("n3"),))]
    batch = PairCollator(processor, max_negatives=2)(pairs)
    assert batch.negative is not None
    assert torch.equal(batch.negative.input_ids, processor.inputs([Item("n0"), Item("n1"), Item("n3")]).input_ids)
    assert PairCollator(processor, max_negatives=0)(pairs).negative is None


@pytest.mark.parametrize("positive_key", ["", "capital"])
def test_negative_that_is_another_rows_positive_carries_its_hash(processor: Processor, positive_key: str) -> None:
    pairs = [_pair(0, negatives=(Item("positive 1"), Item("elsewhere"))), _pair(1, positive_key=positive_key)]
    batch = PairCollator(processor, max_negatives=2)(pairs)
    assert batch.negative_hash is not None
    assert batch.negative_hash[0] == batch.positive_hash[1]
    assert batch.negative_hash[1] not in batch.positive_hash


def test_thoughts_of_both_sides_are_given(processor: Processor) -> None:
    batch = PairCollator(processor, with_cot=True)([_pair(0, query_cot="3 + 4 = 7", positive_cot="seven")])
    assert batch.query_thoughts is not None
    assert batch.positive_thoughts is not None
    assert processor.decode(batch.query_thoughts) == ["3 + 4 = 7"]
    assert processor.decode(batch.positive_thoughts) == ["seven"]


def test_empty_thought_is_named(processor: Processor) -> None:
    pairs = [_pair(0, query_cot="x", positive_cot="y"), _pair(1, query_cot="x", positive_cot=" ")]
    with pytest.raises(DataError, match="s, row '1': positive_cot is empty, but this stage learns to write thoughts"):
        PairCollator(processor, with_cot=True)(pairs)


def test_negative_count_below_zero_is_refused(processor: Processor) -> None:
    with pytest.raises(ConfigError, match="max_negatives is -1"):
        PairCollator(processor, max_negatives=-1)
