"""python -m experiments.train all

Trains the stages of a run (stage1, stage2, stage3, stage4, or all with the final table) and goes on where it was stopped.
Needs nothing but the installed package; ``--profile smoke`` shows the whole way in a minute or two.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence

from experiments.command_line import add_settings, new_parser, prepare_process, require_sources, run_command, settings
from experiments.runs import COMMANDS, STEPS, RunFolder, num_steps
from twn_lightning.configs.run import RunConfig
from twn_lightning.errors import ConfigError


def main(arguments: Sequence[str]) -> None:
    """Check everything that can be checked without torch, then train.

    Raises:
        TwnError: Something the user can mend.
    """
    parser = new_parser("train", __doc__)
    parser.add_argument("stage", help=", ".join(COMMANDS))
    parser.add_argument("--share", action="store_true", help="take over steps that another run finished with the same settings and code")
    add_settings(parser)
    parsed = parser.parse_intermixed_args(arguments)
    if parsed.stage not in COMMANDS:
        near = difflib.get_close_matches(parsed.stage, COMMANDS, n=1, cutoff=0.5)
        raise ConfigError(f"There is no stage {parsed.stage!r}.{f' Did you mean {near[0]!r}?' if near else ''} Available: {', '.join(COMMANDS)}.")
    config = settings(parsed)
    require_sources(config)
    require_training_data(config, parsed.stage)
    given = list(arguments)
    given.remove(parsed.stage)
    folder = RunFolder(config, given)
    folder.check(parsed.stage)
    folder.create()

    prepare_process()
    from experiments.pipeline import run_pipeline  # torch is loaded here, after everything was checked

    run_pipeline(config, parsed.stage, given, share=parsed.share)


def require_training_data(config: RunConfig, command: str) -> None:
    """Refuse a stage that has nothing to train on.

    Args:
        config: The run's settings.
        command: One of `COMMANDS`; stages that are left out (steps=0) need no data.

    Raises:
        ConfigError: The suite brings test tasks alone, or there is none, and data.sources names nothing for the stage.
    """
    if config.data.suite == "mini":
        return
    for step in STEPS:
        if command not in (step.command, "all") or not num_steps(config, step):
            continue
        if not any(source.weight and source.is_for(step.section) for source in config.data.sources):
            some = " for it of a weight above 0" if config.data.sources else ""
            raise ConfigError(
                f"{step.title} has nothing to train on: data.suite is {config.data.suite}, which brings no pairs, and data.sources names no "
                f"source{some}: name one, as in data.sources=[{{kind: jsonl, options: {{path: mine.jsonl}}}}], take a recipe of experiments/configs "
                f"that does, leave the stage out with stages.{step.section}.steps=0, or set data.suite=mini."
            )


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
