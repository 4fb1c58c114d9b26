"""Two processes under ZeRO-2 and ZeRO-3, on the CPU: every stage, checkpoints, resuming, converting; equal to one process."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from experiments.convert import convert, main
from experiments.pipeline import run_pipeline
from experiments.runs import CONFIGS, STEPS, RunFolder
from tests.support import cpu_deepspeed
from tests.support.cpu_deepspeed import train, train_unlike
from tests.support.ranks import run_ranks
from twn_lightning.batches import Item
from twn_lightning.checkpoints import load_bundle
from twn_lightning.configs.load import load_config
from twn_lightning.configs.run import RunConfig
from twn_lightning.errors import CheckpointError, ConfigError
from twn_lightning.trainables import beside, read_trainables

pytestmark = pytest.mark.slow

SMALL = (
    "data.tasks=[DigitSum]",
    "tracking.enabled=false",
    "stages.contrastive.steps=1",
    "stages.gate.steps=1",
    "stages.grpo.steps=1",
    "decoding.max_new_tokens=3",
    "stages.cot_sft.cot_every=1",
    "stages.gate.dropout=0.0",
    "stages.grpo.max_new_tokens=4",
    "evaluation.max_queries=2",
    "evaluation.validation_queries=1",
    "callbacks.rollout_samples_every=0",
    "callbacks.evaluate_modes=[never]",
)


def overrides(settings: Sequence[str], name: str, *more: str) -> list[str]:
    return [*settings, *SMALL, f"name={name}", *more]


def load(settings: Sequence[str], name: str, *more: str) -> RunConfig:
    return load_config("mini", folder=CONFIGS, profile="smoke", overrides=overrides(settings, name, *more))


def tensors(bundle: Path) -> dict[str, Tensor]:
    adapters = {
        f"{name}.{key}": value
        for name in ("reasoning", "embedding")
        for key, value in load_file(str(bundle / name / "adapter_model.safetensors")).items()
    }
    parts = {name: torch.load(bundle / name, weights_only=True) for name in ("queries.pt", "gate_mlp.pt")}
    return adapters | {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], *, atol: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=atol, msg=lambda text, name=name: f"{name}: {text}")  # type: ignore[misc]


@pytest.fixture(scope="module")
def one_process(smoke_settings: list[str]) -> RunFolder:
    """Stages 1 to 3 in one process, with the pairs of both ranks in each step."""
    config = load(
        smoke_settings, "one", "stages.contrastive.batch_size=8", "stages.cot_sft.batch_size=8", "stages.gate.batch_size=8", "stages.grpo.steps=0"
    )
    for command in ("stage1", "stage2", "stage3"):
        run_pipeline(config, command)
    return RunFolder(config)


@pytest.fixture(scope="module")
def two_ranks(smoke_settings: list[str]) -> Callable[[int], RunConfig]:
    """All stages on two ranks under a stage of ZeRO, once."""
    done: dict[int, RunConfig] = {}

    def run(zero: int) -> RunConfig:
        if zero not in done:
            settings = [f"trainer.strategy=deepspeed_stage_{zero}", "trainer.devices=2", f"backbone.gradient_checkpointing={zero == 3}"]
            done[zero] = load(smoke_settings, f"zero{zero}", *settings)
            run_ranks(cpu_deepspeed.pipeline, overrides(smoke_settings, f"zero{zero}", *settings))
        return done[zero]

    return run


@pytest.mark.parametrize("zero", [2, 3])
def test_two_ranks_train_what_one_process_does(zero: int, two_ranks: Callable[[int], RunConfig], one_process: RunFolder) -> None:
    folder = RunFolder(two_ranks(zero))
    assert folder.last_done() == STEPS[-1]
    assert (folder.path / "report.md").is_file()
    for step in STEPS[:3]:
        assert_close(tensors(folder.bundle(step)), tensors(one_process.bundle(step)), atol=3e-4)
    before, after = tensors(folder.bundle(STEPS[2])), tensors(folder.bundle(STEPS[3]))
    assert {key.partition(".")[0] for key in before if not torch.equal(before[key], after[key])} == {"reasoning"}
    prompts = [Item(text="3 + 4 = 7"), Item(text="the capital of Japan", instruction="Find the flag.")]
    vectors = []
    for run in (folder, one_process):
        model = load_bundle(run.bundle(STEPS[2]))
        with torch.no_grad():
            vectors.append(model.embed(model.prefill(model.processor.inputs(prompts))).vector)
    torch.testing.assert_close(vectors[0], vectors[1], rtol=0, atol=1e-3)


def test_both_kinds_of_zero_end_alike(two_ranks: Callable[[int], RunConfig]) -> None:
    first, second = (RunFolder(two_ranks(zero)) for zero in (2, 3))
    assert_close(tensors(second.bundle(STEPS[-1])), tensors(first.bundle(STEPS[-1])), atol=3e-4)


def test_all_stages_train_in_the_precision_of_the_profiles(smoke_settings: list[str]) -> None:
    settings = ["trainer.strategy=deepspeed_stage_3", "trainer.devices=2", "trainer.precision=bf16-mixed"]
    settings += ["backbone.dtype=bfloat16", "backbone.gradient_checkpointing=true"]
    run_ranks(cpu_deepspeed.pipeline, overrides(smoke_settings, "bfloat16", *settings))
    folder = RunFolder(load(smoke_settings, "bfloat16", *settings))
    assert folder.last_done() == STEPS[-1]
    bundles = [tensors(folder.bundle(step)) for step in STEPS[:4]]
    moved = [{key.partition(".")[0] for key in after if not torch.equal(before[key], after[key])} for before, after in pairwise(bundles)]
    assert moved == [{"reasoning", "embedding", "queries"}, {"gate_mlp"}, {"reasoning"}]
    assert all(bool(value.isfinite().all()) for bundle in bundles for value in bundle.values())


@pytest.mark.parametrize("zero", [2, 3])
def test_a_sharded_checkpoint_becomes_the_bundle_of_its_stage(zero: int, two_ranks: Callable[[int], RunConfig], tmp_path: Path) -> None:
    config = two_ranks(zero)
    folder = RunFolder(config)
    step = STEPS[1]
    checkpoint = folder.step(step) / "last.ckpt"
    assert beside(checkpoint).stat().st_size < 2e6
    alone = tmp_path / "2_cot_sft" / "last.ckpt"
    shutil.copytree(checkpoint, alone)  # DeepSpeed's shares, without the small file beside them
    expected = tensors(folder.bundle(step))
    for number, each in enumerate((checkpoint, beside(checkpoint), alone)):
        assert_close(tensors(convert(config, each, tmp_path / f"bundle {number}")), expected, atol=0.0)
    with pytest.raises(ConfigError, match="is there already"):
        main([str(checkpoint), str(tmp_path / "bundle 0"), "--run", config.name])
    with pytest.raises(CheckpointError, match="trains only some parts.*stage 1"):
        convert(dataclasses.replace(config, name="none"), checkpoint, tmp_path / "x")


def trained(folder: Path) -> dict[str, Tensor]:
    return dict(read_trainables(folder / "last.ckpt").tensors)


@pytest.fixture(scope="module")
def trainings(tiny_backbone_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The folder of all that two ranks train under a stage of ZeRO (`cpu_deepspeed.resume`), with ``plain`` of one process."""
    done: dict[int, Path] = {}

    def run(zero: int) -> Path:
        if zero not in done:
            done[zero] = tmp_path_factory.mktemp(f"zero{zero}")
            train(tiny_backbone_path, done[zero] / "plain", max_steps=2)
            run_ranks(cpu_deepspeed.resume, done[zero], tiny_backbone_path, zero)
        return done[zero]

    return run


