"""Reads the fields of a row: texts without media placeholders, and paths of media that are there."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from datamodules.row_source import RowError
from twn_lightning.batches import Item, VideoSource
from twn_lightning.errors import ConfigError, DataError
from twn_lightning.media import check_image, check_video, load_image

OnError = Literal["raise", "skip"]
CheckMedia = Literal["open", "exists"]

_PLACEHOLDER = re.compile(r"\s*(?:<\|(?:image|video)_\d+\|>|<image>|<video>|<\|vision_start\|>|<\|(?:image|video)_pad\|>|<\|vision_end\|>)\s*")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9_+.-]*)://(.*)", re.DOTALL)


def without_placeholders(text: str) -> str:
    """The text without the tokens at which its original puts media; ours stand in front of it."""
    return _PLACEHOLDER.sub(" ", text).strip() if "<" in text else text.strip()


@dataclass(frozen=True)
class Media:
    """Where the media of a data set lie.

    Attributes:
        root: Folder of relative paths.
        check: open reads the header of a picture and the first frame of a video when its row is asked for; exists only looks whether they are there.
        schemes: Folder of each scheme of URIs such as ``mmeb_train://images/a.jpg``.
    """

    root: Path
    check: CheckMedia = "open"
    schemes: Mapping[str, Path] = field(default_factory=dict)

    def path(self, value: str, place: str, name: str) -> Path:
        """The file or folder of a path or URI.

        Raises:
            RowError: It is not there, or its scheme has no folder.
        """
        uri = _SCHEME.match(value)
        if uri is None:
            medium = self.root / value
        else:
            scheme, rest = uri.groups()
            if scheme not in self.schemes:
                raise RowError(f"{place}: {name} is {value!r}, but no folder is given for {scheme}://: name it in the option media.", "medium")
            medium = self.schemes[scheme] / rest
        if not medium.exists():
            raise RowError(f"{place}: {name} is {value!r}, but {medium} does not exist: put it there, or correct the folder of the media.", "medium")
        return medium


@dataclass(frozen=True)
class RowReader:
    """The fields of one row.

    Attributes:
        row: The row.
        place: Where it stands, for messages.
        media: Where its media lie.
    """

    row: Mapping[str, object]
    place: str
    media: Media

    def error(self, name: str, what: str) -> RowError:
        """A fault of a field."""
        return RowError(f"{self.place}: {name} {what}.", "field")

    def part(self, name: str) -> RowReader:
        """The fields of an object within the row.

        Raises:
            RowError: It is missing or no object.
        """
        value = self.row.get(name)
        if not isinstance(value, Mapping):
            raise self.error(
                name, f"is {'missing' if name not in self.row else shown(value)}, but must be an object (here are {', '.join(self.row)})"
            )
        return RowReader(value, f"{self.place}, {name}", self.media)

    def text(self, name: str, *, required: bool = False) -> str:
        """A text; empty where there is none.

        Raises:
            RowError: It is no text, or it is required and missing.
        """
        value = self.row.get(name)
        if value is None and not required:
            return ""
        if not isinstance(value, str):
            raise self.error(name, f"is {'missing' if name not in self.row else shown(value)}, but must be a text (here are {', '.join(self.row)})")
        return value

    def paths(self, name: str) -> tuple[str, ...]:
        """The paths of a field that holds one, a list of them, or nothing.

        Raises:
            RowError: It holds something else.
        """
        value = self.row.get(name)
        paths: list[str] = []
        for path in value if isinstance(value, list | tuple) else [value]:
            if not isinstance(path, str | None):
                raise self.error(name, f"is {shown(value)}, but must be a path or a list of paths")
            if path:
                paths.append(path)
        return tuple(paths)

    def images(self, name: str) -> tuple[Path, ...]:
        """The pictures of a field of paths.

        Raises:
            RowError: One is missing or unreadable.
        """
        return tuple(self.image(path, name) for path in self.paths(name))

    def image(self, value: str, name: str) -> Path:
        """A picture by its path.

        Raises:
            RowError: It is missing or unreadable.
        """
        path = self.media.path(value, self.place, name)
        if self.media.check == "open":
            try:
                check_image(path)
            except DataError as error:
                raise RowError(f"{self.place}: {name}: {error}", "medium") from error
        return path

    def video(self, name: str) -> VideoSource | None:
        """The clip of a field that holds a file, a folder of frames or a list of frames.

        Raises:
            RowError: It is missing or unreadable.
        """
        paths = self.paths(name)
        if len(paths) > 1:
            return tuple(load_image(self.image(path, name)) for path in paths)
        if not paths:
            return None
        path = self.media.path(paths[0], self.place, name)
        if self.media.check == "open":
            try:
                check_video(path)
            except DataError as error:
                raise RowError(f"{self.place}: {name}: {error}", "medium") from error
        return path

    def item(self, side: str, item: Item) -> Item:
        """The item, if it shows something.

        Raises:
            RowError: It has no text, picture or clip.
        """
        if not (item.text.strip() or item.images or item.video):
            raise RowError(f"{self.place}: {side} shows nothing: give it a text, a picture or a clip, or set on_error=skip.", "empty")
        return item


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """What every source of rows can be told."""

    max_rows: int | None = None
    """Take the first so many rows; None for all."""
    on_error: OnError = "raise"
    """What a faulty row does: raise stops; skip lets the next usable one stand in for it, and counts."""
    check_media: CheckMedia = "open"
    """open reads the header of a row's pictures and the first frame of its clips before they are used (pictures within tables are decoded); exists
    only looks whether they are there."""

    def __post_init__(self) -> None:
        if self.max_rows is not None and self.max_rows < 1:
            raise ConfigError(f"max_rows is {self.max_rows}, but it counts rows: choose 1 or more, or leave it out for all.")


def shown(value: object) -> str:
    """A value in a message, shortened."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}…"
