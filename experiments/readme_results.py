"""python -m experiments.readme_results

Rewrites the results block of README.md, between its results marks, from the records that the results page is made of: the claims, the think modes,
and what they were measured with. ``--check`` writes nothing, and fails where the block is not what the records give.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.command_line import new_parser, run_command
from experiments.results_page.claim import mode_lines, verdict_lines, verdicts
from experiments.results_page.collection import read_collections
from experiments.results_page.words import commits, listed
from experiments.runs import write_atomically
from twn_lightning.errors import ConfigError, DataError

ROOT = Path(__file__).parents[1]
_BLOCK = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)


def main(arguments: Sequence[str]) -> None:
    """Replace the block, or check it.

    Raises:
        ConfigError: The file has no marks.
        DataError: There are no records; with ``--check`` also a block that they do not give.
    """
    parser = new_parser("readme_results", __doc__)
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="the file to rewrite (default: the repository's)")
    parser.add_argument(
        "--records", type=Path, default=ROOT / "docs" / "results" / "records", help="where the records lie (default: docs/results/records)"
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the block differs")
    parsed = parser.parse_args(arguments)
    text = parsed.readme.read_text(encoding="utf-8")
    if not _BLOCK.search(text):
        raise ConfigError(f"{parsed.readme} has no '<!-- results -->' … '<!-- /results -->' block: put the two marks where the table belongs.")
    written = _BLOCK.sub(lambda found: f"{found[1]}\n{block(parsed.records)}\n{found[2]}", text)
    if not parsed.check:
        write_atomically(parsed.readme, written)
    elif written != text:
        raise DataError(f"The results in {parsed.readme} are not those of {parsed.records}: run 'python -m experiments.readme_results'.")


def block(records: Path) -> str:
    """The block's Markdown.

    Args:
        records: Folder of the records.

    Raises:
        DataError: It holds none.
    """
    groups = read_collections(records)
    if not groups:
        raise DataError(f"{records} holds no record: 'make results' makes them.")
    base = groups[0].base
    made = [f"Run {groups[0].name}, {'seed' if len(base) == 1 else 'seeds'} {listed(str(record.seed) for record in base)}"]
    told = {
        "trained at commit": commits(record.provenance.get("commit.trained", "") for record in base),
        "data": "; ".join(filter(None, dict.fromkeys(record.provenance.get("data_revision", "").partition(",")[0] for record in base))),
        "device": "; ".join(filter(None, dict.fromkeys(record.provenance.get("device", "") for record in base))),
    }
    made += [f"{title} {value}" for title, value in told.items() if value]
    drawn = "over test queries (there is one seed)" if len(base) == 1 else "over seeds and test queries"
    return "\n".join(
        [
            *verdict_lines(verdicts(groups[0])),
            "",
            *mode_lines(groups[0]),
            "",
            f"Mean scores over tasks, 0 to 100, with 95 % intervals {drawn}. {', '.join(made)}.",
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
