"""Thoughts that helped and thoughts that misled: chosen from the records, with the query's picture as the suite draws it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.record import Example
from experiments.results_page.collection import Collection
from experiments.results_page.words import cell, signed, table
from twn_lightning.errors import DataError
from twn_lightning.evaluation.figures import WIDTH

if TYPE_CHECKING:
    from twn_lightning.batches import Item

NUM_SHOWN = 4
"""Of each sort, at most one a task."""


def chosen_examples(collection: Collection) -> tuple[list[Example], list[Example]]:
    """The examples that helped most and those that misled most, where the best candidate changed first, one a task."""
    every = [example for record in collection.base for example in record.examples]
    helped = [example for example in every if example.gain > 0.0]
    misled = [example for example in every if example.gain < 0.0]
    return _strongest(helped, helps=True), _strongest(misled, helps=False)


def _strongest(examples: Sequence[Example], *, helps: bool) -> list[Example]:
    def rank(example: Example) -> tuple[bool, float, str, str]:
        before, after = _is_right(example.before, example.label), _is_right(example.after, example.label)
        changed = after and not before if helps else before and not after
        return (not changed, -abs(example.gain), example.task, example.key)

    found: dict[str, Example] = {}
    for example in sorted(examples, key=rank):
        found.setdefault(example.task, example)
    return list(found.values())[:NUM_SHOWN]


def _is_right(candidates: Sequence[str], label: str) -> bool:
    return bool(candidates) and candidates[0] == label


def example_lines(examples: Sequence[Example]) -> list[str]:
    """The examples as a table."""
    rows = []
    for example in examples:
        best = [cell(", ".join(found)) for found in (example.before, example.after)]
        rows.append([example.task, cell(example.key), cell(example.thought), *best, cell(example.label), signed(example.gain, 2)])
    return table(["task", "query", "thought", "best three without", "best three with", "right", "gain, nats"], rows, left=6)


def example_figure(sorts: Sequence[tuple[str, Sequence[Example]]]) -> Figure:
    """A card for each example: the query on the left, the thought, and what was found before and after.

    Args:
        sorts: Heading → its examples; each heading has a column.

    Raises:
        DataError: An example's query is not in the suite.
    """
    filled = [(heading, examples) for heading, examples in sorts if examples]
    items = _items([example for _, examples in filled for example in examples])
    rows = max(len(examples) for _, examples in filled)
    head = 0.5
    figure = Figure(figsize=(WIDTH, 1.95 * rows + head), facecolor="white")
    grid = {"left": 0.01, "right": 0.99, "top": 1 - head / (1.95 * rows + head), "bottom": 0.01, "wspace": 0.04, "hspace": 0.08}
    cards = figure.subplots(rows, len(filled), squeeze=False, gridspec_kw=grid)
    for column, (heading, examples) in enumerate(filled):
        for row in range(rows):
            card = cards[row][column]
            card.axis("off")
            card.set(xlim=(0.0, 4.4 * 2 / len(filled)), ylim=(0.0, 1.9))
            if row < len(examples):
                _draw_card(card, examples[row], items[examples[row].task, examples[row].key])
        cards[0][column].set_title(heading, fontsize=11, fontweight="bold", loc="left", pad=10)
    return figure


def _draw_card(card: Axes, example: Example, item: Item) -> None:
    from twn_lightning.media import load_image

    right = card.get_xlim()[1]
    card.text(0.03, 1.78, example.task, fontsize=10, fontweight="bold", va="center")
    card.text(right - 0.03, 1.78, f"gain {signed(example.gain, 2)} nats", fontsize=9, color="0.35", va="center", ha="right")
    card.plot([0.03, right - 0.03], [1.66, 1.66], color="0.8", linewidth=0.8)
    frames = item.video if isinstance(item.video, tuple) else ()
    pictures = [load_image(image) for image in (*item.images, *frames)]
    words = " ".join(part for part in (item.instruction, item.text) if part)
    card.text(0.03, 0.22 if pictures else 0.95, textwrap.fill(words, 24), fontsize=9, va="center", linespacing=1.1)
    room, left, place = 1.6, 0.03, 1.02
    if pictures:
        wide = sum(picture.width for picture in pictures)
        scale = min((room - 0.03 * (len(pictures) - 1)) / wide, 1.1 / max(picture.height for picture in pictures))
        for picture in pictures:
            width, height = scale * picture.width, scale * picture.height
            extent = (left, left + width, place - height / 2, place + height / 2)
            card.imshow(picture, extent=extent, interpolation="nearest", aspect="auto")
            left += width + 0.03
    _draw_words(card, example)


def _draw_words(card: Axes, example: Example) -> None:
    left, width = 1.75, round(20.0 * (card.get_xlim()[1] - 1.75) / 1.45)
    thought = textwrap.shorten(example.thought, 3 * width, placeholder=" …") or "(empty)"
    card.text(left, 1.54, textwrap.fill(f"“{thought}”", width), fontsize=9, style="italic", va="top", linespacing=1.1)
    lines = [
        ("without", example.before[0] if example.before else "–"),
        ("with", example.after[0] if example.after else "–"),
        ("right", example.label),
    ]
    for place, (word, found) in zip((0.62, 0.40, 0.18), lines, strict=True):
        mark = "" if word == "right" else " ✓" if found == example.label else " ✗"
        card.text(left, place, word, fontsize=9, color="0.4", va="center")
        card.text(left + 0.55, place, textwrap.shorten(found, width - 7, placeholder=" …") + mark, fontsize=9, va="center")


def _items(examples: Sequence[Example]) -> dict[tuple[str, str], Item]:
    from datamodules.mini.suite import load_tasks

    found: dict[tuple[str, str], Item] = {}
    for task in load_tasks("test", tasks=sorted({example.task for example in examples})):
        by_key = {query.key: query.item for query in task.queries}
        for example in examples:
            if example.task == task.name and example.key not in by_key:
                raise DataError(f"The records show query {example.key!r} of {task.name}, which this suite does not ask: evaluate the runs again.")
        found |= {(task.name, example.key): by_key[example.key] for example in examples if example.task == task.name}
    return found
