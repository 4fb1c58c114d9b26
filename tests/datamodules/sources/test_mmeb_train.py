from collections.abc import Callable
from pathlib import Path

import pytest

from datamodules.row_source import RowSource
from datamodules.sources import open_source
from datamodules.sources.mmeb_train import CONFIGS
from tests.support import training_files
from twn_lightning.batches import Item, Pair
from twn_lightning.errors import ConfigError, DataError

Open = Callable[..., RowSource[dict[str, object]]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return training_files.make(tmp_path_factory.mktemp("mmeb"), rows=6)


@pytest.fixture
def opened(made: dict[str, Path]) -> Open:
    def open_config(config: str, **options: object) -> RowSource[dict[str, object]]:
        source = open_source("mmeb_train", {"path": str(made["mmeb_train"]), "config": config, "media_root": str(made["media"]), **options})
        assert isinstance(source, RowSource)
        return source

    return open_config


def test_rows_lose_the_placeholder_and_empty_paths_are_no_pictures(made: dict[str, Path], opened: Open) -> None:
    source = opened("ImageNet_1K")
    assert (source.name, len(source)) == ("ImageNet_1K", 6)
    assert source[0] == Pair(
        query=Item("Represent the given image for classification", images=(made["media"] / training_files.picture_name(0),)),
        positive=Item("flag of Afghanistan"),
        source="ImageNet_1K",
        key="0",
    )
    pair = opened("MSCOCO_t2i")[1]
    assert pair.query == Item("Find me a picture of: the flag of Albania")
    assert pair.positive == Item("Represent the given image.", images=(made["media"] / training_files.picture_name(1),))


def test_hard_negatives_are_used_and_empty_ones_are_none(made: dict[str, Path], opened: Open) -> None:
    assert opened(training_files.NEGATIVES_IN)[0].negatives == (Item("Represent the given image.", images=(made["media"] / "images" / "blank.jpg",)),)
    assert opened("ImageNet_1K")[0].negatives == ()


def test_both_splits_and_the_first_rows_can_be_had(opened: Open) -> None:
    diverse = opened("ImageNet_1K", split="diverse_instruction", name="diverse", max_rows=2)
    assert (diverse.name, len(diverse)) == ("diverse", 2)
    assert diverse[1].query.text == "Encode this picture to name what it shows"
    digests = {opened("ImageNet_1K", **options).digest() for options in ({}, {"split": "diverse_instruction"}, {"max_rows": 2}, {"name": "x"})}
    assert len(digests) == 3  # a name changes nothing


def test_the_twenty_configurations_are_known(opened: Open) -> None:
    assert len(CONFIGS) == 20
    with pytest.raises(ConfigError, match="'ImageNet' is no configuration of MMEB-train. Did you mean 'ImageNet_1K'"):
        opened("ImageNet")
    with pytest.raises(ConfigError, match="max_rows is 0"):
        opened("ImageNet_1K", max_rows=0)
    with pytest.raises(ConfigError, match="split of the data source 'mmeb_train' is 'train', but must be 'original' or 'diverse_instruction'"):
        opened("ImageNet_1K", split="train")


def test_what_is_missing_is_named(made: dict[str, Path], opened: Open, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"MMEB-train/ImageNet_1K/original, row 1: qry_image_path is 'images/flags/0\.jpg', but .*0\.jpg does not exist"
    ):
        opened("ImageNet_1K", media_root=str(tmp_path))
    with pytest.raises(DataError, match="SUN397"):
        opened("SUN397")
    with pytest.raises(DataError, match="nowhere"):
        opened("ImageNet_1K", path=str(tmp_path / "nowhere"))
