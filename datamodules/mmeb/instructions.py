"""Instructions of MMEB-V2's tasks from a file, in place of those of the data and of our own wording."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from datamodules.mixing import did_you_mean
from datamodules.mmeb.table import TABLE
from twn_lightning.errors import ConfigError

_KINDS = ("image", "video")
_PLAIN = ("image_cls", "image_qa", "image_i2t", "ssv2", "video_classification", "videomme", "nextqa", "egoschema", "mvbench", "activitynetqa")
"""Parsers of tasks whose candidates are texts, which are shown without an instruction."""


@dataclass(frozen=True)
class Instructions:
    """What was given for some tasks; the others keep theirs.

    Attributes:
        file: Where it stands; empty if nothing was given.
        digest: Of the file's content, hexadecimal.
        texts: As `datamodules.mmeb.suite.open_task` takes them: by task name for queries, by ``task/candidate`` for candidates, and for
            MomentSeeker's queries with a picture or a clip by ``MomentSeeker/image`` and ``MomentSeeker/video``.
    """

    file: str = ""
    digest: str = ""
    texts: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        num_tasks = len({name.partition("/")[0] for name in self.texts})
        return f"{self.file} ({num_tasks} of {len(TABLE)} tasks, {self.digest[:8]})"


def read_instructions(path: str | Path, *, with_candidates: bool = True) -> Instructions:
    """The instructions in a YAML or JSON file: task → text for its queries, or task → ``{query: text, candidate: text}``, each if given.

    For MomentSeeker, ``image`` and ``video`` are for the queries with a picture or a clip.

    Args:
        path: Of the file; empty: none is given.
        with_candidates: Whether the profile shows candidates with an instruction.

    Raises:
        ConfigError: The file cannot be read, names something that no task has, or gives an instruction where none is shown.
    """
    if not path:
        return Instructions()
    try:
        content = Path(path).read_bytes()
        given = yaml.safe_load(content)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"evaluation.instructions is {str(path)!r}, which cannot be read as YAML or JSON ({error}): correct the file.") from error
    if not isinstance(given, dict) or not given:
        raise ConfigError(f"evaluation.instructions is {str(path)!r}, which holds no mapping: write lines such as `MSVD: Find a video of this.`")
    texts: dict[str, str] = {}
    for name, value in given.items():
        parts = value if isinstance(value, dict) else {"query": value}
        texts |= _of_task(str(name), parts, where=f"{path}, {name}", with_candidates=with_candidates)
    return Instructions(str(path), hashlib.sha256(content).hexdigest(), texts)


def check_instructions(texts: Mapping[str, str]) -> None:
    """Refuse what names no task or no part of it.

    Args:
        texts: See `Instructions.texts`.

    Raises:
        ConfigError: There is no such task or part.
    """
    known = [*TABLE, *(f"{name}/candidate" for name in TABLE), *(f"MomentSeeker/{kind}" for kind in _KINDS)]
    for name in texts:
        if name not in known:
            raise ConfigError(f"instructions names {name!r}, which no task of MMEB-V2 has. {did_you_mean(name, tuple(known))}")


def _of_task(name: str, parts: Mapping[object, object], *, where: str, with_candidates: bool) -> dict[str, str]:
    """A task's texts, checked; arguments as a file gives them, and where it does."""
    if name not in TABLE:
        raise ConfigError(f"{where}: MMEB-V2 has no such task. {did_you_mean(name, tuple(TABLE))}")
    known = ("query", "candidate", *(_KINDS if name == "MomentSeeker" else ()))
    texts: dict[str, str] = {}
    for part, text in parts.items():
        if part not in known:
            raise ConfigError(f"{where}: there is no {part!r}. {did_you_mean(str(part), known)}")
        if not isinstance(text, str):
            raise ConfigError(f"{where}: the instruction is {text!r}, but must be a text: put it in quotes.")
        texts[name if part == "query" else f"{name}/{part}"] = text
    if "candidate" in parts and not with_candidates:
        raise ConfigError(f"{where}: evaluation.profile shows candidates without instructions: leave the candidate's out, or choose another profile.")
    if "candidate" in parts and TABLE[name].parser in _PLAIN:
        raise ConfigError(f"{where}: the candidates are texts, which are shown without instructions: leave the candidate's out.")
    return texts
