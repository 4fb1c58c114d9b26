"""The pretraining corpus joins no picture with a fact, and the script trains, stops and goes on."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from datamodules.mini.assets import countries
from datamodules.mini.splits import triple_split
from experiments import pretrain_backbone
from experiments.pretrain_corpus import KINDS, row_example, text_example


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "text"])
def test_answers_to_pictures_hold_no_fact(kind: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        item, answer, _ = KINDS[kind][1]("train", rng)
        assert item.images or item.video
        assert "capital" not in answer
        assert "plus" not in answer
        assert "Right of" not in answer


def test_scenes_of_pretraining_are_training_triples() -> None:
    rng = np.random.default_rng(1)
    for _ in range(50):
        _, answer, _ = row_example("train", rng)
        assert triple_split(re.findall(r"[a-z]+", answer.split(":")[1])) == "train"


def test_texts_state_true_facts_and_hold_no_picture() -> None:
    capitals = {country.capital: country.name for country in countries()}
    rng = np.random.default_rng(2)
    for _ in range(100):
        item, answer, _ = text_example("train", rng)
        assert not item.images
        assert item.video is None
        total = re.search(r"(\d) plus (\d) is (\d+)\.", answer)
        assert total is None or int(total[1]) + int(total[2]) == int(total[3])
        fact = re.fullmatch(r"(.+) is the capital of (.+)\.", answer)
        assert fact is None or capitals[fact[1]] == fact[2]


def test_pretraining_stopped_and_resumed_equals_pretraining_in_one_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain_backbone, "BATCH_SIZE", 2)
    monkeypatch.setattr(pretrain_backbone, "VALIDATE_EVERY", 2)
    monkeypatch.setattr(pretrain_backbone, "tokenizer_corpus", lambda: ["This is the flag of Kenya.", " Which digits?"])
    pretrain_backbone.pretrain(tmp_path / "whole", num_steps=4, tower_steps=1, seed=3)
    pretrain_backbone.pretrain(tmp_path / "parts", num_steps=4, tower_steps=1, seed=3, stop_after=2)
    assert (tmp_path / "parts-checkpoints" / "last.ckpt").exists()
    pretrain_backbone.pretrain(tmp_path / "parts", num_steps=4, tower_steps=1, seed=3)
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