@pytest.mark.parametrize("zero", [2, 3])
def test_resumed_equals_uninterrupted_on_as_many_ranks(zero: int, trainings: Callable[[int], Path]) -> None:
    whole, half, resumed = (trained(trainings(zero) / name) for name in ("whole", "half", "resumed"))
    assert any(not torch.equal(whole[name], value) for name, value in half.items())
    assert_close(resumed, whole, atol=0.0)


@pytest.mark.parametrize("zero", [2, 3])
def test_ranks_with_nothing_in_common_go_together(zero: int, trainings: Callable[[int], Path], tiny_backbone_path: Path, tmp_path: Path) -> None:
    train_unlike(tiny_backbone_path, tmp_path, slice(0, 8))
    for stage in ("contrastive", "cot_sft"):  # one rank has no pictures, no negatives and fewer pieces; their mean is the whole batch
        assert_close(trained(trainings(zero) / "unlike" / stage), trained(tmp_path / stage), atol=1e-4)
    assert read_trainables(trainings(zero) / "unlike" / "grpo" / "last.ckpt").global_step == 2


@pytest.mark.parametrize("zero", [2, 3])
def test_another_number_of_ranks_goes_on_from_equal_parameters(
    zero: int, trainings: Callable[[int], Path], tiny_backbone_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = trainings(zero)
    _, straight = train(tiny_backbone_path, tmp_path / "straight")
    assert_close(trained(tmp_path / "straight"), trained(folder / "whole"), atol=1e-4)
    with caplog.at_level("WARNING"):
        trainer, seen = train(tiny_backbone_path, tmp_path / "on_one", checkpoint=folder / "half" / "last.ckpt")
    assert f"is of ZeRO-{zero} on 2 ranks, and training goes on with one file" in caplog.text
    assert seen.keys == straight.keys[2:]  # the place in the data
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.0  # the end of the schedule
    if zero == 2:  # with new moments, from equal parameters: two ranks from the file of one process, and one process from the shares of two
        assert_close(trained(folder / "from_plain"), trained(tmp_path / "on_one"), atol=2e-4)
