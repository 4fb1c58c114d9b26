"""The 78 tasks of MMEB-V2: what each is called, where its rows and its media lie, and how its files are read."""

from __future__ import annotations

import csv
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from datamodules.mixing import did_you_mean
from twn_lightning.errors import ConfigError

PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class TaskRow:
    """One task.

    Attributes:
        name: Its name in published tables.
        modality: Which of the three averages it belongs to.
        subgroup: The average below that one, such as ``IMG_CLS``.
        metric: Its headline figure; NDCG is the linear one.
        parser: Key of `datamodules.mmeb.parsers.PARSERS`.
        repo: Data set on the hub; its snapshot lies at ``root/repo``.
        configs: Its configurations: one, or all that are concatenated (MVBench), or queries, qrels and corpus (pages).
        split: The split of each of them.
        scope: ``local``: each query brings its candidates; ``global``: one corpus for all.
        num_queries: Rows of the published file.
        media: Folders below ``root`` that are looked through in this order; none where the pictures lie in the data set's own files.
        labels: Name of the list of candidates in ``labels/``, if that is fixed.
        former_repo: Where the files lay before they were corrected, if they were.
        query_instruction: What the query's embedding is for, in our words, where the files do not say.
        candidate_instruction: The same of a candidate.
    """

    name: str
    modality: Literal["image", "video", "visdoc"]
    subgroup: str
    metric: Literal["hit@1", "ndcg@5"]
    parser: str
    repo: str
    configs: tuple[str, ...]
    split: str
    scope: Literal["local", "global"]
    num_queries: int
    media: tuple[str, ...]
    labels: str
    former_repo: str
    query_instruction: str
    candidate_instruction: str


def _load() -> dict[str, TaskRow]:
    rows: dict[str, TaskRow] = {}
    with (PACKAGE / "tasks.tsv").open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file, delimiter="\t"):
            rows[line["name"]] = TaskRow(
                name=line["name"],
                modality=cast(Literal["image", "video", "visdoc"], line["modality"]),
                subgroup=line["subgroup"],
                metric=cast(Literal["hit@1", "ndcg@5"], line["metric"]),
                parser=line["parser"],
                repo=line["repo"],
                configs=tuple(line["config"].split(",")),
                split=line["split"],
                scope=cast(Literal["local", "global"], line["scope"]),
                num_queries=int(line["num_queries"]),
                media=tuple(folder for folder in line["media"].split(";") if folder),
                labels=line["labels"],
                former_repo=line["former_repo"],
                query_instruction=line["query_instruction"],
                candidate_instruction=line["candidate_instruction"],
            )
    return rows


TABLE: dict[str, TaskRow] = _load()
"""Task name → task, in the order of published tables: images, videos, pages."""

UNCHANGED: frozenset[str] = frozenset(name for name, row in TABLE.items() if not row.former_repo)
"""The 76 tasks whose files were never exchanged. Two were (ViDoSeek-page, MMLongBench-page), and published tables mix both versions."""


def select(names: Sequence[str]) -> tuple[TaskRow, ...]:
    """Tasks in the table's order.

    Args:
        names: Tasks, subgroups (``VID_QA``) and modalities (``visdoc``), mixed as one likes; none named: all 78.

    Raises:
        ConfigError: A name is none of these.
    """
    groups = {row.modality for row in TABLE.values()} | {row.subgroup for row in TABLE.values()}
    for name in names:
        if name not in TABLE and name not in groups:
            raise ConfigError(f"{name!r} is no task and no group of tasks of MMEB-V2. {did_you_mean(name, (*TABLE, *sorted(groups)))}")
    wanted = set(names)
    return tuple(row for row in TABLE.values() if not wanted or wanted & {row.name, row.subgroup, row.modality})


@functools.cache
def label_list(name: str) -> tuple[str, ...]:
    """A fixed list of candidates, in the spelling of the data sets (``riding_mule``).

    Args:
        name: breakfast (10), hmdb51 (51), ucf101 (101) or kinetics700 (700).
    """
    return tuple((PACKAGE / "labels" / f"{name}.txt").read_text(encoding="utf-8").split("\n")[:-1])


@functools.cache
def mvbench_folders() -> dict[str, str]:
    """Configuration of MVBench → folder of its videos, below that of the task."""
    with (PACKAGE / "mvbench.tsv").open(encoding="utf-8", newline="") as file:
        return {line["config"]: line["videos"] for line in csv.DictReader(file, delimiter="\t")}
