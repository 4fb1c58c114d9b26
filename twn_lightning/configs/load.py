"""YAML file + profile + ``key=value`` → one checked `RunConfig`. Later ones win."""

from __future__ import annotations

import copy
import dataclasses
import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from twn_lightning.configs.run import RunConfig
from twn_lightning.errors import ConfigError

_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # five times as quick, where PyYAML was built with libyaml


def load_config(config: str | Path, *, folder: Path, profile: str | Path | None = None, overrides: Sequence[str] = ()) -> RunConfig:
    """One run's settings.

    Args:
        config: Path of a YAML file, or the name of one in the folder.
        folder: Where named configs lie; profiles lie in its ``profiles/``.
        profile: Path of a YAML file, or the name of one in ``profiles/``; None for none.
        overrides: ``key=value`` with dots between levels, values in YAML syntax.

    Raises:
        ConfigError: A file is missing or broken, a key is unknown, a value has the wrong type or lies out of range.
    """
    merged = copy.deepcopy(_defaults())
    merged = _merge(merged, *_read(config, folder, "config"))
    if profile is not None:
        merged = _merge(merged, *_read(profile, folder / "profiles", "profile"))
    for override in overrides:
        merged = _merge(merged, _parse(override), f"the command line ({override})")
    try:
        resolved = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise ConfigError(_message(error, "the resolved config")) from None
    assert isinstance(resolved, RunConfig)
    return resolved


def config_yaml(config: RunConfig) -> str:
    """The resolved settings as YAML; `load_config` reads it back to an equal object."""
    return yaml.safe_dump(_plain(config), sort_keys=False, allow_unicode=True)


def flatten(config: RunConfig) -> dict[str, str]:
    """Each setting under its dotted key, as text (lists and mappings as JSON)."""
    return dict(_flattened("", _plain(config)))


def _plain(config: RunConfig) -> dict[str, object]:
    plain = json.loads(json.dumps(dataclasses.asdict(config)))
    assert isinstance(plain, dict)
    return plain


def _flattened(prefix: str, value: object) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from _flattened(f"{prefix}.{key}" if prefix else str(key), inner)
    else:
        yield prefix, value if isinstance(value, str) else json.dumps(value)


@cache
def _defaults() -> DictConfig:
    defaults = OmegaConf.structured(RunConfig)
    assert isinstance(defaults, DictConfig)
    return defaults


def _read(name: str | Path, folder: Path, kind: str) -> tuple[DictConfig, str]:
    text = str(name)
    path = Path(text) if "/" in text or text.endswith((".yaml", ".yml")) else folder / f"{text}.yaml"
    if not path.is_file():
        available = sorted(file.stem for file in folder.glob("*.yaml"))
        near = difflib.get_close_matches(text, available, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"There is no {kind} {text!r}.{hint} Available: {', '.join(available) or 'none'}; or give the path of a YAML file.")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}, but settings are 'key: value' lines.")
    return OmegaConf.create(content), str(path)


def _parse(override: str) -> DictConfig:
    key, equals, _ = override.partition("=")
    if not equals or not re.fullmatch(r"[A-Za-z_][\w\-]*(\.[\w\-]+)*", key):
        raise ConfigError(f"{override!r} is not an override: write key=value with dots between levels, e.g. stages.grpo.group_size=4.")
    try:
        return OmegaConf.from_dotlist([override])
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigError(f"The value in {override!r} cannot be read as YAML: {str(error).splitlines()[0]}") from None


def _merge(base: DictConfig, change: DictConfig, origin: str) -> DictConfig:
    try:
        merged = OmegaConf.unsafe_merge(base, change)  # neither is used again
    except OmegaConfBaseException as error:
        raise ConfigError(_message(error, origin)) from None
    except TypeError as error:  # a mapping where a list belongs, or the reverse
        raise ConfigError(f"{error} (in {origin}): a list is written [a, b], a mapping {{key: value}}.") from None
    assert isinstance(merged, DictConfig)
    return merged


def _message(error: OmegaConfBaseException, origin: str) -> str:
    first = str(error).splitlines()[0].rstrip(".")
    key = f"{error.full_key}: " if error.full_key else ""
    return f"{key}{first} (in {origin})."
