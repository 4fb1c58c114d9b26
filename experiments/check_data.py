"""python -m experiments.check_data --config CONFIG

Reads what a run trains on before it is trained, and lists what is missing: media that are not there or cannot be read, rows without a field, prompts
that are too long; and how many rows and different targets there are, how many lack a chain of thought, and how long they are in tokens. ``--suite
mmeb_v2 --root FOLDER`` reads the test tasks of MMEB-V2 in a folder too. ``--rows 1000`` reads 1000 evenly spaced rows of each source. Nothing is
trained, and no weights are loaded; the lengths need the backbone's processor. ``--out report.md`` (or .json) keeps the report. The exit code is 1 if
something has to be mended.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.command_line import CONFIG, PROFILE, add_settings, new_parser, prepare_process, run_command
from experiments.runs import CONFIGS, resolve_backbone
from twn_lightning.configs.load import load_config
from twn_lightning.configs.run import RunConfig, SourceConfig
from twn_lightning.errors import ConfigError, DataError, TwnError

if TYPE_CHECKING:
    from datamodules.mmeb.suite import SuiteCheck
    from datamodules.source_check import SourceCheck
    from twn_lightning.models.backbones.base import Processor

log = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> None:
    """Check the arguments without torch, then the data.

    Raises:
        ConfigError: An argument or setting is wrong.
        DataError: Something has to be mended; the report says what.
    """
    parser = new_parser("check_data", __doc__)
    parser.add_argument("--suite", choices=("mmeb_v2",), help="also read the test tasks of this suite (default: that of data.suite)")
    parser.add_argument("--root", metavar="FOLDER", help="folder of the suite's data sets and media (default: data.root)")
    parser.add_argument("--rows", type=int, metavar="N", help="rows of each source to read, evenly spaced (default: all)")
    parser.add_argument("--lengths", type=int, default=500, metavar="N", help="rows of each source to measure; 0 needs no backbone (default: 500)")
    parser.add_argument("--media", choices=("open", "exists"), default="open", help="open media, or only look whether they are there (default: open)")
    parser.add_argument("--with-cot", action="store_true", help="rows without chains of thought are faults (stage 2 learns to write them)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the report there, as .md or .json")
    add_settings(parser)
    parsed = parser.parse_intermixed_args(arguments)
    config = _settings(parsed)
    prepare_process()
    sources = _check_sources(config, parsed)
    suite = _check_suite(config, parsed)
    _report(parsed.out, sources, suite)
    num_faults = sum(not check.is_complete for check in sources) + (0 if suite is None else len({problem.task for problem in suite.problems}))
    if num_faults:
        raise DataError(
            f"{num_faults} of the sources and tasks have something to be mended: see the report above, or set on_error=skip for a source."
        )


def _settings(parsed: argparse.Namespace) -> RunConfig:
    """The run's settings; unlike other commands, this one does not stop at the first file that is missing."""
    for name in ("rows", "lengths"):
        value = getattr(parsed, name)
        if value is not None and value < (0 if name == "lengths" else 1):
            raise ConfigError(f"--{name} is {value}, but it counts rows: choose {'0' if name == 'lengths' else '1'} or more.")
    if parsed.out is not None and parsed.out.suffix not in (".md", ".json"):
        raise ConfigError(f"--out is {str(parsed.out)!r}, but the report is Markdown or JSON: end the name in .md or .json.")
    overrides = [*parsed.overrides, *([f"name={parsed.run}"] if parsed.run else [])]
    overrides += [f"data.suite={parsed.suite}"] if parsed.suite else []
    overrides += [f"data.root={parsed.root}"] if parsed.root else []
    config = load_config(parsed.config or CONFIG, folder=CONFIGS, profile=parsed.profile or PROFILE, overrides=overrides)
    if config.data.sources and parsed.lengths:
        resolve_backbone(config.backbone.path)
    return config


def _check_sources(config: RunConfig, parsed: argparse.Namespace) -> list[SourceCheck]:
    sources = config.data.sources
    processor = _processor(config) if sources and parsed.lengths else None
    return [_check_one(config, parsed, source, processor, f"Source {number} of {len(sources)}") for number, source in enumerate(sources, start=1)]


def _processor(config: RunConfig) -> Processor:
    from experiments.build import processor_options
    from twn_lightning.models.backbones import load_processor

    options = dataclasses.replace(processor_options(config), max_prompt_tokens=None, max_thought_tokens=sys.maxsize)
    return load_processor(resolve_backbone(config.backbone.path), options=options)


def _check_one(config: RunConfig, parsed: argparse.Namespace, source: SourceConfig, processor: Processor | None, title: str) -> SourceCheck:
    from datamodules.source_check import SourceCheck, check_source
    from datamodules.sources import has_option, open_source
    from experiments.display import progress

    forced: dict[str, object] = {
        "on_error": "skip",
        "check_media": parsed.media,
        **({"with_cot": True} if parsed.with_cot and source.weight > 0 and source.is_for("cot_sft") else {}),
    }
    options = {**source.options, **{name: value for name, value in forced.items() if has_option(source.kind, name)}}
    try:
        opened = open_source(source.kind, options)
    except TwnError as error:
        return SourceCheck(str(options.get("name") or options.get("config") or options.get("path") or source.kind), messages=(str(error),))
    with progress(f"{title}: {opened.name}") as advance:
        return check_source(
            opened,
            processor,
            max_rows=parsed.rows,
            max_measured=parsed.lengths,
            max_prompt_tokens=config.backbone.max_prompt_tokens,
            max_thought_tokens=config.backbone.max_thought_tokens,
            progress=advance,
        )


def _check_suite(config: RunConfig, parsed: argparse.Namespace) -> SuiteCheck | None:
    if config.data.suite != "mmeb_v2":
        if config.data.suite == "mini":
            log.info("The embedded suite is drawn from installed packages: it has no files that could be missing.")
        return None
    from datamodules.mmeb.suite import check_suite
    from datamodules.mmeb.table import select
    from experiments.display import progress

    with progress("Tasks of MMEB-V2") as advance:
        return check_suite(Path(config.data.root), select(config.data.tasks), open_media=parsed.media == "open", progress=advance)


def _report(out: Path | None, sources: Sequence[SourceCheck], suite: SuiteCheck | None) -> None:
    """Prints the report, and writes it where it is asked for."""
    from datamodules.source_check import markdown

    parts = [*([f"## Training sources\n\n{markdown(sources)}"] if sources else []), *([f"## MMEB-V2\n\n{suite.markdown()}"] if suite else [])]
    text = "\n".join(parts)
    if text:
        sys.stdout.write(f"\n{text}\n")
    if out is None:
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.suffix == ".json":
        found = {"sources": [dataclasses.asdict(check) for check in sources], "suite": None if suite is None else dataclasses.asdict(suite)}
        text = json.dumps(found, indent=2, ensure_ascii=False, default=str) + "\n"
    out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
