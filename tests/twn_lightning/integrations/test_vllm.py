"""Thoughts by vLLM are the model's own: against a stand-in that really writes, and against vLLM itself where it is installed."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.support import vllm_stand_in
from tests.support.vllm_stand_in import SIGNATURES
from twn_lightning.batches import Item
from twn_lightning.checkpoints import save_bundle
from twn_lightning.errors import ConfigError
from twn_lightning.evaluation.encode import encode_items
from twn_lightning.integrations.vllm import VllmWriter
from twn_lightning.models.adapters import LoraSpec
from twn_lightning.models.backbones import load_backbone, load_processor
from twn_lightning.models.backbones.base import ProcessorOptions
from twn_lightning.models.dual_lora import DualLoRAModel
from twn_lightning.models.outputs import Decoding
from twn_lightning.models.thought_writers import OwnWriter, ThoughtWriter, encode_batch

pytestmark = pytest.mark.slow

ModelMaker = Callable[..., DualLoRAModel]
ItemMaker = Callable[[int], list[Item]]
DECODING = Decoding(max_new_tokens=7)


def every_kind(make_items: ItemMaker) -> list[Item]:
    """Items of every kind, a clip of an odd number of frames, and pictures beside a clip."""
    frames = [Image.fromarray(np.random.default_rng(seed).integers(0, 256, (32, 48, 3), dtype=np.uint8)) for seed in range(5)]
    return [*make_items(7), Item(text="an odd clip", video=tuple(frames[:3])), Item(text="all", images=tuple(frames[3:]), video=tuple(frames[:4]))]


def saved(model: DualLoRAModel, folder: Path) -> Path:
    return save_bundle(model, folder / "bundle", provenance={}, backbone_path=Path(model.backbone.path))


def assert_same_thoughts_and_vectors(model: DualLoRAModel, writer: ThoughtWriter, items: list[Item], decoding: Decoding) -> None:
    inputs = model.processor.inputs(items)
    own = encode_batch(model, inputs, think="always", decoding=decoding, generator=None, writer=OwnWriter(model))
    others = encode_batch(model, inputs, think="always", decoding=decoding, generator=None, writer=writer)
    assert own.thoughts is not None
    assert others.thoughts is not None
    assert torch.equal(own.thoughts.token_ids, others.thoughts.token_ids)
    assert torch.equal(own.thoughts.mask, others.thoughts.mask)
    assert torch.equal(own.num_reasoning_tokens, others.num_reasoning_tokens)
    assert torch.allclose(own.generative, others.generative, atol=1e-5)
    assert not torch.allclose(own.generative, own.discriminative, atol=1e-2)
    fused = model.encode(inputs, think="always", decoding=decoding)
    assert torch.equal(own.generative, fused.generative)


@pytest.mark.parametrize("interface", ["kv", "reencode"])
@pytest.mark.parametrize("layout", ["user", "bare"])
def test_thoughts_through_the_protocol_are_the_models_own(
    make_model: ModelMaker, make_items: ItemMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, interface: str, layout: str
) -> None:
    engine = vllm_stand_in.install(monkeypatch)
    model = make_model(interface=interface)
    options = dataclasses.replace(model.processor.options, layout=layout, padding_side="right" if layout == "bare" else "left")  # type: ignore[arg-type]
    model.backbone.processor = load_processor(model.backbone.path, options=options)
    writer = VllmWriter(model, saved(model, tmp_path), memory=0.4)
    assert writer.name == f"vllm {SIGNATURES['vllm']}, 1 devices"
    items = every_kind(make_items)
    assert_same_thoughts_and_vectors(model, writer, items, DECODING)
    (started,) = engine.started
    image, video = model.backbone.model.config.image_token_id, model.backbone.model.config.video_token_id
    placeholders = [(prompt["prompt_token_ids"].count(image), prompt["prompt_token_ids"].count(video)) for prompt in started.prompts]
    assert placeholders == [(len(item.images), int(item.video is not None)) for item in items]
    assert {prompt["prompt_token_ids"][-1] for prompt in started.prompts} == {model.processor.think_open_id}


def test_only_the_inputs_that_think_are_written_for(
    tiny_model: DualLoRAModel, make_items: ItemMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = vllm_stand_in.install(monkeypatch)
    writer = VllmWriter(tiny_model, saved(tiny_model, tmp_path), memory=0.4)
    items = every_kind(make_items)
    probability = encode_items(tiny_model, items, batch_size=4, think="never").gate_probability
    tiny_model.gate.threshold = float(probability.median())
    own = encode_items(tiny_model, items, batch_size=4, think="auto", decoding=DECODING)
    others = encode_items(tiny_model, items, batch_size=4, think="auto", decoding=DECODING, writer=writer)
    assert own.generative is not None
    assert others.generative is not None
    assert 0 < int(own.thought.sum()) < len(items)
    assert others.thoughts == own.thoughts
    assert torch.allclose(others.generative, own.generative, atol=1e-5)
    assert len(engine.started[0].prompts) == int(own.thought.sum())


def test_no_banned_token_is_written_and_sampling_is_seeded(
    tiny_model: DualLoRAModel, make_items: ItemMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vllm_stand_in.install(monkeypatch)
    writer = VllmWriter(tiny_model, saved(tiny_model, tmp_path), memory=0.4)
    inputs, sampled = tiny_model.processor.inputs(make_items(4)), Decoding(max_new_tokens=12, temperature=2.0)
    writer.thoughts(inputs, DECODING)  # loads the adapter
    global_state = torch.random.get_rng_state()
    first, again, other = (writer.thoughts(inputs, sampled, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    writer.thoughts(inputs, DECODING)
    assert torch.equal(torch.random.get_rng_state(), global_state)
    assert torch.equal(first.token_ids, again.token_ids)
    assert not torch.equal(first.token_ids[:, :3], other.token_ids[:, :3])
    written = first.token_ids[:, 1:][first.mask[:, 1:].bool()]
    assert not bool(tiny_model.banned[written].any())
    closed = (first.token_ids == tiny_model.processor.think_close_id).sum(dim=1)
    assert closed.max() <= 1  # nothing comes behind the closing marker
    longest = first.mask.sum(dim=1) - 1
    assert bool(((longest == 12) | (closed == 1)).all())


def test_what_vllm_cannot_serve_is_refused(make_model: ModelMaker, make_items: ItemMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    bundle = saved(model, tmp_path)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r"needs the package vllm: pip install 'twn-lightning\[vllm\]'.*thought_writer=own"):
        VllmWriter(model, bundle, memory=0.4)
    vllm_stand_in.install(monkeypatch)
    with pytest.raises(ConfigError, match=r"cannot serve .* with evaluation.vllm_memory=1.5 .*\(0, 1\]"):
        VllmWriter(model, bundle, memory=1.5)
    writer = VllmWriter(model, bundle, memory=0.4)
    model.backbone.processor = load_processor(model.backbone.path, options=dataclasses.replace(model.processor.options, video_timestamps=False))
    clip = model.processor.inputs([item for item in make_items(5) if item.video is not None])
    with pytest.raises(ConfigError, match="backbone.video_timestamps=true"):
        writer.thoughts(clip, DECODING)
    monkeypatch.setattr(vllm_stand_in.LLM, "_unfolded", lambda self, token_ids, media: ([*token_ids, 5], None))
    with pytest.raises(ConfigError, match=r"reads a prompt of \d+ tokens as other \d+ tokens"):
        writer.thoughts(model.processor.inputs(make_items(1)), DECODING)
    monkeypatch.setattr(model.backbone.model.config, "model_type", "qwen2_vl")
    with pytest.raises(ConfigError, match="qwen3_vl and qwen3_vl_moe as we do, but the backbone .* is of the family qwen2_vl"):
        VllmWriter(model, bundle, memory=0.4)


@pytest.mark.ecosystem
def test_vllm_itself_writes_the_models_own_thoughts(make_items: ItemMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("vllm")
    for name, value in {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}.items():  # of its CPU build
        if name not in os.environ:
            monkeypatch.setenv(name, value)
    backbone = load_backbone(Path("experiments/backbones/tiny_qwen3_vl").resolve(), options=ProcessorOptions(num_frames=4))  # heads that vLLM serves
    torch.manual_seed(0)
    spec = LoraSpec(rank=12, alpha=24)
    model = DualLoRAModel(backbone, reasoning=spec, embedding=spec, num_queries=2).eval()
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.02)
    writer = VllmWriter(model, saved(model, tmp_path), memory=0.3)
    assert_same_thoughts_and_vectors(model, writer, every_kind(make_items), Decoding(max_new_tokens=16))
