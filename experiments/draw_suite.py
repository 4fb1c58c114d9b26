"""python -m experiments.draw_suite

Draws one test query of each task of MMEB-mini, its positive and the reference thought of the side that has something to work out into
docs/mmeb_mini.png, the picture that README.md shows. Needs the `mini` extra and no trained model; a few seconds. ``--seed`` chooses other
queries.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from datamodules.mini.tasks import TASKS, MiniTask
from experiments.command_line import new_parser, run_command
from twn_lightning.batches import Item
from twn_lightning.evaluation.figures import COLOURS
from twn_lightning.media import load_image

COLUMNS = 3
QUERY, THOUGHT, POSITIVE = 0.0, 1.72, 3.45
"""Left edges within a card, in inches; a card is 4.5 wide and 1.72 high."""
LEGEND = (
    "composing: for what is held out the answer was never trained directly, though each step to it was; the side that has the steps to take is named",
    "plain: what is asked was trained directly",
)
META_TASKS = {
    "IMG_CLS": "image classification",
    "IMG_QA": "visual question",
    "IMG_RET": "image retrieval",
    "IMG_VG": "grounding",
    "V_CLS": "video classification",
    "V_QA": "video question",
    "V_RET": "video retrieval",
    "V_MRET": "moment retrieval",
    "VISDOC": "page retrieval",
}


def main(arguments: Sequence[str]) -> None:
    """Draw and save the picture."""
    parser = new_parser("draw_suite", __doc__)
    parser.add_argument("--file", type=Path, default=Path(__file__).parents[1] / "docs" / "mmeb_mini.png", help="where the picture goes")
    parser.add_argument("--seed", type=int, default=39, help="chooses the queries (default: 39)")
    parsed = parser.parse_args(arguments)
    suite_figure(parsed.seed).savefig(parsed.file, dpi=90)


def suite_figure(seed: int) -> Figure:
    """A card for each task: query on the left, thought in the middle, positive on the right."""
    rows = -(-len(TASKS) // COLUMNS)
    figure = Figure(figsize=(4.75 * COLUMNS, 1.9 * rows), facecolor="white")
    cards = figure.subplots(rows, COLUMNS, gridspec_kw={"left": 0.012, "right": 0.995, "top": 0.985, "bottom": 0.01, "wspace": 0.03, "hspace": 0.05})
    for card, task in zip(cards.flat, TASKS.values(), strict=False):
        _draw_card(card, task, np.random.default_rng((seed, len(task.name))))
    for card in cards.flat[len(TASKS) :]:
        card.axis("off")
        card.set(xlim=(-0.1, 4.5), ylim=(0.0, 1.72), aspect="equal")
        card.text(0.0, 0.92, "\n\n".join(textwrap.fill(line, 60) for line in LEGEND), fontsize=9.5, color="0.4", va="center")
    return figure


def _draw_card(card: Axes, task: MiniTask, rng: np.random.Generator) -> None:
    subjects = task.subjects("test")
    subject = subjects[int(rng.integers(0, len(subjects)))]
    query = task.query(subject, "test", rng)
    key = next(iter(task.grades(subject)))
    positive = task.candidate(key, "test", None)
    corpus = task.corpus("test") if task.local is None else task.local(subject, rng)
    on_candidate = task.side == "candidate"
    card.axis("off")
    card.set(xlim=(-0.1, 4.5), ylim=(0.0, 1.72), aspect="equal")
    card.text(0.0, 1.58, task.name, fontsize=12, fontweight="bold", va="center")
    card.text(1.55, 1.58, META_TASKS[task.subgroup], fontsize=9.5, color="0.4", va="center")
    kind = f"{task.kind}, {task.side} side" if task.side else task.kind
    card.text(4.4, 1.58, kind, fontsize=9.5, color=COLOURS["always" if task.side else "auto"], va="center", ha="right")
    card.axhline(1.45, color="0.85", linewidth=1, xmin=0.02)
    _draw_item(card, query.item, QUERY, wrap=20, frames_in_row=4)
    thought = positive.cot if on_candidate else query.cot
    card.text(THOUGHT, 0.92, textwrap.fill(thought, 22), fontsize=9.5, style="italic", color="0.25", va="center")
    arrow = {"arrowstyle": "<|-" if on_candidate else "-|>", "color": "0.5"}
    card.annotate("", (POSITIVE - 0.06, 0.92), (POSITIVE - 0.26, 0.92), arrowprops=arrow)
    _draw_item(card, positive.item, POSITIVE, wrap=10, frames_in_row=2)
    whose = "thought of the positive" if on_candidate else "thought of the query"
    for left, caption in ((QUERY, "query"), (THOUGHT, whose), (POSITIVE, f"positive, 1 of {len(corpus)}")):
        card.text(left, 0.08, caption, fontsize=8, color="0.5", va="center")


def _draw_item(card: Axes, item: Item, left: float, *, wrap: int, frames_in_row: int) -> None:
    """The item's pictures in a row, or a clip's frames in as many rows of equal length as they need, above its words."""
    frames = item.video if isinstance(item.video, tuple) else ()
    pictures = [load_image(image) for image in (*item.images, *frames)]
    words = " ".join(part for part in (item.instruction, item.text) if part)
    lines = textwrap.fill(words, (34 if left == QUERY else 14) if pictures else wrap, break_long_words=False)
    card.text(left, 0.3 if pictures else 0.92, lines, fontsize=10.5, va="center")
    num_rows = max(1, -(-len(frames) // frames_in_row))
    num_columns = -(-len(pictures) // num_rows)
    for index, picture in enumerate(pictures):
        row, column = divmod(index, num_columns)
        widest = 1.5 if left == QUERY else 0.98
        height = min(0.36 if frames else 0.78 if words else 0.98, widest * picture.height / picture.width)
        width = height * picture.width / picture.height
        middle = 0.92 + (height + 0.03) * ((num_rows - 1) / 2 - row)
        start = left + (width + 0.03) * column
        card.imshow(picture, extent=(start, start + width, middle - height / 2, middle + height / 2), interpolation="nearest", aspect="equal")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
