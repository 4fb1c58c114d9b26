"""Two processes under DDP, started by the command itself, are one process with the pairs of both."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from experiments.pipeline import run_pipeline
from experiments.runs import CONFIGS, STEPS, RunFolder
from twn_lightning.checkpoints import load_bundle
from twn_lightning.configs.load import load_config
from twn_lightning.evaluation.report import Report


@pytest.mark.slow
def test_two_processes_that_the_command_starts_train_and_report_what_one_does(smoke_settings: list[str]) -> None:
    settings = [
        *smoke_settings,
        "data.tasks=[DigitSum]",
        "decoding.max_new_tokens=3",
        "stages.cot_sft.cot_every=2",  # on one of the two steps the reasoning adapter has no gradient
        "stages.gate.dropout=0.0",  # its masks are each rank's own
        "stages.gate.labels=tasks",
        "stages.grpo.steps=0",
        "callbacks.rollout_samples_every=0",
        "tracking.enabled=false",
    ]
    ranks = [*settings, "trainer.devices=2", "trainer.strategy=ddp"]
    command = [sys.executable, "-m", "experiments.train", "all", "--profile", "smoke", "--run", "two_ddp", *ranks]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("2 processes train together") == 1  # rank 0 speaks alone

    doubled = [f"stages.{stage}.batch_size=8" for stage in ("contrastive", "cot_sft", "gate")]
    one = load_config("mini", folder=CONFIGS, profile="smoke", overrides=[*settings, *doubled, "name=one_for_ddp"])
    run_pipeline(one, "all")
    two = RunFolder(load_config("mini", folder=CONFIGS, profile="smoke", overrides=[*ranks, "name=two_ddp"]))
    for step in STEPS[:3]:
        parts = [load_bundle(run.bundle(step)).state_dict() for run in (two, RunFolder(one))]
        for name, value in parts[1].items():
            torch.testing.assert_close(parts[0][name], value, rtol=0, atol=3e-4, msg=name)
    examples = [load_file(str(run.step(STEPS[2]) / "gate_examples.safetensors")) for run in (two, RunFolder(one))]
    assert torch.equal(examples[0]["num_reasoning_tokens"], examples[1]["num_reasoning_tokens"])
    torch.testing.assert_close(examples[0]["gain"], examples[1]["gain"], rtol=0, atol=2e-2)
    reports = [Report.from_json((run.path / "report.json").read_text(encoding="utf-8")) for run in (two, RunFolder(one))]
    assert [(row.name, row.scores) for row in reports[0].rows] == [(row.name, row.scores) for row in reports[1].rows]
