"""Sources by name: adding a data set is one function of its typed options, one line here, and one test."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, Union, get_args, get_origin, get_type_hints

from datamodules.mixing import did_you_mean
from datamodules.pair_source import PairSource
from datamodules.sources.jsonl import load_jsonl
from datamodules.sources.llava_hound import load_llava_hound
from datamodules.sources.mmeb_train import load_mmeb_train
from datamodules.sources.pages import load_colpali, load_visrag
from datamodules.sources.twn import load_twn
from datamodules.sources.ume_r1 import load_ume_r1
from twn_lightning.errors import ConfigError

SOURCES: dict[str, Callable[..., PairSource]] = {
    "jsonl": load_jsonl,
    "mmeb_train": load_mmeb_train,
    "colpali": load_colpali,
    "visrag": load_visrag,
    "llava_hound": load_llava_hound,
    "ume_r1": load_ume_r1,
    "twn": load_twn,
}
"""Each function takes one argument, ``options``: a frozen dataclass that documents them."""


def has_option(kind: str, name: str) -> bool:
    """Whether the sources of a kind know an option; False for an unknown kind."""
    return kind in SOURCES and name in {field.name for field in dataclasses.fields(get_type_hints(SOURCES[kind])["options"])}


def open_source(kind: str, options: Mapping[str, object]) -> PairSource:
    """The source of a kind, with its options by name.

    Args:
        kind: A key of `SOURCES`.
        options: Fields of its options; those with a default may be left out.

    Raises:
        ConfigError: The kind or an option is not known, is missing or of another type.
        DataError: The data cannot be read.
    """
    if kind not in SOURCES:
        raise ConfigError(f"{kind!r} is no data source. {did_you_mean(kind, tuple(SOURCES))}")
    load = SOURCES[kind]
    schema = get_type_hints(load)["options"]
    fields = {field.name: field for field in dataclasses.fields(schema)}
    for name in options:
        if name not in fields:
            raise ConfigError(f"{name} is no option of the data source {kind!r}. {did_you_mean(name, tuple(fields))}")
    for name, field in fields.items():
        if name not in options and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"The data source {kind!r} needs the option {name}: give it.")
    hints = get_type_hints(schema)
    return load(options=schema(**{name: _typed(kind, name, value, hints[name]) for name, value in options.items()}))


def _typed(kind: str, name: str, value: object, hint: object) -> object:
    if isinstance(value, str) and (hint is Path or Path in get_args(hint)):
        return Path(value)
    if get_origin(hint) is Literal:
        fits = value in get_args(hint)
    elif get_origin(hint) in (Union, types.UnionType):
        fits = any(isinstance(value, get_origin(part) or part) for part in get_args(hint))
    else:
        fits = isinstance(value, get_origin(hint) or hint)  # type: ignore[arg-type]
    if not fits:
        wanted = " or ".join(map(repr, get_args(hint))) if get_origin(hint) is Literal else getattr(hint, "__name__", str(hint))
        raise ConfigError(f"{name} of the data source {kind!r} is {value!r}, but must be {wanted}.")
    return value
