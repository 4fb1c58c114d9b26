"""A tiny Qwen3-VL made from nothing: about four million parameters, and a tokenizer trained on a given corpus."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from twn_lightning.models.backbones.shapes import scale_to_width

PATCH_SIZE = 8
MERGE_SIZE = 2
TEMPORAL_PATCH_SIZE = 2
VOCAB_SIZE = 2600

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<think>",
    "</think>",
)
"""Qwen3-VL's names for what its processor and this framework look up."""

_WORDS = Regex(r" ?\p{L}+| ?\p{N}| ?[^\s\p{L}\p{N}]+|\s+")

CHAT_TEMPLATE = (
    "{%- for message in messages -%}<|im_start|>{%- for part in message.content -%}"
    "{%- if part.type == 'image' -%}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- elif part.type == 'video' -%}<|vision_start|><|video_pad|><|vision_end|>"
    "{%- else -%}{{ ' ' + part.text.replace('\\n', ' ') }}{%- endif -%}{%- endfor -%}<|im_end|>{%- endfor -%}"
)
"""One turn between two markers, nothing else: prompts of ten tokens can't carry Qwen's eight of role names."""


def create_tiny_qwen3_vl(folder: Path, corpus: Iterable[str], *, vocab_size: int = VOCAB_SIZE, seed: int = 0) -> None:
    """Writes configuration, tokenizer, processors and random weights, so that `load_backbone` reads the folder.

    Args:
        folder: Made if it does not exist.
        corpus: Texts whose words the tokenizer learns.
        vocab_size: Entries of the tokenizer at most.
        seed: Of the weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    token_ids = _save_processor(folder, corpus, vocab_size=vocab_size)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen3VLForConditionalGeneration(_config(token_ids, vocab_size=vocab_size))
        scale_to_width(model)
        model.save_pretrained(folder)


def _config(token_ids: Mapping[str, int], *, vocab_size: int) -> Qwen3VLConfig:
    """Configuration of the tiny backbone: 4 text layers of width 192 behind 4 vision layers of width 128, one deepstack level.

    Args:
        token_ids: Ids of `SPECIAL_TOKENS`.
        vocab_size: Entries of the tokenizer.
    """
    return Qwen3VLConfig(
        text_config={
            "vocab_size": vocab_size,
            "hidden_size": 192,
            "intermediate_size": 640,
            "num_hidden_layers": 4,
            "num_attention_heads": 6,
            "num_key_value_heads": 3,
            "head_dim": 32,
            "max_position_embeddings": 1024,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5], "mrope_interleaved": True},
            "tie_word_embeddings": True,
            "pad_token_id": token_ids["<|endoftext|>"],
            "eos_token_id": token_ids["<|im_end|>"],
        },
        vision_config={
            "depth": 4,
            "hidden_size": 128,
            "intermediate_size": 512,
            "num_heads": 4,
            "patch_size": PATCH_SIZE,
            "spatial_merge_size": MERGE_SIZE,
            "temporal_patch_size": TEMPORAL_PATCH_SIZE,
            "out_hidden_size": 192,
            "num_position_embeddings": 144,
            "deepstack_visual_indexes": [1],
        },
        image_token_id=token_ids["<|image_pad|>"],
        video_token_id=token_ids["<|video_pad|>"],
        vision_start_token_id=token_ids["<|vision_start|>"],
        vision_end_token_id=token_ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )


def _save_processor(folder: Path, corpus: Iterable[str], *, vocab_size: int) -> dict[str, int]:
    """Trains the tokenizer on the corpus and writes tokenizer, image and video processor the way Qwen3-VL's are laid out."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(_WORDS, behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        padding_side="left",
        additional_special_tokens=[token for token in SPECIAL_TOKENS if token not in ("<|im_end|>", "<|endoftext|>")],
    )
    limits = {"shortest_edge": (PATCH_SIZE * MERGE_SIZE) ** 2, "longest_edge": 128 * 128}
    shape: dict[str, Any] = {"patch_size": PATCH_SIZE, "merge_size": MERGE_SIZE, "temporal_patch_size": TEMPORAL_PATCH_SIZE}
    half: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    processor = Qwen3VLProcessor(  # type: ignore[no-untyped-call]
        image_processor=Qwen2VLImageProcessor(size=limits, **shape, **half),
        tokenizer=fast,
        video_processor=Qwen3VLVideoProcessor(size={"shortest_edge": limits["shortest_edge"], "longest_edge": 16 * 128 * 128}, **shape, **half),
        chat_template=CHAT_TEMPLATE,
    )
    processor.save_pretrained(folder)
    return {token: fast.vocab[token] for token in SPECIAL_TOKENS}
