"""Pictures, clips and pages made of the packages' drawings. All sides are multiples of 16 pixels.

With a generator, a drawing is varied (size, place, paper colour, light) as training data is; without one it is drawn plainly.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont

from datamodules.mini.assets import Concept, Country, Style, digit_images, drawing, flag, inked
from datamodules.mini.splits import Split, digit_range

OBJECT_SIZE = (48, 48)
CROP_SIZE = (32, 32)
FLAG_SIZE = (64, 48)
PAGE_SIZE = (64, 80)
LAYOUTS = ("sheet", "profile")
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Motion of a clip's object: unit steps along x and y (y grows downwards)."""

_PAPER = (250, 250, 250)
_CLIP_FRAMES = 4


def object_picture(concept: Concept, style: Style, rng: np.random.Generator | None = None, *, size: tuple[int, int] = OBJECT_SIZE) -> Image.Image:
    """One object on paper."""
    return _varied(inked(concept.code, style) if _with_ink(rng) else drawing(concept.code, style), size, rng, fill=0.94)


def flag_picture(country: Country, style: Style, rng: np.random.Generator | None = None) -> Image.Image:
    """One flag on paper."""
    return _varied(flag(country.code, style, with_ink=_with_ink(rng)), FLAG_SIZE, rng, fill=0.94)


def digits_picture(digits: Sequence[int], split: Split, rng: np.random.Generator) -> Image.Image:
    """Handwritten digits of the split side by side, 32 pixels each."""
    page = Image.new("RGB", (32 * len(digits), 32))
    for position, digit in enumerate(digits):
        page.paste(_digit(digit, split, rng), (32 * position, 0))
    return page


def scene_picture(things: Sequence[Concept], rng: np.random.Generator | None = None) -> Image.Image:
    """Objects in a row from left to right, 32 pixels each."""
    scene = Image.new("RGB", (32 * len(things), 32))
    for position, concept in enumerate(things):
        scene.paste(object_picture(concept, "twemoji", rng, size=CROP_SIZE), (32 * position, 0))
    return scene


def motion_clip(concept: Concept, direction: str, rng: np.random.Generator) -> tuple[Image.Image, ...]:
    """Four frames, 32 x 32, of one object that moves straight by 4 pixels a frame."""
    sprite = drawing(concept.code, "twemoji").resize((20, 20), Image.Resampling.BILINEAR)
    step_x, step_y = (4 * step for step in DIRECTIONS[direction])
    start_x = 6 - 1.5 * step_x + rng.integers(-2, 3)
    start_y = 6 - 1.5 * step_y + rng.integers(-2, 3)
    frames = []
    for index in range(_CLIP_FRAMES):
        frame = Image.new("RGB", (32, 32), _PAPER)
        frame.paste(sprite, (round(start_x + step_x * index), round(start_y + step_y * index)), sprite)
        frames.append(frame)
    return tuple(frames)


def digits_clip(digits: Sequence[int], split: Split, rng: np.random.Generator) -> tuple[Image.Image, ...]:
    """Handwritten digits of the split one after another, two frames of 32 x 32 each."""
    frames: list[Image.Image] = []
    for digit in digits:
        frames.extend([_digit(digit, split, rng)] * 2)
    return tuple(frames)


def moments_clip(things: Sequence[Concept], rng: np.random.Generator | None = None) -> tuple[Image.Image, ...]:
    """Objects one after another, two frames of 32 x 32 each."""
    return tuple(frame for concept in things for frame in [object_picture(concept, "twemoji", rng, size=CROP_SIZE)] * 2)


def page_picture(country: Country, style: Style, layout: str, rng: np.random.Generator | None = None) -> Image.Image:
    """A page about a country: its name as title, its flag, and lines of greeked text; no capital is printed."""
    shift = int(rng.integers(-2, 3)) if rng is not None else 0
    page = Image.new("RGB", PAGE_SIZE, _PAPER)
    pen = ImageDraw.Draw(page)
    pen.text((3 + shift, 1), country.name, font=_font(), fill=(20, 20, 60))
    box = (52, 36) if layout == "sheet" else (32, 24)
    place = (6 + shift, 14) if layout == "sheet" else (3, 52 + shift)
    banner = flag(country.code, style, with_ink=_with_ink(rng)).resize(box, Image.Resampling.BILINEAR)
    page.paste(banner, place, banner)
    rows = range(56, 76, 4) if layout == "sheet" else range(16, 48, 4)
    for row in rows:
        pen.line((4, row, 58 - (row * 7) % 20, row), fill=(150, 150, 150))
    return _lit(page, rng)


def _digit(digit: int, split: Split, rng: np.random.Generator) -> Image.Image:
    pixels = digit_images()[digit][rng.choice(digit_range(split))]
    picture = Image.new("L", (32, 32))
    shift_x, shift_y = (int(value) for value in (rng.integers(0, 5, size=2) if split == "train" else (2, 2)))
    picture.paste(Image.fromarray(pixels), (shift_x, shift_y))
    if split == "train":
        picture = picture.rotate(float(rng.uniform(-14, 14)), resample=Image.Resampling.BILINEAR)
    return picture.convert("RGB")


def _varied(picture: Image.Image, size: tuple[int, int], rng: np.random.Generator | None, *, fill: float) -> Image.Image:
    scale = fill if rng is None else float(rng.uniform(0.75, 1.0))
    ratio = scale * min(size[0] / picture.width, size[1] / picture.height)
    stretch = 1.0 if rng is None else float(rng.uniform(0.92, 1.08))
    width, height = max(1, min(size[0], round(picture.width * ratio * stretch))), max(1, round(picture.height * ratio))
    slack_x, slack_y = size[0] - width, size[1] - height
    left, top = (slack_x // 2, slack_y // 2) if rng is None else (int(rng.integers(0, slack_x + 1)), int(rng.integers(0, slack_y + 1)))
    paper = _PAPER if rng is None else tuple(int(value) for value in rng.integers(215, 256, size=3))
    canvas = Image.new("RGB", size, paper)
    small = picture.resize((width, height), Image.Resampling.BILINEAR)
    canvas.paste(small, (left, top), small)
    return _lit(canvas, rng)


def _with_ink(rng: np.random.Generator | None) -> bool:
    return rng is not None and bool(rng.random() < 0.5)


def _lit(picture: Image.Image, rng: np.random.Generator | None) -> Image.Image:
    """The picture under light of another strength and colour."""
    if rng is None:
        return picture
    paler = ImageEnhance.Color(picture).enhance(float(rng.uniform(0.6, 1.4)))
    light = rng.uniform(0.85, 1.1) * rng.uniform(0.9, 1.1, size=3)
    return Image.fromarray((np.asarray(paler) * light).clip(0, 255).astype(np.uint8))


@functools.cache
def _font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=9)
