"""python -m experiments.readme_results --run mini

Rewrites the results table of README.md, between its results marks, from the report of a finished run (``report.json``).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.command_line import add_settings, new_parser, prepare_process, require_finished, run_command, settings
from experiments.runs import write_atomically
from twn_lightning.errors import ConfigError

_BLOCK = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)


def main(arguments: Sequence[str]) -> None:
    """Replace the block.

    Raises:
        ConfigError: The run has no report, or the file no marks.
    """
    parser = new_parser("readme_results", __doc__)
    default = Path(__file__).parents[1] / "README.md"
    parser.add_argument("--readme", type=Path, default=default, help="the file to rewrite (default: the repository's)")
    add_settings(parser, of_run=True)
    parsed = parser.parse_intermixed_args(arguments)
    config = settings(parsed, of_run=True)
    path = require_finished(config).path / "report.json"
    if not path.is_file():
        raise ConfigError(f"Run {config.name!r} has no {path}: run 'python -m experiments.train all --run {config.name}' first.")
    text = parsed.readme.read_text(encoding="utf-8")
    if not _BLOCK.search(text):
        raise ConfigError(f"{parsed.readme} has no '<!-- results -->' … '<!-- /results -->' block: put the two marks where the table belongs.")
    prepare_process()
    from twn_lightning.evaluation.report import Report

    table = Report.from_json(path.read_text(encoding="utf-8")).markdown()
    write_atomically(parsed.readme, _BLOCK.sub(lambda found: f"{found[1]}\n{table}\n{found[2]}", text))


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
