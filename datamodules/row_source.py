"""Pairs made of rows when they are asked for, with one answer to faulty rows for every data set."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar, cast, get_args

import numpy as np
import torch
from torch import Tensor

from twn_lightning.batches import Pair
from twn_lightning.errors import DataError

_log = logging.getLogger(__name__)

Fault = Literal["json", "field", "empty", "medium", "thought", "prompt"]
"""Kinds of faults of a row."""

FAULT_TITLES: dict[Fault, str] = {
    "json": "no valid JSON",
    "field": "a field is missing or of another type",
    "empty": "a side shows nothing",
    "medium": "a medium is missing or unreadable",
    "thought": "no usable chain of thought",
    "prompt": "it does not become a prompt (too long, or it holds a marker)",
}

Repair = Literal["markers", "blank"]
"""Kinds of repairs of a row."""

REPAIR_TITLES: dict[Repair, str] = {
    "markers": "left-over markers removed from a chain of thought",
    "blank": "a blank stand-in picture left out",
}

_FAULTS = get_args(Fault)
_REPAIRS = get_args(Repair)
_FAULT_BITS = 0b111
_MAX_FAULTY_IN_A_ROW = 1000
_NUM_FIRST_ROWS = 16


class RowError(DataError):
    """A row that cannot be used.

    Args:
        message: Where, what and the way out.
        fault: Which kind of fault; equal kinds are reported once and counted.
    """

    def __init__(self, message: str, fault: Fault = "field") -> None:
        super().__init__(message)
        self.fault: Fault = fault


@dataclass(frozen=True)
class Reading:
    """A row as a pair.

    Attributes:
        pair: The pair, without its source's name.
        repairs: What was mended in it.
    """

    pair: Pair
    repairs: tuple[Repair, ...] = ()


RowT_co = TypeVar("RowT_co", covariant=True)
RowT = TypeVar("RowT")


class Rows(Protocol[RowT_co]):
    """Rows by number."""

    def __len__(self) -> int:
        """How many there are."""

    def __getitem__(self, index: int, /) -> RowT_co:
        """The row of a number."""


class RowTally:
    """Which rows were found faulty or mended, by whichever process of a data loader asked for them.

    Args:
        num_rows: Rows of the source.
    """

    def __init__(self, num_rows: int) -> None:
        # Shared memory: what a worker finds, the training process can report. A row has its own byte, so that no count is lost or made twice.
        self._rows = _shared_zeros(num_rows)
        self._said = _shared_zeros(len(_FAULTS) + 1)

    def add_fault(self, index: int, fault: Fault) -> bool:
        """Notes a faulty row; True for the first one of its kind."""
        code = _FAULTS.index(fault) + 1
        self._rows[index] = (int(self._rows[index]) & ~_FAULT_BITS) | code
        is_first = not bool(self._said[code])
        self._said[code] = 1
        return is_first

    def add_repairs(self, index: int, repairs: tuple[Repair, ...]) -> None:
        """Notes what was mended in a row."""
        for repair in repairs:
            self._rows[index] = int(self._rows[index]) | (_FAULT_BITS + 1 << _REPAIRS.index(repair))

    def faults(self) -> dict[Fault, int]:
        """Faulty rows met so far by kind, none of the kinds that were not met."""
        codes = np.bincount(self._rows.numpy() & _FAULT_BITS, minlength=len(_FAULTS) + 1)
        return {fault: int(codes[number]) for number, fault in enumerate(_FAULTS, start=1) if codes[number]}

    def repairs(self) -> dict[Repair, int]:
        """Mended rows met so far by kind, none of the kinds that were not met."""
        counts = {repair: int(np.count_nonzero(self._rows.numpy() & (_FAULT_BITS + 1 << bit))) for bit, repair in enumerate(_REPAIRS)}
        return {repair: count for repair, count in counts.items() if count}


def _shared_zeros(length: int) -> Tensor:
    zeros: Tensor = torch.zeros(length, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
    return zeros


class RowSource(Generic[RowT]):
    """A `PairSource` over rows that are read and parsed when they are asked for.

    A faulty row shows when it is asked for. With ``on_error="raise"`` it is an error. With ``skip`` the next usable row stands in for it: the same
    one in every process and every run; each kind of fault is named once, and `report` counts them.

    Args:
        name: The source's name.
        rows: The rows; picklable.
        parse: Makes a pair of a row and its number, or raises `RowError`; picklable. The pair's source is filled in afterwards.
        digest: Hexadecimal digest of everything the pairs are made from.
        on_error: What a faulty row does.
        max_rows: Take the first so many; None for all.

    Raises:
        DataError: There are no rows, or the first one is faulty (with ``skip``: the first ones all are).
    """

    def __init__(
        self,
        name: str,
        rows: Rows[RowT],
        parse: Callable[[RowT, int], Reading],
        *,
        digest: str,
        on_error: Literal["raise", "skip"] = "raise",
        max_rows: int | None = None,
    ) -> None:
        self._name = name
        self._rows = rows
        self._parse = parse
        self._digest = digest
        self.on_error = on_error
        self._length = len(rows) if max_rows is None else min(max_rows, len(rows))
        if not self._length:
            raise DataError(f"Data source {name!r} has no rows: check its path and options.")
        self._tally = RowTally(self._length)
        self._look_at_first_rows()

    @property
    def name(self) -> str:
        """The source's name."""
        return self._name

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Pair:
        return self.usable(index)

    def digest(self) -> str:
        """Hexadecimal digest of everything the pairs are made from."""
        return self._digest

    def read(self, index: int) -> Reading:
        """The pair of a row and what was mended in it, whatever ``on_error`` says.

        Raises:
            RowError: The row is faulty.
        """
        if not 0 <= index < self._length:
            raise IndexError(index)
        reading = self._parse(self._row(index), index)
        return Reading(dataclasses.replace(reading.pair, source=self._name), reading.repairs)

    def usable(self, index: int, check: Callable[[Pair], object] = lambda pair: None) -> Pair:
        """The pair of a row; with ``on_error="skip"`` of the next row, from this one on and around, that can be used.

        Args:
            index: Number of the row.
            check: Raises `DataError` for a pair that cannot be used for a reason which shows only later, such as its length in tokens.

        Raises:
            DataError: The row is faulty, or (``skip``) so many after it that the data must be wrong as a whole.
        """
        num_tries = min(self._length, _MAX_FAULTY_IN_A_ROW)
        first: DataError | None = None
        for number in range(num_tries):
            row = (index + number) % self._length
            try:
                reading = self.read(row)
                check(reading.pair)
            except DataError as error:
                if self.on_error == "raise":
                    raise
                first = first or error
                self._note(row, error)
                continue
            self._tally.add_repairs(row, reading.repairs)
            return reading.pair
        raise DataError(
            f"Data source {self._name!r}: {num_tries} rows in a row, from row {index + 1} on, cannot be used; the first: {first} "
            "python -m experiments.check_data lists them all."
        ) from first

    def faults(self) -> dict[Fault, int]:
        """Rows met so far that could not be used, by kind."""
        return self._tally.faults()

    def repairs(self) -> dict[Repair, int]:
        """Rows met so far that were mended, by kind."""
        return self._tally.repairs()

    def report(self) -> list[str]:
        """What became of the rows met so far: a sentence on faulty ones, a sentence on mended ones, nothing if all were as they should be."""
        faults, repairs = self.faults(), self.repairs()
        sentences = []
        if faults:
            counted = "; ".join(f"{FAULT_TITLES[fault]}: {count}" for fault, count in faults.items())
            sentences.append(
                f"Source {self._name!r}: {sum(faults.values())} of {self._length} rows could not be used, the next usable row stood in ({counted})."
            )
        if repairs:
            counted = "; ".join(f"{REPAIR_TITLES[repair]}: {count}" for repair, count in repairs.items())
            sentences.append(f"Source {self._name!r}: rows that were mended ({counted}).")
        return sentences

    def _row(self, index: int) -> RowT:
        try:
            return self._rows[index]
        except DataError as error:
            raise error if isinstance(error, RowError) else RowError(str(error), "json") from error

    def _note(self, index: int, error: DataError) -> None:
        fault = cast("Fault", getattr(error, "fault", "prompt"))
        if self._tally.add_fault(index, fault):
            _log.warning(
                "Source %r: a row cannot be used, the next usable one stands in; further ones of this kind are only counted. %s", self._name, error
            )

    def _look_at_first_rows(self) -> None:
        """A wrong field or folder, which spoils every row, is answered before training."""
        if self.on_error == "raise":
            self.read(0)
            return
        first: DataError | None = None
        for index in range(min(self._length, _NUM_FIRST_ROWS)):
            try:
                self.read(index)
            except DataError as error:
                first = first or error
            else:
                return
        raise DataError(
            f"Data source {self._name!r}: its first {min(self._length, _NUM_FIRST_ROWS)} rows are all faulty; the first: {first}"
        ) from first
