"""A run's folder: which steps are finished, what they were made with, and which command comes next. Loads without torch."""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import os
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from twn_lightning.configs.load import config_yaml, flatten
from twn_lightning.configs.run import RunConfig
from twn_lightning.errors import CheckpointError, ConfigError
from twn_lightning.files import replacing

log = logging.getLogger(__name__)

CONFIGS = Path(__file__).parent / "configs"
BACKBONES = Path(__file__).parent / "backbones"


@dataclass(frozen=True)
class Step:
    """One link of the pipeline.

    Attributes:
        command: What the command line calls it; stage4 has two steps.
        name: Name in logs, folders and MLflow.
        section: The section of ``stages`` that it is set by.
        title: What it does, for people.
    """

    command: str
    name: str
    section: str
    title: str


STEPS = (
    Step("stage1", "contrastive", "contrastive", "stage 1 · contrastive"),
    Step("stage2", "cot_sft", "cot_sft", "stage 2 · CoT fine-tuning and contrastive"),
    Step("stage3", "gate", "gate", "stage 3 · routing gate"),
    Step("stage4", "grpo", "grpo", "stage 4 · GRPO"),
    Step("stage4", "gate_refit", "gate", "stage 4 · gate refit"),
)
COMMANDS = ("stage1", "stage2", "stage3", "stage4", "all")
_SHARED_PREFIXES = ("seed", "backbone.", "model.", "data.", "decoding.", "trainer.precision", "trainer.accumulate", "trainer.clip")
_FREE_KEYS = ("data.validation_batches",)
_RECIPE_KEYS = ("trainer.accelerator", "trainer.strategy", "trainer.devices", "trainer.num_nodes", "evaluation.validation_queries")
_ENDS_READ = 1 << 20
MAKERS = (
    *(f"twn_lightning/{name}" for name in ("evaluation", "losses", "metrics", "models", "rewards", "stages")),
    *(f"twn_lightning/{name}.py" for name in ("batches", "checkpoints", "distributed", "media", "trainables")),
    "callbacks",
    "datamodules",
    *(f"experiments/{name}.py" for name in ("build", "cross_fit", "encoded_tasks", "gating", "pipeline", "strategy")),
)
"""Files, and folders of them, whose Python sources decide what a step makes; not those that only read settings, or show and serve what was made."""


def resolve_backbone(path: str) -> Path:
    """The folder of a backbone, from a path or from its name in ``experiments/backbones``.

    Raises:
        ConfigError: Neither is there.
    """
    for folder in (Path(path), BACKBONES / path):
        if (folder / "config.json").is_file():
            return folder.resolve()
    names = sorted(file.parent.name for file in BACKBONES.glob("*/config.json"))
    raise ConfigError(
        f"backbone.path is {path!r}, but there is no config.json in it: give a folder, or one of the names {', '.join(names) or '(none shipped)'}."
    )


def num_steps(config: RunConfig, step: Step) -> int:
    """Optimiser steps of a step; 0 where it is left out, as the gate's refit is where there is nothing to refit it for."""
    if step.name == "gate_refit" and not config.stages.grpo.steps:
        return 0
    stages = config.stages
    return {
        "contrastive": stages.contrastive.steps,
        "cot_sft": stages.cot_sft.steps,
        "gate": stages.gate.steps,
        "grpo": stages.grpo.steps,
    }[step.section]


def backbone_digest(path: str) -> str:
    """Digest of a backbone's config.json and of each weight file's name, size, first and last megabyte."""
    folder = resolve_backbone(path)
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name} {size} ".encode())
        with file.open("rb") as content:
            digest.update(content.read(_ENDS_READ))
            content.seek(max(0, size - _ENDS_READ))
            digest.update(content.read(_ENDS_READ))
    return digest.hexdigest()


