"""Which rows make up batch i: a pure function of the seed, i, the rank and the number of ranks."""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from twn_lightning.errors import ConfigError, DataError

_BLOCK = 64
"""Batches whose sources are drawn together; within them each source has its share, but for less than one batch."""

_CHOOSE_SOURCE, _SHUFFLE_ROWS = 0, 1


@dataclass(frozen=True)
class Draw:
    """One batch of one rank.

    Attributes:
        source: The source's name, the same on all ranks.
        rows: Row numbers within the source.
    """

    source: str
    rows: tuple[int, ...]


class BatchPlan:
    """The order of training.

    A source is visited in epochs, each a new permutation. A source of at least ``batch_size * world_size`` rows gives only whole batches,
    so that no row is twice in a batch; what is left over at an epoch's end differs from epoch to epoch. A smaller source runs on into its
    next epoch within a batch.
    Ranks take consecutive slices: two ranks of 4 see together what one rank of 8 sees.

    Args:
        sizes: Rows of each source, by name.
        weights: Relative share of batches by source name; 1 for a source without a weight, 0 leaves a source out.
        batch_size: Pairs a batch and rank.
        seed: Seed of the order, 0 or more.

    Raises:
        ConfigError: A weight names no source, or is negative, or all are 0; a number is out of range.
        DataError: There is no source, or one has no rows.
    """

    def __init__(self, sizes: Mapping[str, int], weights: Mapping[str, float] | None = None, *, batch_size: int, seed: int) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}: a batch needs at least one pair.")
        if seed < 0:
            raise ConfigError(f"seed is {seed}, but generators take no negative seed: choose 0 or more.")
        if not sizes:
            raise DataError("There is no data source to train on: name at least one.")
        for name, size in sizes.items():
            if size < 1:
                raise DataError(f"Data source {name!r} has no rows: fill it, or give it the weight 0 by leaving it out.")
        self._names = tuple(sorted(sizes))  # the order does not depend on how the sources were listed
        self._sizes = dict(sizes)
        self._batch_size = batch_size
        self._seed = seed
        self._ends = np.cumsum(source_shares(self._names, weights or {}))
        self._blocks: list[NDArray[np.int64]] = []
        self._counts: list[NDArray[np.int64]] = [np.zeros(len(self._names), dtype=np.int64)]
        self._permutations: dict[str, tuple[int, NDArray[np.int64]]] = {}

    @property
    def seed(self) -> int:
        """Seed of the order."""
        return self._seed

    def draw(self, index: int, *, rank: int = 0, world_size: int = 1) -> Draw:
        """The rows of a batch.

        Args:
            index: Number of the batch, 0 or more; there is no last one.
            rank: Which of the ranks asks.
            world_size: Number of ranks.
        """
        assert index >= 0
        assert 0 <= rank < world_size
        block, offset = divmod(index, _BLOCK)
        self._grow(block)
        source = int(self._blocks[block][offset])
        earlier = int(self._counts[block][source] + np.count_nonzero(self._blocks[block][:offset] == source))
        name = self._names[source]
        return Draw(source=name, rows=self._rows(name, earlier, rank, world_size))

    def _rows(self, name: str, earlier: int, rank: int, world_size: int) -> tuple[int, ...]:
        size, together = self._sizes[name], self._batch_size * world_size
        first = rank * self._batch_size
        if size >= together:
            epoch, batch = divmod(earlier, size // together)
            start = batch * together + first
            return tuple(int(row) for row in self._permutation(name, epoch)[start : start + self._batch_size])
        positions = range(earlier * together + first, earlier * together + first + self._batch_size)
        return tuple(int(self._permutation(name, position // size)[position % size]) for position in positions)

    def _permutation(self, name: str, epoch: int) -> NDArray[np.int64]:
        kept_epoch, kept = self._permutations.get(name, (-1, np.empty(0, dtype=np.int64)))
        if kept_epoch == epoch:
            return kept
        digest = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
        permutation = np.random.default_rng([self._seed, _SHUFFLE_ROWS, digest, epoch]).permutation(self._sizes[name])
        self._permutations[name] = (epoch, permutation)
        return permutation

    def _grow(self, block: int) -> None:
        while len(self._blocks) <= block:
            generator = np.random.default_rng([self._seed, _CHOOSE_SOURCE, len(self._blocks)])
            # Evenly spaced points with a common random offset: expectations are exact, and shares hold within every block.
            points = generator.permutation((np.arange(_BLOCK) + generator.random()) / _BLOCK)
            chosen = np.searchsorted(self._ends, points * self._ends[-1], side="right").astype(np.int64)
            self._blocks.append(chosen)
            self._counts.append(self._counts[-1] + np.bincount(chosen, minlength=len(self._names)))


def source_shares(names: tuple[str, ...], weights: Mapping[str, float]) -> list[float]:
    """Relative share of each source, in the order of the names.

    Raises:
        ConfigError: A weight names no source, is negative or not finite, or all are 0.
    """
    for name, weight in weights.items():
        if name not in names:
            raise ConfigError(f"weights.{name} is {weight}, but there is no source of that name. {did_you_mean(name, names)}")
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"weights.{name} is {weight}, but it is a relative share of batches: choose 0 (never drawn) or more.")
    shares = [float(weights.get(name, 1.0)) for name in names]
    if not sum(shares):
        raise ConfigError(f"All weights are 0, so there is no source to draw from: give one of {', '.join(names)} a positive weight.")
    return shares


def did_you_mean(word: str, known: tuple[str, ...]) -> str:
    """A sentence that offers the nearest known word, or all of them."""
    near = difflib.get_close_matches(word, known, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
