"""What the parsers share: rows with checked values, media that are looked for, and a pool of candidates in which each is once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from datamodules.mmeb.profiles import Profile
from datamodules.mmeb.table import TaskRow
from twn_lightning.batches import Item
from twn_lightning.errors import DataError
from twn_lightning.media import load_video

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm")
"""Video files that are looked for where there is no folder of frames."""

MEND_ROW = "correct the row, or download the data set again"

_PLACEHOLDER = re.compile(r"(?:<\|[a-z_0-9]+\|>|<(?:image|video)>)[ \t]*\n?", re.IGNORECASE)
_SHOWN = 60


@dataclass(frozen=True)
class Problem:
    """Something in the files that the user can mend.

    Attributes:
        task: The task's name.
        file: The data set with its configuration and split, or the medium.
        row: Number of the row in that split, counted from 0; None if it is about no single row.
        what: What is wrong.
        way_out: What to do.
    """

    task: str
    file: str
    row: int | None
    what: str
    way_out: str

    def __str__(self) -> str:
        place = "" if self.row is None else f", row {self.row}"
        return f"{self.task}: {self.file}{place}: {self.what}: {self.way_out}."


class RowError(DataError):
    """A row that cannot be used; reading a task turns it into a `Problem`."""

    def __init__(self, what: str, way_out: str) -> None:
        super().__init__(what)
        self.what, self.way_out = what, way_out


class Row:
    """One row of a table, whose values are taken with a check.

    Args:
        values: Column → value.
        config: The configuration it comes from.
    """

    def __init__(self, values: Mapping[str, object], config: str) -> None:
        self._values, self.config = values, config

    def text(self, column: str) -> str:
        """A string, possibly empty."""
        value = self._values[column]
        if not isinstance(value, str):
            raise RowError(f"{column} is {shown(value)}, but must be a text", MEND_ROW)
        return value

    def optional_text(self, column: str) -> str:
        """A string; empty where the table has nothing."""
        return "" if self._values[column] is None else self.text(column)

    def identifier(self, column: str) -> str:
        """A name: a string that is not empty, or a whole number."""
        value = self._values[column]
        if isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        name = self.text(column)
        if not name:
            raise RowError(f"{column} is empty, but must name something", MEND_ROW)
        return name

    def texts(self, column: str) -> list[str]:
        """A list of at least one string."""
        value = self._values[column]
        if not isinstance(value, list) or not value or not all(isinstance(part, str) for part in value):
            raise RowError(f"{column} is {shown(value)}, but must be a list of texts, not an empty one", MEND_ROW)
        return value

    def number(self, column: str) -> int:
        """A whole number, possibly written as text."""
        value = self._values[column]
        try:
            return int(str(value))
        except ValueError as error:
            raise RowError(f"{column} is {shown(value)}, but must be a whole number", MEND_ROW) from error

    def entries(self, column: str, field: str) -> list[str]:
        """One text field of each object of a list, which may be empty."""
        value = self._values[column]
        found = [entry.get(field) if isinstance(entry, dict) else None for entry in value] if isinstance(value, list) else [None]
        if not all(isinstance(part, str) and part for part in found):
            raise RowError(f"{column} is {shown(value)}, but must be a list of objects with a text {field}", MEND_ROW)
        return [str(part) for part in found]


class Offer(NamedTuple):
    """A candidate before it is an `Item`: cheap to make, since the same one is offered by many rows."""

    key: str
    text: str = ""
    image: Path | None = None
    video: Path | None = None
    instruction: str = ""


@dataclass(frozen=True)
class Parsed:
    """What a row says.

    Attributes:
        item: The query.
        labels: Key of each relevant candidate → grade.
        offers: Candidates that the row brings, in its order.
    """

    item: Item
    labels: Mapping[str, float]
    offers: list[Offer]


class Media:
    """Finds a task's media, each once, and remembers what was found.

    Args:
        root: Folder of all data sets.
        task: Whose media.
    """

    def __init__(self, root: Path, task: TaskRow) -> None:
        self._root, self._task = root, task
        self._found: dict[str | tuple[str, ...], Path] = {}
        self.images: dict[Path, int] = {}
        self.videos: dict[Path, int] = {}
        self.faults: list[RowError] = []
        self.row = 0
        """Number of the row that asks."""

    def image(self, name: str) -> Path:
        """A picture by its path in the row; where there is none, that is noted and its first possible place is given."""
        return self._found.get(name) or self._known(name, (name,), self.images, self._image)

    def video(self, *names: str) -> Path:
        """A folder of frames or a video file, by its possible names; frames are preferred, as VLM2Vec reads them."""
        return self._known(names, names, self.videos, self._video)

    def folders(self, name: str) -> Iterator[Path]:
        """The places where a folder of this name may lie."""
        return (self._root / folder / name for folder in self._task.media)

    def _known(
        self, asked: str | tuple[str, ...], names: tuple[str, ...], seen: dict[Path, int], find: Callable[[tuple[str, ...]], Path | None]
    ) -> Path:
        if asked in self._found:
            return self._found[asked]
        path = find(names)
        if path is None:
            path = next(self.folders(names[0]))
            places = " or ".join(str(self._root / folder) for folder in self._task.media)
            self.faults.append(RowError(f"{names[0]} does not exist in {places}", "unpack the media there again"))
        else:
            seen.setdefault(path, self.row)
        self._found[asked] = path
        return path

    def _image(self, names: tuple[str, ...]) -> Path | None:
        return next((path for path in self.folders(names[0]) if path.is_file()), None)

    def _video(self, names: tuple[str, ...]) -> Path | None:
        for folder in self._task.media:
            for name in names:
                path = self._root / folder / name
                if path.is_file() or (path.is_dir() and next(path.iterdir(), None) is not None):
                    return path
                for suffix in VIDEO_SUFFIXES:
                    file = path.with_name(path.name + suffix)
                    if file.is_file():
                        return file
        return None


class Pool:
    """Candidates by key; the first one offered under a key stays."""

    def __init__(self) -> None:
        self.offers: dict[str, Offer] = {}
        self.counts: Counter[str] = Counter()

    def add(self, offers: list[Offer]) -> tuple[str, ...]:
        """The keys of a row's candidates, each once."""
        keys: dict[str, None] = {}
        for offer in offers:
            kept = self.offers.setdefault(offer.key, offer)
            if kept is not offer and kept != offer:
                self.counts["candidates that share a key with an earlier one of other content, which stays"] += 1
            if kept.key in keys:
                self.counts["candidates that a row names twice, and that count once"] += 1
            keys[kept.key] = None
        return tuple(keys)


