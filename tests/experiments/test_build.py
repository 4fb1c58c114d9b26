"""What the composition root reads of the user's own data, and how often."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from datamodules.pair_source import PairSource
from datamodules.sources import open_source
from experiments import build
from experiments.build import build_gate_data, build_pair_data, build_processor, build_sources, data_tags, source_weights
from experiments.runs import CONFIGS, STEPS
from twn_lightning.batches import GateBatch
from twn_lightning.configs.load import load_config
from twn_lightning.configs.run import STAGES, RunConfig
from twn_lightning.errors import ConfigError, DataError


@pytest.fixture
def config(tiny_backbone_path: Path, tmp_path: Path) -> RunConfig:
    """Two tasks of the suite, and two files of the user's: one with thoughts, one without."""
    rows = {"with": {"query": "3 + 4", "positive": "7", "query_cot": "it is 7", "positive_cot": "7"}, "without": {"query": "a", "positive": "b"}}
    for name, row in rows.items():
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    sources = ", ".join(f"{{kind: jsonl, weight: 3.0, options: {{path: {tmp_path / name}.jsonl}}}}" for name in rows)
    overrides = [
        f"backbone.path={tiny_backbone_path}",
        "data.tasks=[DigitSum, FlagName]",
        f"data.sources=[{sources}]",
        "data.weights={FlagName: 2.0}",
    ]
    return load_config("mini", folder=CONFIGS, profile="smoke", overrides=overrides)


def test_a_file_is_read_once_for_a_stage_and_its_weight_is_known(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    original = open_source

    def counted(kind: str, options: dict[str, object]) -> PairSource:
        source = original(kind, options)
        opened.append(source.name)
        return source

    monkeypatch.setattr(build, "open_source", counted)
    data = build_pair_data(config, STEPS[0], build_processor(config))
    assert opened == ["with", "without"]
    weights = source_weights(config, data.sources)
    assert (weights["with"], weights["without"], weights["FlagName"]) == (3.0, 3.0, 2.0)
    assert weights.keys() <= {"with", "without", "FlagName", "DigitSum"}  # the settings weigh tasks that this run leaves out


def test_a_source_serves_the_stages_that_it_names(config: RunConfig) -> None:
    first, second = config.data.sources
    sources = [dataclasses.replace(first, stages=("contrastive",)), dataclasses.replace(second, stages=("contrastive", "grpo"))]
    chosen = dataclasses.replace(config, data=dataclasses.replace(config.data, sources=sources))
    kept = {stage: {"with", "without"} & build_sources(chosen, "train", stage=stage).keys() for stage in STAGES}
    assert kept == {"contrastive": {"with", "without"}, "cot_sft": set(), "gate": set(), "grpo": {"without"}}
    build_sources(chosen, "train", with_cot=True)  # stage 2 does not read the file without thoughts
    alone = dataclasses.replace(chosen, data=dataclasses.replace(chosen.data, suite="none", tasks=()))
    with pytest.raises(ConfigError, match="None of data.sources is for the stage cot_sft"):
        build_sources(alone, "train", stage="cot_sft")
    with pytest.raises(ConfigError, match="data.sources.stages holds 'rl': choose among contrastive"):
        dataclasses.replace(first, stages=("rl",))


def test_a_missing_chain_of_thought_is_reported_before_stage_2_trains(config: RunConfig) -> None:
    build_sources(config, "train")
    for read in (lambda: build_pair_data(config, STEPS[1], build_processor(config)), lambda: data_tags(config, with_cot=True)):
        with pytest.raises(DataError, match=r"without\.jsonl, line 1: query_cot is missing"):
            read()


@pytest.mark.parametrize("balanced", [True, False])
def test_gate_batches_are_balanced_as_set(tiny_backbone_path: Path, balanced: bool) -> None:
    overrides = [f"backbone.path={tiny_backbone_path}", f"stages.gate.balanced={balanced}", "stages.gate.batch_size=64", "stages.gate.margin=0"]
    config = load_config("mini", folder=CONFIGS, profile="smoke", overrides=overrides)
    gain = torch.where(torch.arange(400) % 10 == 0, 1.0, -1.0)
    loader = build_gate_data(config, GateBatch(state=torch.zeros(400, 4), gain=gain)).train_dataloader()
    share = float((next(iter(loader)).gain > 0).float().mean())
    assert (share == 0.5) == balanced
