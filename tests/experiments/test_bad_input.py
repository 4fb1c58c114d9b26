"""What a user gets wrong is answered in one line that says what, where and what to do, as the commands print it."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import datamodules.sources
from experiments import evaluate, train
from experiments.build import build_model
from experiments.command_line import FAILED, run_command
from experiments.runs import CONFIGS, STEPS, RunFolder
from twn_lightning.checkpoints import save_bundle
from twn_lightning.configs.load import load_config

EXAMPLE = Path(datamodules.sources.__file__).parent / "example"
Row = dict[str, Any]


@pytest.fixture
def settings(tiny_backbone_path: Path, tmp_path: Path) -> list[str]:
    return [
        "--profile=smoke",
        f"output_dir={tmp_path / 'runs'}",
        f"backbone.path={tiny_backbone_path}",
        "tracking.enabled=false",
        "trainer.progress_bar=false",
    ]


def answer(main: Callable[[Sequence[str]], None], arguments: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that the command answers with."""
    assert run_command(main, arguments) == FAILED
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def change(number: int, **fields: object) -> Callable[[list[Row]], None]:
    def apply(rows: list[Row]) -> None:
        rows[number - 1].update(fields)
        for name in [name for name, value in fields.items() if value is None]:
            del rows[number - 1][name]

    return apply


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (change(1, query={"image": "gone.png"}), ["mine.jsonl, line 1: query.image names 'gone.png'", "does not exist", "correct the path"]),
        (change(2, query={"image": "not_a.png"}), ["mine.jsonl, line 2: query.image", "not_a.png", "cannot be read", "replace the file"]),
        (change(5, query={"video": "not_a.mp4"}), ["mine.jsonl, line 5: query.video", "not_a.mp4", "cannot be read", "replace the file"]),
        (change(3, positive=None), ["mine.jsonl, line 3: positive is missing", "a pair needs both"]),
        (change(4, query_cot="  "), ["mine.jsonl, line 4: query_cot is empty", "write one, or set on_error=skip"]),
        (change(4, positive_cot=None), ["mine.jsonl, line 4: positive_cot is missing", "write one"]),
        (change(6, qeury_cot="round"), ["mine.jsonl, line 6: qeury_cot is not known", "Did you mean 'query_cot'?"]),
    ],
)
def test_a_faulty_line_of_a_users_file_stops_the_run_before_training(
    spoil: Callable[[list[Row]], None], words: list[str], settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in EXAMPLE.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    for name in ("not_a.png", "not_a.mp4"):
        (tmp_path / name).write_bytes(b"words, and nothing to see")
    rows = [json.loads(line) for line in (EXAMPLE / "shapes.jsonl").read_text().splitlines()]
    spoil(rows)
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = ["data.suite=none", f"data.sources=[{{options: {{path: {tmp_path}/mine.jsonl}}}}]"]
    line = answer(train.main, ["all", *settings, *own], capsys)
    assert line.startswith("DataError: ")
    assert not [part for part in words if part not in line], line
    assert not (tmp_path / "runs" / "mini" / "1_contrastive").exists()


@pytest.fixture(scope="module")
def whole_bundle(tiny_backbone_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of an untrained model as the smoke profile has it."""
    config = load_config("mini", folder=CONFIGS, profile="smoke", overrides=[f"backbone.path={tiny_backbone_path}"])
    return save_bundle(build_model(config), tmp_path_factory.mktemp("whole") / "bundle", provenance={}, backbone_path=tiny_backbone_path)


def lose_adapter_key(bundle: Path) -> None:
    path = bundle / "embedding" / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, path)


def lose_gate_key(bundle: Path) -> None:
    tensors = torch.load(bundle / "gate_mlp.pt", weights_only=True)
    tensors.pop("2.bias")
    torch.save(tensors, bundle / "gate_mlp.pt")


def lose_setting(bundle: Path) -> None:
    config = json.loads((bundle / "twn_config.json").read_text())
    del config["interface"]
    (bundle / "twn_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lose_adapter_key, ["/bundle/embedding lacks base_model.model.", "(1 in all)", "damaged"]),
        (lose_gate_key, ["/bundle/gate_mlp.pt must hold weight and bias of two layers"]),
        (lose_setting, ["/bundle/twn_config.json lacks interface"]),
        (lambda bundle: (bundle / "queries.pt").unlink(), ["/bundle lacks queries.pt", "copy all of it"]),
    ],
    ids=["adapter", "gate", "settings", "queries"],
)
def test_a_bundle_with_a_key_missing_is_named(
    spoil: Callable[[Path], None], words: list[str], settings: list[str], whole_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = load_config("mini", folder=CONFIGS, profile="smoke", overrides=settings[1:])
    folder, step = RunFolder(config), STEPS[0]
    folder.create()
    folder.begin(step)
    bundle = shutil.copytree(whole_bundle, folder.bundle(step))
    folder.finish(step, {})
    spoil(bundle)
    line = answer(evaluate.main, settings, capsys)
    assert line.startswith("CheckpointError: ")
    assert not [part for part in words if part not in line], line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stage9"], ["There is no stage 'stage9'", "Available: stage1, stage2, stage3, stage4, all"]),
        ([], ["required: stage", "--help"]),
        (["all", "--profle", "smoke"], ["unrecognized arguments: --profle smoke", "Did you mean '--profile'?"]),
        (["all", "--profile", "smok"], ["There is no profile 'smok'", "Did you mean 'smoke'?", "Available: cpu, ddp"]),
        (["all", "--config", "minni"], ["There is no config 'minni'", "Did you mean 'mini'?"]),
        (["all", "stages.grpo.gruop_size=4"], ["stages.grpo.gruop_size", "Did you mean: 'group_size'?"]),
        (["all", "stages.grpo.group_size=many"], ["stages.grpo.group_size", "'many'", "Integer"]),
        (["all", "stages.grpo.group_size=1"], ["stages.grpo.group_size is 1", "choose 2 or more"]),
        (["all", "seed"], ["'seed' is not an override", "write key=value"]),
    ],
)
def test_a_wrong_argument_is_answered_with_the_right_one(arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    line = answer(train.main, arguments, capsys)
    assert line.startswith("ConfigError: ")
    assert not [part for part in words if part not in line], line


def test_a_task_or_a_weight_that_is_not_there_is_named(settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert "data.tasks names 'DigitSumm'" in answer(train.main, ["all", *settings, "data.tasks=[DigitSumm]"], capsys)
    assert "data.weights names 'Flag'" in answer(train.main, ["all", *settings, "data.tasks=[FlagName]", "data.weights={Flag: 2}"], capsys)


def test_a_run_folder_that_cannot_be_written_is_named(settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("not a folder")
    line = answer(train.main, ["all", *settings, f"output_dir={tmp_path}/file"], capsys)
    assert "file/mini cannot be written (Not a directory): choose another with output_dir=FOLDER" in line
