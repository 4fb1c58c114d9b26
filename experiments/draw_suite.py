"""python -m experiments.draw_suite

Draws one test query of each task of MMEB-mini, its reference thought and its positive into docs/mmeb_mini.png, the picture that README.md
shows. Needs the `mini` extra and no trained model; a few seconds. ``--seed`` chooses other queries.
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
META_TASKS = {
    "IMG_CLS": "image classification",
    "IMG_QA": "visual question",
    "IMG_RET": "image retrieval",
    "IMG_VG": "grounding",
    "V_CLS": "video classification",
    "V_QA": "video question",
    "VISDOC": "page retrieval",
}


def main(arguments: Sequence[str]) -> None:
    """Draw and save the picture."""
    parser = new_parser("draw_suite", __doc__)
    parser.add_argument("--file", type=Path, default=Path(__file__).parents[1] / "docs" / "mmeb_mini.png", help="where the picture goes")
    parser.add_argument("--seed", type=int, default=39, help="chooses the queries (default: 39)")
    parsed = parser.parse_args(arguments)
    suite_figure(parsed.seed).savefig(parsed.file, dpi=100)


def suite_figure(seed: int) -> Figure:
    """A card for each task: query on the left, thought in the middle, positive on the right."""
    rows = -(-len(TASKS) // COLUMNS)
    figure = Figure(figsize=(4.75 * COLUMNS, 1.9 * rows), facecolor="white")
    cards = figure.subplots(rows, COLUMNS, gridspec_kw={"left": 0.012, "right": 0.995, "top": 0.985, "bottom": 0.01, "wspace": 0.03, "hspace": 0.05})
    for card, task in zip(cards.flat, TASKS.values(), strict=True):
        _draw_card(card, task, np.random.default_rng((seed, len(task.name))))
    return figure


def _draw_card(card: Axes, task: MiniTask, rng: np.random.Generator) -> None:
    subjects = task.subjects("test")
    subject = subjects[int(rng.integers(0, len(subjects)))]
    query = task.query(subject, "test", rng)
    key = next(iter(task.grades(subject)))
    corpus = task.corpus("test") if task.local is None else task.local(subject, rng)
    card.axis("off")
    card.set(xlim=(-0.1, 4.5), ylim=(0.0, 1.72), aspect="equal")
    card.text(0.0, 1.58, task.name, fontsize=12, fontweight="bold", va="center")
    card.text(1.55, 1.58, META_TASKS[task.subgroup], fontsize=9.5, color="0.4", va="center")
    card.text(4.4, 1.58, task.kind, fontsize=9.5, color=COLOURS["always" if task.kind == "composing" else "auto"], va="center", ha="right")
    card.axhline(1.45, color="0.85", linewidth=1, xmin=0.02)
    _draw_item(card, query.item, QUERY, wrap=20)
    card.text(THOUGHT, 0.92, textwrap.fill(query.cot, 22), fontsize=9.5, style="italic", color="0.25", va="center")
    card.annotate("", (POSITIVE - 0.06, 0.92), (POSITIVE - 0.26, 0.92), arrowprops={"arrowstyle": "-|>", "color": "0.5"})
    _draw_item(card, task.candidate(key, "test", None).item, POSITIVE, wrap=12)
    for left, caption in ((QUERY, "query"), (THOUGHT, "reference thought"), (POSITIVE, f"positive, 1 of {len(corpus)}")):
        card.text(left, 0.08, caption, fontsize=8, color="0.5", va="center")


def _draw_item(card: Axes, item: Item, left: float, *, wrap: int) -> None:
    frames = item.video if isinstance(item.video, tuple) else ()
    pictures = [load_image(image) for image in (*item.images, *frames)]
    words = " ".join(part for part in (item.instruction, item.text) if part)
    lines = textwrap.fill(words, 34 if pictures else wrap, break_long_words=False)
    card.text(left, 0.3 if pictures else 0.92, lines, fontsize=10.5, va="center")
    for picture in pictures:
        height = min(0.36 if frames else 0.78 if words else 0.98, 1.5 * picture.height / picture.width)
        width = height * picture.width / picture.height
        card.imshow(picture, extent=(left, left + width, 0.92 - height / 2, 0.92 + height / 2), interpolation="nearest", aspect="equal")
        left += width + 0.03


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
