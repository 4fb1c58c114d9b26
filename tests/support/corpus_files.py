"""Writes files to embed, as many as wanted, the same ones each time.

python tests/support/corpus_files.py texts 100000 FOLDER/texts.parquet
python tests/support/corpus_files.py pictures 10000 FOLDER/pictures
"""

from __future__ import annotations

import random
import struct
import sys
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

WORDS = ("sun", "moon", "bird", "river", "house", "seven", "blue", "green", "red", "of", "the", "in", "walks", "over", "old", "stone", "flag", "hill")
_ROWS_A_GROUP = 10_000


def sentence(number: int) -> str:
    """Three to fifteen words, which depend on the number alone."""
    draw = random.Random(number)
    return " ".join(draw.choice(WORDS) for _ in range(draw.randint(3, 15)))


def write_texts(path: Path, number: int) -> None:
    """A Parquet file with the columns id ("text-0" …) and text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([("id", pa.string()), ("text", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for first in range(0, number, _ROWS_A_GROUP):
            numbers = range(first, min(first + _ROWS_A_GROUP, number))
            writer.write_table(pa.table({"id": [f"text-{one}" for one in numbers], "text": [sentence(one) for one in numbers]}, schema=schema))


def write_pictures(folder: Path, number: int, *, side: int = 48) -> None:
    """A disc and a bar of colours that depend on the number, PNG and JPEG in turn, a thousand in a folder."""
    for one in range(number):
        draw = random.Random(one)
        picture = Image.new("RGB", (side, side), tuple(draw.randrange(256) for _ in range(3)))
        pen = ImageDraw.Draw(picture)
        x, y = draw.randrange(side), draw.randrange(side)
        pen.ellipse((x - 12, y - 12, x + 12, y + 12), fill=tuple(draw.randrange(256) for _ in range(3)))
        pen.rectangle((0, y, side, y + 4), fill=tuple(draw.randrange(256) for _ in range(3)))
        path = folder / f"{one // 1000:04d}" / f"{one:07d}.{('png', 'jpg')[one % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)


def write_huge_picture(path: Path, *, width: int = 20_000, height: int = 10_000) -> None:
    """A white PNG of one bit a pixel: some kilobytes that become hundreds of megabytes."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    rows = zlib.compress((b"\0" + b"\xff" * (width // 8)) * height, 1)
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


if __name__ == "__main__":
    kind, count, where = sys.argv[1:]
    if kind == "texts":
        write_texts(Path(where), int(count))
    else:
        write_pictures(Path(where), int(count))
