"""What a data set must offer to be trained on."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from datamodules.digests import content_digest, text_digest
from twn_lightning.batches import Pair


@runtime_checkable
class PairSource(Protocol):
    """Numbered query–positive pairs of one kind; batches are made within one source.

    A source is sent to the processes that load data, so it must be picklable; it should hold paths rather than decoded media where it is large.
    """

    @property
    def name(self) -> str:
        """The source's name in weights, batches and logs."""
        ...

    def __len__(self) -> int:
        """Number of pairs."""
        ...

    def __getitem__(self, index: int) -> Pair:
        """The pair of a row, the same whenever it is asked for."""
        ...

    def digest(self) -> str:
        """Hexadecimal digest of everything the pairs are made from."""
        ...


class InMemorySource:
    """Pairs that are there already.

    Args:
        name: The source's name.
        pairs: The rows; their ``source`` becomes the name.
        fingerprint: Stands for the rows in `digest` where they are known by other means; empty computes it from their content.
    """

    def __init__(self, name: str, pairs: Sequence[Pair], *, fingerprint: str = "") -> None:
        self._name = name
        self._pairs = tuple(dataclasses.replace(pair, source=name) for pair in pairs)
        self._fingerprint = fingerprint

    @property
    def name(self) -> str:
        """The source's name."""
        return self._name

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> Pair:
        return self._pairs[index]

    def digest(self) -> str:
        """Hexadecimal digest of the fingerprint, or of the rows' content."""
        if self._fingerprint:
            return text_digest([self._name, self._fingerprint])
        return text_digest(itertools.chain([self._name], *(_row(pair) for pair in self._pairs)))


def _row(pair: Pair) -> list[str]:
    items = (pair.query, pair.positive, *pair.negatives)
    shown = [f"{item.instruction}\0{content_digest(item).hex()}" for item in items]
    return [pair.key, pair.positive_key, pair.query_cot, pair.positive_cot, *shown]
