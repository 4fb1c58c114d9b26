"""What guessing scores on each task, with and without a part of what the task asks for, as the data card says."""

from __future__ import annotations

import math
import re
from collections import Counter
from pathlib import Path
from statistics import mean

import numpy as np
import pytest

import datamodules.mini.suite
from datamodules.mini.assets import countries
from datamodules.mini.splits import country_split, digit_pair_split
from datamodules.mini.suite import load_tasks
from datamodules.mini.tasks import TASKS
from twn_lightning.evaluation.task import Query

CARD = (Path(datamodules.mini.suite.__file__).parent / "DATA_CARD.md").read_text(encoding="utf-8")
ROWS = {match[1]: (float(match[2]), match[3]) for match in re.finditer(r"^\| (\w+) \| ([\d.]+) \| (.*) \|$", CARD, flags=re.MULTILINE)}


def expected_at_random(name: str) -> float:
    """Mean score, 0 to 100, of candidates in random order."""
    task, scores = TASKS[name], []
    for subject in task.subjects("test"):
        grades = sorted(task.grades(subject).values(), reverse=True)
        offered = task.corpus("test") if task.local is None else task.local(subject, np.random.default_rng(0))
        if task.metric == "hit@1":
            scores.append(len(grades) / len(offered))
        else:
            discounts = [1 / math.log2(rank + 1) for rank in range(1, 6)]
            ideal = sum(gain * discount for gain, discount in zip(grades, discounts, strict=False))
            scores.append(sum(grades) / len(offered) * sum(discounts) / ideal)
    return 100 * mean(scores)


@pytest.mark.parametrize("name", TASKS)
def test_the_card_says_what_chance_scores(name: str) -> None:
    assert ROWS[name][0] == round(expected_at_random(name), 1)


@pytest.mark.parametrize("name", ["PictureBySum", "ClipBySum"])
def test_what_knowing_the_trained_sums_by_heart_is_worth(name: str) -> None:
    trained = set(digit_pair_split()["train"])

    def digits(key: str) -> tuple[int, int]:
        left, right = key.partition("=")[2].split("+")
        return int(left), int(right)

    def left_alone(query: Query) -> list[str]:
        return [key for key in query.candidates or () if 0 <= int(query.item.text) - digits(key)[0] <= 9]

    queries = load_tasks("test", tasks=[name])[0].queries
    by_heart = 100 * mean(1 / sum(digits(key) not in trained for key in query.candidates or ()) for query in queries)
    one_digit = 100 * mean(1 / len(left_alone(query)) for query in queries)
    assert f"**{by_heart:.0f}**" in ROWS[name][1]
    assert f"**{one_digit:.0f}**" in ROWS[name][1]


@pytest.mark.parametrize("name", ["SceneNext", "MomentNext"])
def test_what_always_choosing_the_last_thing_is_worth(name: str) -> None:
    subjects = TASKS[name].subjects("test")
    last = 100 * mean(subject[2] in TASKS[name].grades(subject) for subject in subjects)
    assert f"**{last:.0f}**" in ROWS[name][1]
    assert all(subject[0] not in TASKS[name].grades(subject) for subject in subjects)


@pytest.mark.parametrize("name", ["DigitSum", "ClipSum"])
def test_what_one_digit_or_the_commonest_sum_is_worth(name: str) -> None:
    sums = Counter(left + right for left, right in digit_pair_split()["test"])
    assert f"**{100 * max(sums.values()) / sums.total():.0f}**" in ROWS[name][1]
    assert f"{len(sums)} of the 19" in ROWS[name][1]


def test_what_leaving_out_trained_countries_is_worth() -> None:
    untrained = len(countries()) - len(country_split()["train"])
    assert f"{untrained} others" in ROWS["FlagCapital"][1]
    assert f"**{100 / untrained:.1f}**" in ROWS["FlagCapital"][1]
