"""Batches of the file-backed sources in real loading processes: the same in any number of them, every row exactly once."""

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from datamodules.collate import PairCollator
from datamodules.mixing import BatchPlan
from datamodules.pair_datamodule import PairBatches, PairDataModule
from datamodules.pair_source import PairSource
from datamodules.sources import open_source
from datamodules.steps import Batches, StepLoader, StepSampler
from tests.support import training_files
from twn_lightning.batches import PairBatch
from twn_lightning.errors import DataError
from twn_lightning.models.backbones import load_processor
from twn_lightning.models.backbones.base import Processor, ProcessorOptions

ROWS = 24


@pytest.fixture(scope="module")
def processor(tiny_backbone_path: Path) -> Processor:
    return load_processor(tiny_backbone_path, options=ProcessorOptions(num_frames=2, max_thought_tokens=200, max_pixels=16 * 16))


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, PairSource]:
    made = training_files.make(tmp_path_factory.mktemp("training"), rows=ROWS)
    return {name: open_source(entry["kind"], entry["options"]) for name, entry in training_files.sources(made).items()}


def batches(
    sources: Sequence[PairSource], processor: Processor, *, batch_size: int, rank: int = 0, world_size: int = 1, num_workers: int = 0, length: int
) -> list[PairBatch]:
    named = {source.name: source for source in sources}
    plan = BatchPlan({name: len(source) for name, source in named.items()}, batch_size=batch_size, seed=7)
    make = PairBatches(named, plan, PairCollator(processor, max_negatives=1), rank=rank, world_size=world_size)
    return list(StepLoader(Batches(make, length), StepSampler(length, lambda: 0), num_workers=num_workers))


def assert_same(one: PairBatch, other: PairBatch) -> None:
    assert (one.source, one.keys) == (other.source, other.keys)
    for field in ("query", "positive", "negative"):
        left, right = getattr(one, field), getattr(other, field)
        assert (left is None) == (right is None)
        for part in dataclasses.fields(left) if left is not None else ():
            tensor = getattr(left, part.name)
            assert tensor is None or torch.equal(tensor, getattr(right, part.name)), part.name
    assert torch.equal(one.positive_hash, other.positive_hash)


@pytest.mark.slow
def test_every_source_gives_the_same_batches_with_0_2_and_4_workers(opened: dict[str, PairSource], processor: Processor) -> None:
    alone = batches(list(opened.values()), processor, batch_size=2, length=64)
    for num_workers in (2, 4):
        for one, other in zip(alone, batches(list(opened.values()), processor, batch_size=2, length=64, num_workers=num_workers), strict=True):
            assert_same(one, other)
    assert {batch.source for batch in alone} == {source.name for source in opened.values()}


def test_two_ranks_of_4_see_one_of_8_and_every_row_once_an_epoch(opened: dict[str, PairSource], processor: Processor) -> None:
    source = opened["ume_r1"]
    epochs = 2
    whole = [batch.keys for batch in batches([source], processor, batch_size=8, length=3 * epochs)]
    ranks = [batches([source], processor, batch_size=4, length=3 * epochs, rank=rank, world_size=2, num_workers=2) for rank in range(2)]
    assert [first.keys + second.keys for first, second in zip(*ranks, strict=True)] == whole
    for epoch in range(epochs):
        seen = Counter(key for keys in whole[3 * epoch : 3 * (epoch + 1)] for key in keys)
        assert seen == {str(row): 1 for row in range(ROWS)}
    assert whole[:3] != whole[3:]


@pytest.fixture
def spoilt(tmp_path: Path) -> dict[str, object]:
    """UME-R1 with a picture gone, a picture cut short behind its header, a broken row and a prompt that is too long."""
    made = training_files.make(tmp_path, rows=12)
    (made["media"] / training_files.picture_name(1)).unlink()
    cut = made["media"] / training_files.picture_name(2)
    Image.effect_noise((200, 200), 50).save(cut)
    cut.write_bytes(cut.read_bytes()[:3000])
    rows = json.loads(made["ume_r1"].read_text())
    rows[4]["qry"]["conversations"][0]["value"] = "word " * 5000
    del rows[5]["pos"]
    made["ume_r1"].write_text(json.dumps(rows))
    return {"path": made["ume_r1"], "media_root": made["media"], "name": "spoilt", "on_error": "skip"}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_faulty_rows_are_replaced_alike_and_counted_in_any_process(
    spoilt: dict[str, object], tiny_backbone_path: Path, num_workers: int, caplog: pytest.LogCaptureFixture
) -> None:
    limited = load_processor(tiny_backbone_path, options=ProcessorOptions(num_frames=2, max_thought_tokens=200, max_prompt_tokens=400))
    source = open_source("ume_r1", spoilt)
    data = PairDataModule([source], limited, batch_size=4, num_steps=3, seed=0, num_workers=num_workers)
    keys = sorted(int(key) for batch in data.train_dataloader() for key in batch.keys)
    assert keys == sorted([0, 3, 3, 3, 6, 6, 6, 7, 8, 9, 10, 11])  # 1 and 2 give 3, 4 and 5 give 6
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        data.teardown("fit")
    assert "4 of 12 rows could not be used" in caplog.text
    assert "a field is missing or of another type: 1; a medium is missing or unreadable: 1; it does not become a prompt" in caplog.text


@pytest.mark.parametrize("num_workers", [0, 2])
def test_error_of_a_loading_process_is_the_same_line_as_without(spoilt: dict[str, object], processor: Processor, num_workers: int) -> None:
    source = open_source("ume_r1", {**spoilt, "on_error": "raise"})
    data = PairDataModule([source], processor, batch_size=12, num_steps=1, seed=0, num_workers=num_workers)
    with pytest.raises(DataError, match=r"^[^\n]*$") as caught:
        next(iter(data.train_dataloader()))
    assert "UME-sft-train.json, row" in str(caught.value)


def test_source_without_thoughts_says_so_where_thoughts_are_learnt(spoilt: dict[str, object], processor: Processor, tmp_path: Path) -> None:
    options = {**spoilt, "path": tmp_path / "UME-rl-train" / "UME-rl-train.json"}
    source = open_source("ume_r1", options)
    data = PairDataModule([source], processor, batch_size=4, num_steps=1, seed=0, with_cot=True)
    with pytest.raises(DataError, match="12 rows in a row, .*cannot be used; the first: .*query_cot is empty"):
        next(iter(data.train_dataloader()))
    with pytest.raises(DataError, match="its first 12 rows are all faulty.*rows of this file have no chains of thought"):
        open_source("ume_r1", {**options, "with_cot": True})