class OfferedItems(Mapping[str, Item]):
    """Candidates as items, made when they are asked for.

    Args:
        offers: Key → candidate.
        clip_frames: Frames to decode of each video; None leaves that to the batch.
    """

    def __init__(self, offers: Mapping[str, Offer], *, clip_frames: int | None) -> None:
        self._offers, self._clip_frames = offers, clip_frames

    def __getitem__(self, key: str) -> Item:
        offer = self._offers[key]
        images = () if offer.image is None else (offer.image,)
        video = offer.video if offer.video is None or self._clip_frames is None else load_video(offer.video, num_frames=self._clip_frames)
        return Item(text=offer.text, images=images, video=video, instruction=offer.instruction)

    def __contains__(self, key: object) -> bool:
        return key in self._offers  # the Mapping's own would make the item

    def __iter__(self) -> Iterator[str]:
        return iter(self._offers)

    def __len__(self) -> int:
        return len(self._offers)


class TaskReader:
    """What a parser needs to know besides the row.

    Args:
        root: Folder of all data sets.
        task: The task.
        profile: How it is shown.
        instructions: Wording instead of that of the files or of the table: by task name for queries, by ``task/candidate`` for candidates, and for
            MomentSeeker's queries with a picture or a clip by ``task/image`` and ``task/video``.
    """

    def __init__(self, root: Path, task: TaskRow, profile: Profile, instructions: Mapping[str, str]) -> None:
        self.root, self.task, self.profile = root, task, profile
        self._instructions = instructions
        self.media = Media(root, task)

    def query_instruction(self, own: str = "", *, kind: str = "") -> str:
        """Instruction of a query.

        Args:
            own: The row's own wording.
            kind: ``image`` or ``video``, if the task has several kinds of queries.
        """
        chosen = self._instructions.get(f"{self.task.name}/{kind}", self._instructions.get(self.task.name))
        return clean(chosen if chosen is not None else own or self.task.query_instruction).strip()

    def candidate_instruction(self, own: str = "") -> str:
        """Instruction of a candidate; empty where the profile shows none."""
        if not self.profile.candidate_instructions:
            return ""
        chosen = self._instructions.get(f"{self.task.name}/candidate")
        return clean(chosen if chosen is not None else own or self.task.candidate_instruction).strip()


def clean(text: str) -> str:
    """The text without placeholders of media (``<|image_1|>``, ``<image>``), which the processor puts in itself; other white space stays as it is."""
    return _PLACEHOLDER.sub("", text)


def shown(value: object) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
