"""The six lines that the README shows as a user's own data."""

from pathlib import Path

import pytest

import datamodules.sources
from datamodules.pair_datamodule import PairDataModule
from datamodules.sources import open_source
from twn_lightning.models.backbones import load_processor
from twn_lightning.models.backbones.base import ProcessorOptions

EXAMPLE = Path(datamodules.sources.__file__).parent / "example" / "shapes.jsonl"
README = Path(__file__).parents[3] / "README.md"


def test_example_makes_a_batch_with_everything_in_it(tiny_backbone_path: Path) -> None:
    source = open_source("jsonl", {"path": EXAMPLE, "with_cot": True})
    assert (source.name, len(source)) == ("shapes", 6)
    processor = load_processor(tiny_backbone_path, options=ProcessorOptions(num_frames=4, max_thought_tokens=48))
    data = PairDataModule([source], processor, batch_size=6, num_steps=1, seed=0, with_cot=True, max_negatives=2)
    (batch,) = data.train_dataloader()
    assert sorted(batch.keys) == ["no-corners", *(f"shapes:{line}" for line in range(1, 6))]
    assert int(batch.query.images_per_row.sum()) == 4
    assert int(batch.query.videos_per_row.sum()) == 1
    assert batch.negative is not None
    assert len(batch.negative) == 3
    assert batch.query_thoughts is not None
    assert "4 + 3 = 7" in processor.decode(batch.query_thoughts)


def test_readme_shows_the_example_as_it_is() -> None:
    if not README.exists():
        pytest.skip("no README beside the tests")
    assert f"```json\n{EXAMPLE.read_text(encoding='utf-8')}```" in README.read_text(encoding="utf-8")
