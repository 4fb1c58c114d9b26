"""python -m experiments.convert runs/mine/1_contrastive/last.ckpt FOLDER --run mine

Makes a bundle of a checkpoint of a stage, finished or not: of ``last.ckpt`` or ``step=….ckpt``, a file or the folder that DeepSpeed writes, or of the
small ``….trainables.safetensors`` beside such a folder. What the stage does not train is taken from the bundle of the stage before it.
Needs the run's folder. A DeepSpeed folder without the small file beside it is read by DeepSpeed's own converter, which unpickles it: convert only
what you have written yourself.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.command_line import add_settings, new_parser, prepare_process, run_command, settings
from experiments.runs import STEPS, RunFolder, Step
from twn_lightning.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from twn_lightning.configs.run import RunConfig
    from twn_lightning.trainables import Trainables

log = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> None:
    """Check the arguments without torch, then convert.

    Raises:
        TwnError: Something the user can mend.
    """
    parser = new_parser("convert", __doc__)
    parser.add_argument("checkpoint", type=Path, help="a .ckpt file or folder, or a .trainables.safetensors file")
    parser.add_argument("folder", type=Path, help="where the bundle goes; must not be there yet")
    add_settings(parser, of_run=True)
    parsed = parser.parse_intermixed_args(arguments)
    config = settings(parsed, of_run=True)
    if not parsed.checkpoint.exists():
        raise CheckpointError(f"There is no checkpoint at {parsed.checkpoint}. A stage keeps its last one in runs/RUN/STAGE/last.ckpt.")
    if parsed.folder.exists():
        raise ConfigError(f"{parsed.folder} is there already: name a folder that is not.")
    prepare_process()
    convert(config, parsed.checkpoint, parsed.folder)


def convert(config: RunConfig, checkpoint: Path, folder: Path) -> Path:
    """Make a bundle of a checkpoint.

    Args:
        config: The settings of the run that it is of.
        checkpoint: See the module's words.
        folder: Gets the bundle.

    Returns:
        The folder.

    Raises:
        CheckpointError: The checkpoint cannot be read, is of no stage of the run, or the stage before it has left no bundle.
    """
    from experiments.build import build_model
    from experiments.pipeline import backbone_for
    from experiments.tracking import environment_tags
    from twn_lightning.checkpoints import load_bundle_into, save_bundle

    trainables = read(checkpoint)
    step, run = step_of(trainables, checkpoint), RunFolder(config)
    model = build_model(config)
    number = STEPS.index(step)
    if number:
        before = STEPS[number - 1]
        if not run.is_done(before):
            raise CheckpointError(
                f"{checkpoint} is of {step.title}, which trains only some parts; the others are in the bundle of {before.title}, which is not in "
                f"{run.path}: name the run that it is of with --run."
            )
        load_bundle_into(model, run.bundle(before))
    trainables.put_into(model)
    origin: dict[str, str | int | float] = {**environment_tags(config), "run": config.name, "step": step.name, "seed": config.seed}
    origin |= {"converted_from": checkpoint.name, "global_step": trainables.global_step}
    save_bundle(model, folder, provenance=origin, backbone_path=backbone_for(config, folder))
    log.info("%s after %d steps: %s", step.title, trainables.global_step, folder)
    return folder


def read(checkpoint: Path) -> Trainables:
    """Trained parameters of any kind of checkpoint.

    Raises:
        CheckpointError: It cannot be read.
    """
    from twn_lightning.trainables import beside, read_trainables

    if not checkpoint.is_dir() or beside(checkpoint).is_file():
        return read_trainables(checkpoint)
    from lightning.pytorch.utilities.deepspeed import convert_zero_checkpoint_to_fp32_state_dict

    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / "whole.ckpt"
        try:
            convert_zero_checkpoint_to_fp32_state_dict(checkpoint, whole)
        except (OSError, ValueError, KeyError, IndexError, RuntimeError) as error:
            raise CheckpointError(f"{checkpoint} is no checkpoint that DeepSpeed can put together: {error}.") from error
        return read_trainables(whole)


def step_of(trainables: Trainables, checkpoint: Path) -> Step:
    """Which step a checkpoint is of: by its folder's name, else the first of its stage.

    Raises:
        CheckpointError: It is of none.
    """
    by_folder = [step for number, step in enumerate(STEPS) if checkpoint.resolve().parent.name == f"{number + 1}_{step.name}"]
    found = [step for step in [*by_folder, *STEPS] if step.section == trainables.stage]
    if not found:
        raise CheckpointError(f"{checkpoint} is of a stage {trainables.stage!r}, which no run has: {', '.join(step.section for step in STEPS)}.")
    return found[0]


if __name__ == "__main__":
    sys.exit(run_command(main, sys.argv[1:]))
