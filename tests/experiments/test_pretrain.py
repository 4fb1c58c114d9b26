"""The pretraining corpus joins no picture with a fact, and the script trains, stops and goes on."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from datamodules.mini import render
from datamodules.mini.assets import STYLES, concepts, countries
from datamodules.mini.splits import scene_concepts, triple_split
from datamodules.mini.tasks import TASKS
from experiments import pretrain_backbone
from experiments.pretrain_corpus import KINDS, SKILLS, WORDS_ALONE, Example, fact_example, motion_example, order_example, reason_example, row_example

JOINS = ("capital", "plus", "Right of", "After the")
"""Words of every sentence that says more than what a picture shows."""


@pytest.mark.parametrize("kind", [kind for kind in [*KINDS, *SKILLS] if kind not in WORDS_ALONE])
def test_answers_to_pictures_hold_no_fact(kind: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        item, answer, shown = KINDS[kind][1]("train", rng) if kind in KINDS else SKILLS[kind]("train", rng)
        assert item.images or item.video
        assert not [word for word in JOINS if word in answer]
        assert item.text in ("", *shown)
        assert all(name in answer for name in shown)


@pytest.mark.parametrize("kind", WORDS_ALONE)
def test_facts_are_true_and_stand_beside_no_picture(kind: str) -> None:
    capitals = {country.capital: country.name for country in countries()}
    rng, checked = np.random.default_rng(2), 0
    for _ in range(200):
        item, answer, shown = KINDS[kind][1]("train", rng)
        assert not item.images
        assert item.video is None
        assert shown == ()
        for left, right, total in re.findall(r"(\d) plus (\d) is (\d+)\.", answer):
            assert int(left) + int(right) == int(total)
            checked += 1
        for country, capital in re.findall(r"The capital of (.+) is (.+)\.$", answer):
            assert capitals[capital] == country
            checked += 1
        fact = re.fullmatch(r"(.+) is the capital of (.+)\.", answer)
        assert fact is None or capitals[fact[1]] == fact[2]
        follows = re.fullmatch(r".+[:f] (\w+), (\w+), (\w+)\. (?:Right of|After) the (\w+) is the (\w+)\.", answer)
        assert follows is None or follows.groups()[3:] in (follows.groups()[:2], follows.groups()[1:3])
        checked += fact is not None or follows is not None
    assert checked > 100


@pytest.mark.parametrize("make", [fact_example, reason_example])
def test_a_fact_asked_for_has_one_answer(make: Callable[..., Example]) -> None:
    rng = np.random.default_rng(3)
    answers: dict[str, str] = {}
    for _ in range(500):
        item, answer, _ = make("train", rng)
        assert answers.setdefault(f"{item.instruction} {item.text}", answer) == answer


def test_composing_questions_are_asked_in_words_alone() -> None:
    rng = np.random.default_rng(6)
    asked = {kind: {KINDS[kind][1]("train", rng).item.instruction for _ in range(60)} for kind in KINDS}
    questions = ("Which capital?", "Which sum?", "What is right of the", "What is after the")
    for question in questions:
        assert [kind for kind, instructions in asked.items() if any(question in instruction for instruction in instructions)] == ["reason"]


@pytest.mark.parametrize("make", [row_example, order_example])
def test_scenes_and_moments_of_pretraining_are_training_triples(make: Callable[..., Example]) -> None:
    rng = np.random.default_rng(1)
    for _ in range(40):
        assert triple_split(make("train", rng).shown) == "train"


def test_motions_of_pretraining_are_training_motions() -> None:
    held_out = {subject for split in ("validation", "test") for subject in TASKS["ClipMotion"].subjects(split)}
    rng, of_scenes = np.random.default_rng(4), 0
    names = {concept.name for concept in scene_concepts()}
    for _ in range(150):
        motion = re.fullmatch(r"The (\w+) moves (\w+)\.", motion_example("train", rng).answer)
        assert motion is not None
        assert motion.groups() not in held_out
        of_scenes += motion[1] in names
    assert 0 < of_scenes < 150


def test_every_kind_is_measured_and_drawings_in_each_style_apart() -> None:
    assert set(SKILLS) == {name for kind in KINDS for name in ([f"{kind}_{style}" for style in STYLES] if kind in ("object", "flag") else [kind])}
    for style in STYLES:
        item, _, (name,) = SKILLS[f"object_{style}"]("validation", np.random.default_rng(5))
        (picture,) = item.images
        assert isinstance(picture, Image.Image)
        concept = next(concept for concept in concepts() if concept.name == name)
        assert picture.tobytes() == render.object_picture(concept, style).tobytes()


@pytest.mark.slow
def test_pretraining_stopped_and_resumed_equals_pretraining_in_one_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pretrain_backbone, "BATCH_SIZE", 2)
    monkeypatch.setattr(pretrain_backbone, "VALIDATE_EVERY", 2)
    monkeypatch.setattr(pretrain_backbone, "SKILLS", {name: SKILLS[name] for name in ("object_twemoji", "fact")})
    monkeypatch.setattr(pretrain_backbone, "tokenizer_corpus", lambda: ["This is the flag of Kenya.", " Which digits?"])
    pretrain_backbone.pretrain(tmp_path / "whole", num_steps=3, tower_steps=1, seed=3)
    pretrain_backbone.pretrain(tmp_path / "parts", num_steps=3, tower_steps=1, seed=3, stop_after=2)
    assert (tmp_path / "parts-checkpoints" / "last.ckpt").exists()
    pretrain_backbone.pretrain(tmp_path / "parts", num_steps=3, tower_steps=1, seed=3)
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
