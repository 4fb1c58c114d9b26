"""Small media for trees of test data: drawings, flags, digits, clips and pages, made of what installed packages carry."""

from __future__ import annotations

import functools
import io
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from datamodules.mini import render
from datamodules.mini.assets import Concept, Country, Style, concepts, countries

DIRECTIONS = tuple(render.DIRECTIONS)


class Draw:
    """Draws what one task shows; the same name draws the same.

    Args:
        name: The task's name.
    """

    def __init__(self, name: str) -> None:
        self._rng = np.random.default_rng([2605, *name.encode()])

    def concepts(self, number: int) -> list[Concept]:
        """Different things."""
        return [concepts()[index] for index in self._rng.choice(len(concepts()), size=number, replace=False)]

    def countries(self, number: int) -> list[Country]:
        """Different countries."""
        return [countries()[index] for index in self._rng.choice(len(countries()), size=number, replace=False)]

    def choice(self, values: Sequence[str], number: int) -> list[str]:
        """Different strings, as many as there are at most."""
        return [values[index] for index in self._rng.choice(len(values), size=min(number, len(values)), replace=False)]

    def moving(self, concept: Concept, direction: str) -> tuple[Image.Image, ...]:
        """Four frames of a thing that moves."""
        return render.motion_clip(concept, direction, self._rng)


def drawing(concept: Concept, style: Style = "openmoji") -> Image.Image:
    """A thing, 48 x 48 pixels."""
    return render.object_picture(concept, style)


def flag(country: Country) -> Image.Image:
    """A flag, 64 x 48 pixels."""
    return render.flag_picture(country, "openmoji")


def page(country: Country, layout: str) -> Image.Image:
    """A page about a country, 64 x 80 pixels."""
    return render.page_picture(country, "openmoji", layout)


def scene(things: Sequence[Concept]) -> Image.Image:
    """Things in a row, 32 pixels each."""
    return render.scene_picture(things)


def still(concept: Concept) -> tuple[Image.Image, ...]:
    """Two frames of a thing at rest."""
    return render.moments_clip([concept])


def one_after_another(things: Sequence[Concept]) -> tuple[Image.Image, ...]:
    """Two frames of each thing."""
    return render.moments_clip(things)


def written(words: str, concept: Concept) -> tuple[Image.Image, ...]:
    """Three frames of words, with a thing that moves below them; 64 x 64 pixels."""
    picture = drawing(concept, "twemoji").resize((24, 24))
    lines = _wrapped(words.replace("_", " "))
    frames = []
    for step in range(3):
        frame = Image.new("RGB", (64, 64), (250, 250, 250))
        ImageDraw.Draw(frame).multiline_text((1, 0), "\n".join(lines), font=_font(), fill=(20, 20, 60), spacing=0)
        frame.paste(picture, (4 + 16 * step, 38))
        frames.append(frame)
    return tuple(frames)


def save_picture(path: Path, picture: Image.Image) -> None:
    """A file in the format of its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def save_frames(folder: Path, frames: Sequence[Image.Image]) -> None:
    """A folder of frames, numbered as VLM2Vec's are."""
    for number, frame in enumerate(frames, start=1):
        save_picture(folder / f"frame_{number:04d}.jpg", frame)


def save_video(path: Path, frames: Sequence[Image.Image]) -> None:
    """An MP4 of four frames a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("mpeg4", rate=4, options={"flags": "+bitexact", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = frames[0].width, frames[0].height, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


def encoded(picture: Image.Image) -> bytes:
    """A picture as PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _wrapped(words: str, *, width: int = 13) -> list[str]:
    lines = [""]
    for word in words.split():
        joined = f"{lines[-1]} {word}".strip()
        if len(joined) > width and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = joined
    return lines[:4]


@functools.cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=9)
