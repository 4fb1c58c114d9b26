"""Turns the pairs of a batch into what the model reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from datamodules.digests import content_digest, stable_hash
from datamodules.row_source import RowError
from twn_lightning.batches import Item, Pair, PairBatch, Thoughts
from twn_lightning.errors import ConfigError

if TYPE_CHECKING:
    from twn_lightning.models.backbones.base import Processor


class PairCollator:
    """Makes a `PairBatch` of pairs of one source; opens their media.

    Args:
        processor: Turns items into prompts and chains of thought into tokens.
        with_cot: Also give the reference chains of thought of both sides.
        max_negatives: Hard negatives taken of each pair, the first ones; 0 for none.
    """

    def __init__(self, processor: Processor, *, with_cot: bool = False, max_negatives: int = 0) -> None:
        if max_negatives < 0:
            raise ConfigError(f"max_negatives is {max_negatives}, but it is a count: choose 0 for none.")
        self._processor = processor
        self._with_cot = with_cot
        self._max_negatives = max_negatives

    def __call__(self, pairs: Sequence[Pair]) -> PairBatch:
        """The batch, in the order of the pairs; negatives of all rows one after another.

        Raises:
            DataError: A chain of thought is wanted and empty, or a medium cannot be opened.
        """
        assert pairs
        source = pairs[0].source
        assert all(pair.source == source for pair in pairs), "a batch is of one source"
        negatives = [negative for pair in pairs for negative in pair.negatives[: self._max_negatives]]
        # Thoughts first: one that is missing is found before any medium is opened.
        query_thoughts, positive_thoughts = self._thoughts(pairs, "query_cot"), self._thoughts(pairs, "positive_cot")
        keyed = {content_digest(pair.positive): target_hash(pair) for pair in pairs}
        return PairBatch(
            query=self._processor.inputs([pair.query for pair in pairs]),
            positive=self._processor.inputs([pair.positive for pair in pairs]),
            positive_hash=torch.tensor([target_hash(pair) for pair in pairs], dtype=torch.int64),
            source=source,
            keys=tuple(pair.key for pair in pairs),
            negative=self._processor.inputs(negatives) if negatives else None,
            negative_hash=_negative_hash(negatives, keyed) if negatives else None,
            query_thoughts=query_thoughts,
            positive_thoughts=positive_thoughts,
        )

    def _thoughts(self, pairs: Sequence[Pair], field: str) -> Thoughts | None:
        if not self._with_cot:
            return None
        texts: list[str] = [getattr(pair, field) for pair in pairs]
        for pair, text in zip(pairs, texts, strict=True):
            if not text.strip():
                raise RowError(
                    f"{pair.source}, row {pair.key!r}: {field} is empty, but this stage learns to write thoughts: "
                    "give every row its chain of thought, or leave the source out of this stage.",
                    "thought",
                )
        return self._processor.thoughts(texts)


def target_hash(pair: Pair) -> int:
    """Equal for equal targets: of the source and `positive_key` where there is one, else of what the positive shows."""
    if pair.positive_key:
        return stable_hash(f"{pair.source}\0{pair.positive_key}".encode())
    return stable_hash(content_digest(pair.positive))


def _negative_hash(negatives: Sequence[Item], keyed: Mapping[bytes, int]) -> Tensor:
    digests = [content_digest(negative) for negative in negatives]
    # A negative of one row that is the positive of another carries that positive's hash, whatever that was made from.
    return torch.tensor([keyed.get(digest, stable_hash(digest)) for digest in digests], dtype=torch.int64)
