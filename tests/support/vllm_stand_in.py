"""The part of vLLM's offline interface that we use, over the transformers model of the same folder: it really writes, a token at a time.

It takes only the names that vLLM 0.30.0 takes, as they stand in ``vllm_signatures.json`` (read off the published wheel), and it unfolds prompts by
the rules of vLLM's processor of Qwen3-VL: a picture's placeholder becomes as many as its grid asks for, a clip's a span and a time for each pair of
frames.
"""

from __future__ import annotations

import json
import sys
import types
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

SIGNATURES: dict[str, Any] = json.loads((Path(__file__).parent / "vllm_signatures.json").read_text(encoding="utf-8"))
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def _known(name: str, given: Mapping[str, object]) -> dict[str, Any]:
    unknown = sorted(set(given) - set(SIGNATURES[name]))
    if unknown:
        raise TypeError(f"{name} of vLLM {SIGNATURES['vllm']} takes no {', '.join(unknown)}")
    return dict(given)


@dataclass
class CompletionOutput:
    """What was written, with the token that stopped it."""

    token_ids: list[int]
    finish_reason: str


@dataclass
class RequestOutput:
    """A request with its prompt as it was read."""

    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]


class SamplingParams:
    """Settings of a request."""

    def __init__(self, **settings: object) -> None:
        self.settings = _known("SamplingParams", settings)


class LoRARequest:
    """An adapter's name, number and folder."""

    def __init__(self, lora_name: str, lora_int_id: int, lora_path: str) -> None:
        self.name, self.path = lora_name, lora_path
        assert lora_int_id > 0


class LLM:
    """An engine."""

    started: list[LLM] = []  # noqa: RUF012 -- what a test looks at

    def __init__(self, model: str, **settings: object) -> None:
        self.settings = _known("LLM", settings)
        self.prompts: list[dict[str, Any]] = []
        assert self.settings["enable_lora"]
        assert self.settings["max_lora_rank"] in _RANKS
        if not 0.0 < self.settings["gpu_memory_utilization"] <= 1.0:
            raise ValueError("gpu_memory_utilization must be in (0, 1]")
        self._hf: Any = Qwen3VLForConditionalGeneration.from_pretrained(model, dtype=getattr(torch, self.settings["dtype"]))
        self._hf.train(False)
        self._tokenizer = AutoTokenizer.from_pretrained(model)
        self._adapter: str | None = None
        LLM.started.append(self)

    @torch.no_grad()
    def generate(self, prompts: Sequence[Mapping[str, Any]], sampling_params: Sequence[SamplingParams], **settings: Any) -> list[RequestOutput]:
        """A chain of tokens for each prompt, in order."""
        lora: LoRARequest = _known("LLM.generate", settings)["lora_request"]
        if self._adapter is None:
            config = json.loads((Path(lora.path) / "adapter_config.json").read_text(encoding="utf-8"))
            assert config["r"] <= self.settings["max_lora_rank"]
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # PEFT asks under a name transformers is leaving
                PeftModel.from_pretrained(self._hf, lora.path)
            self._adapter = lora.path
        assert lora.path == self._adapter
        self.prompts += [dict(prompt) for prompt in prompts]
        return [self._one(_known("TokensPrompt", prompt), params.settings) for prompt, params in zip(prompts, sampling_params, strict=True)]

    def _one(self, prompt: dict[str, Any], params: dict[str, Any]) -> RequestOutput:
        media = prompt.get("multi_modal_data", {})
        for kind, values in media.items():
            assert self.settings["enable_mm_embeds"]
            assert set(values) == set(SIGNATURES["multi_modal_data"][kind])
        token_ids, features = self._unfolded(prompt["prompt_token_ids"], media)
        written: list[int] = []
        generator = torch.Generator().manual_seed(params["seed"]) if params["seed"] is not None else None
        while len(written) < params["max_tokens"]:
            scores = self._scores([*token_ids, *written], media, features)
            for token, bias in params["logit_bias"].items():
                scores[token] += bias
            greedy = params["temperature"] == 0.0
            chosen = scores.argmax() if greedy else torch.multinomial((scores / params["temperature"]).softmax(dim=0), 1, generator=generator)
            written.append(int(chosen))
            if written[-1] in params["stop_token_ids"]:
                return RequestOutput(token_ids, [CompletionOutput(written, "stop")])
        return RequestOutput(token_ids, [CompletionOutput(written, "length")])

    def _unfolded(self, token_ids: Sequence[int], media: Mapping[str, Mapping[str, Any]]) -> tuple[list[int], Tensor | None]:
        config, merged = self._hf.config, self._hf.config.vision_config.spatial_merge_size**2
        images = iter(media["image"]["image_grid_thw"].tolist() if "image" in media else [])
        clips = iter(zip(media["video"]["video_grid_thw"].tolist(), media["video"]["timestamps"], strict=True) if "video" in media else [])
        unfolded: list[int] = []
        for token in token_ids:
            if token == config.image_token_id:
                times, height, width = next(images)
                unfolded += [token] * (times * height * width // merged)
            elif token == config.video_token_id:
                (times, height, width), seconds = next(clips)
                assert len(seconds) == times
                for second in seconds:
                    unfolded += self._tokenizer.encode(f"<{second:.1f} seconds>", add_special_tokens=False)
                    unfolded += [config.vision_start_token_id, *[token] * (height * width // merged), config.vision_end_token_id]
            else:
                unfolded.append(token)
        assert next(images, None) is next(clips, None) is None
        features = [media[kind][f"{kind}_embeds"] for kind in ("image", "video") if kind in media]
        return unfolded, torch.cat(features) if features else None

    def _scores(self, token_ids: Sequence[int], media: Mapping[str, Mapping[str, Any]], features: Tensor | None) -> Tensor:
        model, config, ids = self._hf.model, self._hf.config, torch.tensor([token_ids])
        is_image, is_video = ids == config.image_token_id, ids == config.video_token_id
        embeddings, deepstack = model.language_model.embed_tokens(ids), {}
        if features is not None:
            first, *others = torch.split(features, embeddings.shape[-1], dim=1)
            embeddings = embeddings.clone()
            embeddings[is_image | is_video] = first
            deepstack = {"visual_pos_masks": is_image | is_video, "deepstack_visual_embeds": others}
        position_ids, _ = model.get_rope_index(
            ids,
            mm_token_type_ids=is_image.long() + 2 * is_video.long(),
            image_grid_thw=media["image"]["image_grid_thw"] if "image" in media else None,
            video_grid_thw=media["video"]["video_grid_thw"] if "video" in media else None,
            attention_mask=torch.ones_like(ids),
        )
        mask = torch.ones_like(ids)
        hidden = model.language_model(inputs_embeds=embeddings, attention_mask=mask, position_ids=position_ids, **deepstack).last_hidden_state
        scores: Tensor = self._hf.lm_head(hidden[0, -1]).float()
        return scores


def install(monkeypatch: pytest.MonkeyPatch) -> type[LLM]:
    """Puts the stand-in where ``import vllm`` looks; gives its engine's class, whose ``started`` are the engines made since."""
    vllm, lora, request = (types.ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request"))
    vllm.__dict__.update(LLM=LLM, SamplingParams=SamplingParams, __version__=SIGNATURES["vllm"])
    request.__dict__.update(LoRARequest=LoRARequest)
    for module in (vllm, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(LLM, "started", [])
    return LLM
