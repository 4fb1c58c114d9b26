"""Names for what vectors are made of: items by what they show, files by their content, a model by all of its weights, the code by its text."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
from collections.abc import Iterable
from pathlib import Path

from twn_lightning import __version__
from twn_lightning.batches import ImageSource, Item
from twn_lightning.errors import DataError
from twn_lightning.media import frame_files, is_folder, load_image

CODE = ("batches.py", "inputs.py", "media.py", "models", "engine", "evaluation/encode.py", "evaluation/encode_batches.py", "integrations/vllm.py")
"""Files and folders of this package in which an item becomes a prompt and a prompt a vector."""
PACKAGES = ("torch", "torchvision", "transformers", "peft", "pillow", "av")
"""Packages that compute them."""

_WHOLE, _PIECE, _PIECES = 16 * 2**20, 2**20, 16


def item_digest(item: Item, *, by_content: bool) -> bytes:
    """Names everything an item shows, 16 bytes: words, decoded pictures by their pixels, files by their content or their path.

    Args:
        item: Its media files must be there if they count by content; a folder of frames counts by the names and contents of its pictures.
        by_content: Reads the files (larger ones in part, see `file_digest`): a small part of what decoding them costs. False takes their paths,
            which name a picture within one run of the program.

    Raises:
        DataError: A media file cannot be read.
    """

    def content(medium: ImageSource) -> bytes:
        if isinstance(medium, Path):
            return _medium_digest(medium) if by_content else str(medium).encode()
        picture = load_image(medium)  # as it is shown: with its palette, upright
        return f"{picture.size}".encode() + picture.tobytes()

    frames = item.video if isinstance(item.video, tuple) else () if item.video is None else (item.video,)
    video = "none" if item.video is None else "frames" if isinstance(item.video, tuple) else "file"
    parts = [repr((item.text, item.instruction, len(item.images), video)).encode(), *map(content, item.images), *map(content, frames)]
    return _joined(parts)


def file_digest(path: Path) -> bytes:
    """Names a file's content, 16 bytes; of a file above 16 MiB its size and sixteen evenly spread MiB, its ends included.

    Raises:
        DataError: It cannot be read.
    """
    try:
        facts = path.stat()
        return _file_digest(path, facts.st_size, facts.st_mtime_ns)
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the path
        raise DataError(f"{path}: this file cannot be read ({getattr(error, 'strerror', error)}): put it there, or correct its path.") from error


def folder_digest(folder: Path) -> str:
    """Names the names and whole contents of all files in a folder and below it, hidden ones left out; a model's folder takes about a second a GB.

    Raises:
        DataError: A file cannot be read.
    """
    hasher = hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts):
            continue
        try:
            with path.open("rb") as content:
                hasher.update(_joined([name.as_posix().encode(), hashlib.file_digest(content, "blake2b").digest()]))
        except OSError as error:
            raise DataError(f"{path}: this file cannot be read ({error.strerror}): mend its permissions, or copy the folder again.") from error
    return hasher.hexdigest()


def code_digest(package: Path = Path(__file__).parents[1]) -> str:
    """Names the version of this package, the text of the code that makes prompts and vectors, and the versions of the packages that compute them.

    Args:
        package: Folder of the code.
    """
    files = sorted(file for name in CODE for file in ([package / name] if (package / name).is_file() else (package / name).rglob("*.py")))
    parts = [__version__.encode(), *(f"{name} {importlib.metadata.version(name)}".encode() for name in PACKAGES)]
    parts += [part for file in files for part in (file.relative_to(package).as_posix().encode(), file.read_bytes())]
    return _joined(parts).hex()


def _medium_digest(path: Path) -> bytes:
    if not is_folder(path):
        return file_digest(path)
    return _joined([part for file in frame_files(path) for part in (file.name.encode(), file_digest(file))])


@functools.lru_cache(maxsize=2**16)
def _file_digest(path: Path, size: int, changed: int) -> bytes:
    """See `file_digest`; asked again for a file that has not changed since, it is not read again."""
    hasher = hashlib.blake2b(f"{size} ".encode(), digest_size=16)
    with path.open("rb") as content:
        if size <= _WHOLE:
            hasher.update(content.read())
        else:
            for piece in range(_PIECES):
                content.seek((size - _PIECE) * piece // (_PIECES - 1), os.SEEK_SET)
                hasher.update(content.read(_PIECE))
    return hasher.digest()


def _joined(parts: Iterable[bytes]) -> bytes:
    return hashlib.blake2b(b"".join(hashlib.blake2b(part, digest_size=16).digest() for part in parts), digest_size=16).digest()
