"""What every command of this package shares: arguments, settings, and errors as one line. Loads without torch."""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from experiments.runs import CONFIGS, RunFolder, resolve_backbone
from twn_lightning.configs.load import load_config
from twn_lightning.configs.run import RunConfig
from twn_lightning.errors import ConfigError, DataError, TwnError

CONFIG, PROFILE = "mini", "cpu"
FAILED = 1
STOPPED = 130


class CommandParser(argparse.ArgumentParser):
    """Answers a wrong argument as every wrong setting is answered: in one line, with what was probably meant."""

    def error(self, message: str) -> NoReturn:
        """Refuse the arguments.

        Raises:
            ConfigError: Always.
        """
        options = [option for action in self._actions for option in action.option_strings]
        wrong = next((word.rstrip(":") for word in message.split() if word.startswith("-")), "")
        near = difflib.get_close_matches(wrong, options, n=1)
        hint = f" Did you mean {near[0]!r}?" if near and near[0] != wrong else ""
        raise ConfigError(f"{self.prog}: {message.removesuffix(', key=value')}.{hint} '{self.prog} --help' says what it takes.")


def new_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """A parser for ``python -m experiments.<name>`` that shows the module's own words as its help."""
    return CommandParser(
        prog=f"python -m experiments.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # a typo is not a short form
    )


def add_settings(parser: argparse.ArgumentParser, *, of_run: bool = False) -> None:
    """Add ``--config``, ``--profile``, ``--run`` and the ``key=value`` overrides.

    Args:
        parser: Gets them.
        of_run: The command works on a run that is there, with the settings that it was made with.
    """
    own = "the run's own" if of_run else ""
    parser.add_argument("--config", metavar="NAME", help=f"a YAML file, or the name of one in experiments/configs (default: {own or CONFIG})")
    parser.add_argument(
        "--profile", metavar="NAME", help=f"a YAML file, or the name of one in experiments/configs/profiles (default: {own or PROFILE})"
    )
    parser.add_argument("--run", metavar="NAME", help="name of the run, and of its folder (default: the config's name)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win over the files, e.g. seed=2 stages.grpo.group_size=4")


def settings(arguments: argparse.Namespace, *, of_run: bool = False) -> RunConfig:
    """The run's settings, checked as far as it goes without torch: ranges and the backbone's folder.

    Args:
        arguments: What was given on the command line.
        of_run: Begin with the ``config.yaml`` in the run's folder, if there is one and no other was given.

    Raises:
        ConfigError: A setting is wrong.
    """
    overrides = [*arguments.overrides, *([f"name={arguments.run}"] if arguments.run else [])]
    config = load_config(arguments.config or CONFIG, folder=CONFIGS, profile=arguments.profile or PROFILE, overrides=overrides)
    written = RunFolder(config).path / "config.yaml"
    if of_run and arguments.config is None and written.is_file():
        config = load_config(written, folder=CONFIGS, profile=arguments.profile, overrides=overrides)
    resolve_backbone(config.backbone.path)
    return config


def require_sources(config: RunConfig) -> None:
    """Refuse to train without a file that is to be trained on.

    Raises:
        DataError: A file named in data.sources is missing.
    """
    for source in config.data.sources:
        path = source.options.get("path")
        if isinstance(path, str) and not Path(path).exists():
            raise DataError(f"data.sources names {path!r}, which is not there (looked for {Path(path).resolve()}): give the path of a file.")


def require_finished(config: RunConfig) -> RunFolder:
    """The folder of a run that has at least one finished stage.

    Raises:
        ConfigError: There is none; lists the runs that are there.
    """
    folder = RunFolder(config)
    if folder.last_done() is None:
        runs = sorted(path.parent.name for path in folder.path.parent.glob("*/config.yaml"))
        raise ConfigError(
            f"Run {config.name!r} has no finished stage in {folder.path}: run 'python -m experiments.train all --run {config.name}' first. "
            f"Runs that are there: {', '.join(runs) or 'none'}."
        )
    return folder


class StandardError(logging.StreamHandler[TextIO]):
    """Writes to what standard error is at that moment: a live progress bar puts itself in its place, and the line goes above the bar."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        self.stream = sys.stderr
        super().emit(record)


def prepare_process() -> None:
    """Load torch as this package needs it: environment first, torchvision's schemas after it; and log plain lines."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # loading a checkpoint is not worth a bar
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # else it talks about its tables
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[StandardError()])
    from twn_lightning.torchvision_compat import ensure_torchvision  # loads torch

    ensure_torchvision()
    import lightning.pytorch  # noqa: F401  (it sets its loggers' levels when it is loaded)

    for noisy in ("httpx", "alembic", "mlflow", "matplotlib", "fsspec", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")


def run_command(body: Callable[[Sequence[str]], None], arguments: Sequence[str]) -> int:
    """Run a command; what the user can mend becomes one line, Ctrl-C a friendly one.

    Returns:
        The exit code: 0, 1 for a `TwnError`, 130 when stopped.
    """
    try:
        body(arguments)
    except TwnError as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
        return FAILED
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped; the same command goes on\n")
        return STOPPED
    return 0