def code_digest(root: Path = Path(__file__).parents[1]) -> str:
    """Digest of the sources of `MAKERS`, as they are on disk.

    Args:
        root: The folder that the packages lie in.
    """
    digest = hashlib.sha256()
    for maker in MAKERS:
        path = root / maker
        for file in [path] if path.suffix else sorted(path.rglob("*.py")):
            digest.update(f"{file.relative_to(root).as_posix()} {hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()[:16]


class RunFolder:
    """Where a run keeps its steps.

    Args:
        config: The run's settings; the folder is ``output_dir/name``.
        given: What the command line gave besides the stage; the command that comes next needs it too.
    """

    def __init__(self, config: RunConfig, given: Sequence[str] = ()) -> None:
        self.config = config
        self.given = tuple(given) or ("--run", config.name)
        self.path = Path(config.output_dir).resolve() / config.name

    def command(self, name: str) -> str:
        """The command line that trains a stage of this run, or all."""
        return shlex.join(["python", "-m", "experiments.train", name, *self.given])

    def create(self) -> None:
        """Make the folder and write the resolved settings into it.

        Raises:
            ConfigError: It cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            (self.path / "config.yaml").write_text(config_yaml(self.config), encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"The run folder {self.path} cannot be written ({error.strerror}): choose another with output_dir=FOLDER, or mend its permissions."
            ) from None
        if not os.access(self.path, os.W_OK):
            raise ConfigError(f"The run folder {self.path} cannot be written: choose another with output_dir=FOLDER, or mend its permissions.")

    def step(self, step: Step) -> Path:
        """The folder of a step: ``last.ckpt``, ``bundle/``, ``settings.yaml``, ``done.json``."""
        return self.path / f"{STEPS.index(step) + 1}_{step.name}"

    def bundle(self, step: Step) -> Path:
        """Where a step leaves its bundle."""
        return self.step(step) / "bundle"

    def is_done(self, step: Step) -> bool:
        """Whether the step has finished and its bundle is there."""
        return (self.step(step) / "done.json").is_file() and (self.bundle(step) / "twn_config.json").is_file()

    def checkpoint(self, step: Step) -> Path | None:
        """The state of an interrupted step, or None."""
        path = self.step(step) / "last.ckpt"
        return path if path.exists() else None

    def last_done(self) -> Step | None:
        """The last step of the unbroken row of finished ones, or None."""
        last = None
        for step in STEPS:
            if not self.is_done(step):
                break
            last = step
        return last

    def check(self, command: str) -> None:
        """Refuse a stage whose predecessor has not run, or whose folder was begun with other settings.

        Raises:
            CheckpointError: The stage before has not finished; says which command comes first.
            ConfigError: The run was begun with other settings; says which ones.
        """
        steps = [step for step in STEPS if command in (step.command, "all")]
        for before in STEPS[: STEPS.index(steps[0])]:
            if not self.is_done(before):
                raise CheckpointError(
                    f"{steps[0].title} of run {self.config.name!r} goes on from {before.title}, which has not finished in {self.path}: "
                    f"run '{self.command(before.command)}' first, or make train-{before.command} with the same variables."
                )
        for step in STEPS[: STEPS.index(steps[-1]) + 1]:
            self._check_settings(step)

    def begin(self, step: Step) -> None:
        """Make the step's folder and note the settings that it depends on."""
        folder = self.step(step)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "settings.yaml").write_text(yaml.safe_dump(dict(self._relevant(step))), encoding="utf-8")

    def recipe(self, step: Step, made_of: Mapping[str, str] | None = None) -> str:
        """Digest of everything that makes a step: its settings, those of all steps before it, and the seed.

        Args:
            step: Which one.
            made_of: What it is made of besides settings, such as digests of the data and of the backbone.
        """
        settings = flatten(self.config)
        steps = [[before.name, self._relevant(before)] for before in STEPS[: STEPS.index(step) + 1]]
        content = [steps, {key: settings[key] for key in _RECIPE_KEYS}, dict(made_of or {})]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def code(self, step: Step, digest: str) -> str:
        """Digests of the code of a step and of those before it, in their order.

        Args:
            step: Which one; those before it are finished.
            digest: Of `code_digest`. For an earlier step that noted none stands the run's own name, so that it equals no other run's.
        """
        number = STEPS.index(step)
        before = done_numbers(self.step(STEPS[number - 1])).get("code", self.config.name) if number else ""
        return f"{before} {digest}".strip()

    def share(self, step: Step, recipe: str, code: str) -> str | None:
        """Take over a step that another run in the same output folder has finished by the same recipe and code; its files are hard links if they can.

        Args:
            step: Which one.
            recipe: Of `recipe`; a step notes it as it finishes.
            code: Of `code`; likewise. A step that differs in it alone is not taken over, which is logged.

        Returns:
            The run that trained it; None if there is no such step.
        """
        place = self.step(step)
        by_other_code = []
        for done in sorted(self.path.parent.glob(f"*/{place.name}/done.json")):
            other = done.parent
            if other == place or not (other / "bundle" / "twn_config.json").is_file():
                continue
            record = done_numbers(other)
            if record.get("recipe") != recipe:
                continue
            if record.get("code") != code:
                by_other_code.append(other.parent.name)
                continue
            partial = place.with_name(f".{place.name}.sharing")
            shutil.rmtree(partial, ignore_errors=True)
            ignored = shutil.ignore_patterns("*.ckpt", "done.json", "settings.yaml", ".*")
            shutil.copytree(other, partial, ignore=ignored, copy_function=_link_or_copy)
            shutil.rmtree(place, ignore_errors=True)
            partial.rename(place)
            origin = str(record.get("shared_from", other.parent.name))
            self.begin(step)
            self.finish(step, {**record, "shared_from": origin})
            return origin
        if by_other_code:
            log.info(
                "%s: not taken over from %s, made by the same settings but by other code; it is trained again", step.title, ", ".join(by_other_code)
            )
        return None

    def finish(self, step: Step, numbers: Mapping[str, float | int | str]) -> None:
        """Mark the step as done, with what is worth knowing about it."""
        record = {**numbers, "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
        write_atomically(self.step(step) / "done.json", json.dumps(record, indent=2))

    def _relevant(self, step: Step) -> dict[str, str]:
        """What must not change while the step goes on; on other devices it goes on with the same batch."""
        prefixes = (*_SHARED_PREFIXES, f"stages.{step.section}.")
        relevant = {key: value for key, value in flatten(self.config).items() if key.startswith(prefixes) and key not in _FREE_KEYS}
        trainer, key = self.config.trainer, f"stages.{step.section}.batch_size"
        if (trainer.devices, trainer.num_nodes) != (1, 1):
            num_devices = trainer.devices * trainer.num_nodes
            relevant[key] = str(int(relevant[key]) * num_devices) if num_devices > 0 else f"{relevant[key]} a GPU"
        return relevant

    def _check_settings(self, step: Step) -> None:
        path = self.step(step) / "settings.yaml"
        if not path.is_file():
            return
        before, now = yaml.safe_load(path.read_text(encoding="utf-8")), self._relevant(step)
        differing = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
        changes = [f"{key} was {before.get(key, 'not set')} and is {now.get(key, 'not set')}" for key in differing]
        if changes:
            shown = "; ".join(changes[:4]) + (" …" if len(changes) > 4 else "")
            raise ConfigError(
                f"{step.title} of run {self.config.name!r} was begun with other settings: {shown}. "
                f"Choose another run with --run NAME, or remove {self.step(step)} and the steps after it."
            )


def done_numbers(folder: Path) -> dict[str, str | float]:
    """What a finished step noted: when it finished, its seconds and recipe, and where it was taken over from."""
    content = json.loads((folder / "done.json").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def _link_or_copy(source: str, target: str) -> None:
    try:
        Path(target).hardlink_to(source)
    except OSError:  # another file system, or one without hard links
        shutil.copy2(source, target)


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old or the new one, never half of it."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
