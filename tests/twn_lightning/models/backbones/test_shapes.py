"""The true architectures, counted without memory, and what shrinking keeps of them."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from peft import get_peft_model

from twn_lightning.errors import ConfigError
from twn_lightning.models.adapters import LoraSpec
from twn_lightning.models.backbones import load_backbone, load_processor
from twn_lightning.models.backbones.qwen3_vl import GroupedQwen3VLVisionAttention
from twn_lightning.models.backbones.qwen_vl import QwenVLBackbone
from twn_lightning.models.backbones.shapes import ARCHITECTURES, save_random, shrunk, true_config, without_weights

PARAMETERS = {
    "qwen3-vl-2b": 2_127_532_032,
    "qwen3-vl-4b": 4_437_815_808,
    "qwen3-vl-8b": 8_767_123_696,
    "qwen3-vl-30b-a3b": 31_070_754_032,
    "qwen2.5-vl-3b": 3_754_622_976,
    "qwen2.5-vl-7b": 8_292_166_656,
    "qwen2-vl-2b": 2_208_985_600,
    "qwen2-vl-7b": 8_291_375_616,
}


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_an_architecture_has_as_many_parameters_as_its_checkpoint(name: str) -> None:
    assert sum(parameter.numel() for parameter in without_weights(name).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize(("name", "per_rank"), [("qwen3-vl-4b", 2_064_384), ("qwen3-vl-8b", 2_727_936)])
def test_what_a_unit_of_rank_costs(tiny_backbone_path: Path, name: str, per_rank: int) -> None:
    """By hand, 4B: 36 layers of q 2560 + 4096, k and v 2560 + 1024, o 4096 + 2560, gate, up and down 2560 + 9728 each."""
    assert (
        per_rank
        == {
            "qwen3-vl-4b": 36 * (6656 + 2 * 3584 + 6656 + 3 * 12_288),
            "qwen3-vl-8b": 36 * (8192 + 2 * 5120 + 8192 + 3 * 16_384),
        }[name]
    )
    model = without_weights(name)
    backbone = QwenVLBackbone(model, load_processor(tiny_backbone_path), path=name, attention=GroupedQwen3VLVisionAttention)
    spec = LoraSpec(rank=2, alpha=2)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")
        get_peft_model(model, spec.config(backbone.lora_targets(spec.target_modules)), adapter_name="reasoning")
    assert sum(parameter.numel() for key, parameter in model.named_parameters() if ".lora_" in key) == 2 * per_rank


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_shrinking_keeps_the_structure(name: str) -> None:
    true, small = true_config(name), shrunk(true_config(name))
    text, own = true.get_text_config(), small.get_text_config()
    assert small.model_type == true.model_type
    assert own.num_hidden_layers == 4
    assert own.num_attention_heads // own.num_key_value_heads == text.num_attention_heads // text.num_key_value_heads
    head = getattr(own, "head_dim", own.hidden_size // own.num_attention_heads)
    assert sum(own.rope_parameters["mrope_section"]) == head // 2 == 8
    true_head = getattr(text, "head_dim", text.hidden_size // text.num_attention_heads)
    assert own.hidden_size * text.num_attention_heads * true_head == text.hidden_size * own.num_attention_heads * head
    assert own.intermediate_size / own.hidden_size == pytest.approx(text.intermediate_size / text.hidden_size, rel=0.02)
    assert small.tie_word_embeddings == true.tie_word_embeddings
    levels = getattr(true.vision_config, "deepstack_visual_indexes", ())
    assert len(set(getattr(small.vision_config, "deepstack_visual_indexes", ()))) == len(levels) == (3 if "qwen3" in name else 0)
    if "qwen2.5" in name:
        assert small.vision_config.fullatt_block_indexes == [1, 3]
        assert small.vision_config.tokens_per_second == 2
    if "a3b" in name:
        assert (own.num_experts, own.num_experts_per_tok) == (8, 2)


def test_random_weights_are_those_of_their_seed(tiny_backbone_path: Path, tmp_path: Path) -> None:
    config = shrunk(true_config("qwen3-vl-2b"), num_layers=3, vision_depth=3)
    made = [
        save_random(tmp_path / f"{number}", config, tokenizer_from=tiny_backbone_path, small=True, seed=seed) for number, seed in enumerate((0, 0, 1))
    ]
    one, same, other = ((folder / "model.safetensors").read_bytes() for folder in made)
    assert one == same
    assert one != other
    half = save_random(tmp_path / "half", config, tokenizer_from=tiny_backbone_path, dtype="bfloat16", small=True)
    assert load_backbone(half, dtype="bfloat16").model.dtype == torch.bfloat16
    assert (half / "model.safetensors").stat().st_size < 0.6 * len(one)


@pytest.mark.slow
def test_the_true_vocabulary_has_rows_that_no_token_uses(tiny_backbone_path: Path, tmp_path: Path) -> None:
    config = shrunk(true_config("qwen2-vl-2b"), num_layers=1, vision_depth=1)
    backbone = load_backbone(save_random(tmp_path / "wide", config, tokenizer_from=tiny_backbone_path))
    assert backbone.model.config.get_text_config().vocab_size == 151_936 > backbone.processor.vocabulary_size


def test_an_unknown_architecture_is_named() -> None:
    with pytest.raises(ConfigError, match="no architecture 'qwen3-vl-5b'; known: qwen3-vl-2b"):
        true_config("qwen3-vl-5b")
