"""What a user hands over - words, pictures, files, addresses, mixtures of them - as the items that a model reads."""

from __future__ import annotations

import difflib
import io
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias
from urllib.parse import urlsplit
from urllib.request import url2pathname

from PIL import Image

from twn_lightning.batches import ImageSource, Item, VideoSource
from twn_lightning.errors import DataError
from twn_lightning.media import IMAGE_SUFFIXES, VIDEO_SUFFIXES, decoded_image, is_folder
from twn_lightning.utf8 import is_utf8

EncoderInput: TypeAlias = str | Path | Image.Image | Item | Mapping[str, object]
"""One input.

A string is words, always. A path is a picture, a clip, or a folder of frames. A mapping has some of the keys "text", "image" (a picture, or a list of
them), "video" and "instruction"; a picture there is a PIL image, a path, or an address that fsspec opens ("https://…", "s3://…", "file://…"); a clip
is a path, an address, or a sequence of PIL images.
"""

FIELDS = ("text", "image", "video", "instruction")


def to_item(value: EncoderInput, *, copies: ExitStack, instruction: str | None = None) -> Item:
    """The item that an input stands for. Files are not opened; addresses are fetched.

    Args:
        value: The input.
        copies: Removes the copies of clips that were fetched, when it is closed.
        instruction: Of an input that brings none.

    Raises:
        DataError: It is none of these things, or an address cannot be fetched.
    """
    item = _item(value, copies)
    if instruction and not item.instruction:
        item = replace(item, instruction=instruction)
    if not (item.text.strip() or item.images or item.video is not None or item.instruction.strip()):
        raise DataError("It is empty: give words, a picture or a clip.")
    if not is_utf8(item.text + item.instruction):
        raise DataError("Its words hold half of a surrogate pair, which is no text: decode them with errors='replace'.")
    return item


def _item(value: object, copies: ExitStack) -> Item:
    if isinstance(value, Item):
        return value
    if isinstance(value, str):
        return Item(text=value)
    if isinstance(value, Image.Image):
        return Item(images=(value,))
    if isinstance(value, Path):
        return Item(video=value) if value.suffix.lower() in VIDEO_SUFFIXES or is_folder(value) else Item(images=(_picture_file(value),))
    if isinstance(value, Mapping):
        return _from_mapping(value, copies)
    raise DataError(
        f"An input is a {type(value).__name__}: give words (str), a file (pathlib.Path), a PIL image, or a dict of {', '.join(FIELDS)}. "
        "An array becomes a picture with PIL.Image.fromarray."
    )


def _picture_file(path: Path) -> Path:
    if path.suffix and path.suffix.lower() not in IMAGE_SUFFIXES:
        raise DataError(
            f"{path}: its ending says neither picture ({', '.join(IMAGE_SUFFIXES)}) nor video ({', '.join(VIDEO_SUFFIXES)}): rename it, or give a "
            "dict that says what it is, as {'image': path}; words are given as a string."
        )
    return path


def _from_mapping(value: Mapping[object, object], copies: ExitStack) -> Item:
    unknown = [str(key) for key in value if key not in FIELDS]
    if unknown:
        near = difflib.get_close_matches(unknown[0], FIELDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose among {', '.join(FIELDS)}."
        raise DataError(f"An input has the key {unknown[0]!r}: {hint}")
    images = value.get("image")
    if images is None or images == "":
        images = ()
    elif isinstance(images, str | Path | Image.Image):
        images = (images,)
    if not isinstance(images, Sequence):
        raise DataError(f"An input's image is a {type(images).__name__}: give a PIL image, a path, an address, or a list of them.")
    return Item(
        text=_words(value, "text"),
        images=tuple(map(_image, images)),
        video=_video(value.get("video"), copies),
        instruction=_words(value, "instruction"),
    )


def _words(value: Mapping[object, object], key: str) -> str:
    words = value.get(key)
    if words is not None and not isinstance(words, str):
        raise DataError(f"An input's {key} is a {type(words).__name__}: give a string.")
    return words or ""


def _image(source: object) -> ImageSource:
    if isinstance(source, Image.Image | Path):
        return source
    if isinstance(source, str):
        return decoded_image(io.BytesIO(_fetched(source)), name=source) if _is_address(source) else Path(source)
    raise DataError(f"An input's image is a {type(source).__name__}: give a PIL image, a path, or an address.")


def _video(source: object, copies: ExitStack) -> VideoSource | None:
    if source is None or source == "":
        return None
    if isinstance(source, Path):
        return source
    if isinstance(source, str):
        if source.startswith("file://"):
            return Path(url2pathname(urlsplit(source).path))
        return _copy(source, copies) if _is_address(source) else Path(source)
    if isinstance(source, Sequence):
        frames = [frame for frame in source if isinstance(frame, Image.Image)]
        if len(frames) == len(source):
            return tuple(frames)
    raise DataError(f"An input's video is a {type(source).__name__}: give a path, an address, or a list of PIL images.")


def _is_address(source: str) -> bool:
    return "://" in source


def _fetched(address: str) -> bytes:
    import fsspec

    try:
        with fsspec.open(address, "rb") as file:
            return bytes(file.read())
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise DataError(f"{address[:200]}: this address cannot be fetched ({why}): mend it, or download the file and give its path.") from error


def _copy(address: str, copies: ExitStack) -> Path:
    content = _fetched(address)
    with tempfile.NamedTemporaryFile(prefix="twn-", suffix=Path(address.partition("?")[0]).suffix, delete=False) as file:
        copies.callback(Path(file.name).unlink, missing_ok=True)
        file.write(content)
    return Path(file.name)
