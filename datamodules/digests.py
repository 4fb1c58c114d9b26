"""Stable names for content: the same on every machine, in every process and in every run."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from twn_lightning.batches import ImageSource, Item


def stable_hash(content: bytes) -> int:
    """A signed 64-bit number (`hash` would differ from process to process)."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


def text_digest(parts: Iterable[str]) -> str:
    """Hexadecimal digest of strings; where one ends and the next begins counts."""
    hasher = hashlib.blake2b(digest_size=16)
    for part in parts:
        encoded = part.encode()
        hasher.update(len(encoded).to_bytes(8, "little") + encoded)
    return hasher.hexdigest()


def content_digest(item: Item) -> bytes:
    """Digest of what an item shows: its text, pictures and clip.

    The instruction is left out: it says what an embedding is for, and two targets that differ in it alone are one and the same answer.
    Decoded pictures count by their pixels, files by their path.
    """
    hasher = hashlib.blake2b(digest_size=16)
    text = item.text.encode()
    hasher.update(len(text).to_bytes(8, "little") + text)
    for image in item.images:
        hasher.update(b"image" + _medium(image))
    if isinstance(item.video, Path):
        hasher.update(b"video" + _medium(item.video))
    elif item.video is not None:
        hasher.update(b"frames" + b"".join(_medium(frame) for frame in item.video))
    return hasher.digest()


def _medium(source: ImageSource) -> bytes:
    content = source.as_posix().encode() if isinstance(source, Path) else f"{source.mode}{source.size}".encode() + source.tobytes()
    return hashlib.blake2b(content, digest_size=16).digest()
