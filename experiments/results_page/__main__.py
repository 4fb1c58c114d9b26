"""python -m experiments.results_page

Writes docs/results.md and its pictures in docs/results/ from the records in docs/results/records. The same records give the same bytes. Needs no
trained model and no GPU; some seconds. ``--check`` writes nothing, and fails where the page is not what the records give.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import style
from matplotlib.figure import Figure
from PIL import Image

from experiments.command_line import new_parser, run_command
from experiments.results_page.collection import read_collections
from experiments.results_page.page import make_page
from experiments.runs import write_atomically
from twn_lightning.errors import DataError

OUT = Path(__file__).parents[2] / "docs" / "results.md"
PIXELS_AN_INCH = 150
LOOK = {
    "font.family": "DejaVu Sans",
    "font.size": 10.0,
    "axes.titlesize": 10.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "path.simplify": False,
}


def main(arguments: Sequence[str]) -> None:
    """Write the page, or check it.

    Raises:
        TwnError: Something the user can mend; with ``--check`` also a page that is not what the records give.
    """
    parser = new_parser("results_page", __doc__)
    parser.add_argument("--records", type=Path, metavar="FOLDER", help="where the records lie (default: records/ beside the page's pictures)")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", default=OUT, help="the page; its pictures go into a folder of its name (default: docs/results.md)"
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a file differs")
    parsed = parser.parse_args(arguments)
    folder = parsed.out.with_suffix("")
    records = parsed.records or folder / "records"
    if not records.is_dir():
        raise DataError(f"There is no folder {records}: 'python -m experiments.sweep ABLATION --run NAME --seeds 1,2,3 --collect' makes it.")
    text, pictures = render(records, folder=folder.name)
    if parsed.check:
        check(parsed.out, text, pictures)
    else:
        write(parsed.out, text, pictures)


def render(records: Path, *, folder: str = "results") -> tuple[str, dict[str, bytes]]:
    """The page of a folder of records.

    Args:
        records: The folder.
        folder: Where the pictures will lie, as seen from the page.

    Returns:
        Its Markdown, and its pictures as PNG by file name.
    """
    matplotlib.use("agg")
    with style.context(["default", LOOK]):
        page = make_page(read_collections(records), folder=folder)
        return page.markdown(), {name: _png(figure) for name, figure in sorted(page.pictures.items())}


def write(out: Path, text: str, pictures: dict[str, bytes]) -> None:
    """Write the page and its pictures, and remove pictures that are no longer part of it.

    Raises:
        DataError: The folder cannot be written.
    """
    folder = out.with_suffix("")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob("*.png"):
            if path.name not in pictures:
                path.unlink()
        for name, data in pictures.items():
            (folder / name).write_bytes(data)
        write_atomically(out, text)
    except OSError as error:
        raise DataError(f"{folder} cannot be written ({error.strerror}): choose another page with --out.") from error


def check(out: Path, text: str, pictures: dict[str, bytes]) -> None:
    """Compare the page on disk with what the records give.

    Raises:
        DataError: Naming the first file that differs.
    """
    folder = out.with_suffix("")
    again = "run 'python -m experiments.results_page' and commit what it writes"
    if not out.is_file() or out.read_text(encoding="utf-8") != text:
        raise DataError(f"{out} is not what the records give: {again}.")
    for name in sorted({*pictures, *(path.name for path in folder.glob("*.png"))}):
        path = folder / name
        if name not in pictures or not path.is_file() or not _same_picture(path, pictures[name]):
            raise DataError(f"{path} is not what the records give: {again}.")


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=PIXELS_AN_INCH, metadata={"Software": None})
    return buffer.getvalue()


def _same_picture(path: Path, data: bytes) -> bool:
    """Whether two PNG hold the same pixels; another version of zlib may have packed them otherwise."""
    found = path.read_bytes()
    if found == data:
        return True
    try:
        with Image.open(io.BytesIO(found)) as one, Image.open(io.BytesIO(data)) as other:
            return one.size == other.size and bool(np.array_equal(np.asarray(one.convert("RGBA")), np.asarray(other.convert("RGBA"))))
    except (OSError, SyntaxError, ValueError):
        return False


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
