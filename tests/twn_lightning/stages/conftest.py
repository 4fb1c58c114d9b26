"""Batches of pairs of every modality."""

from collections.abc import Callable, Sequence

import pytest

from datamodules.collate import PairCollator
from twn_lightning.batches import Item, Pair, PairBatch
from twn_lightning.models.dual_lora import DualLoRAModel


@pytest.fixture
def make_pairs(make_items: Callable[[int], list[Item]]) -> Callable[[int], list[Pair]]:
    """Pairs whose queries are text, image, video, two images, image in turn; pairs 0 and 2 have the same target."""

    def make(number: int) -> list[Pair]:
        return [
            Pair(
                query=item,
                positive=Item(text=f"answer {0 if index == 2 else index}"),
                negatives=(Item(text=f"wrong {index}"),) if index % 2 else (),
                query_cot=f"it shows {index}, so it is {index}",
                positive_cot=f"{index}",
                source="mixed",
                key=str(index),
            )
            for index, item in enumerate(make_items(number))
        ]

    return make


@pytest.fixture
def make_batch(make_pairs: Callable[[int], list[Pair]]) -> Callable[..., PairBatch]:
    """A batch of the first pairs, or of given ones, with thoughts and hard negatives."""

    def make(model: DualLoRAModel, number: int = 4, *, pairs: Sequence[Pair] | None = None) -> PairBatch:
        return PairCollator(model.processor, with_cot=True, max_negatives=1)(pairs if pairs is not None else make_pairs(number))

    return make
