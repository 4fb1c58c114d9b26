"""Chains of thought by vLLM, which writes many of them several times as fast as a loop over tokens does.

    pip install 'twn-lightning[vllm]'        # without -c constraints.txt: vLLM asks for older releases of some web packages
    python -m experiments.evaluate --run NAME evaluation.thought_writer=vllm

vLLM loads the backbone's folder, and the bundle's ``reasoning`` folder as LoRA. It gets the tokens of our own prompts, and what our vision tower
makes of their pictures; it gives token ids, which the model then reads for the generative vector. Both hold the backbone's weights:
``evaluation.vllm_memory`` is the share of the GPU that vLLM takes. A batch is what it writes at once, so large ones suit it.

Not yet run on a GPU. With the CPU build of vLLM 0.30.0, in float32, it wrote a tiny trained Qwen3-VL's own tokens for texts, pictures and clips.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from twn_lightning.batches import Inputs, Thoughts
from twn_lightning.errors import ConfigError
from twn_lightning.models.outputs import Decoding
from twn_lightning.models.prefix import Prefix

if TYPE_CHECKING:
    from twn_lightning.models.dual_lora import DualLoRAModel

FAMILIES = ("qwen3_vl", "qwen3_vl_moe")
"""Backbones whose prompts are known to look alike in vLLM and here."""

_LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_MAX_BANNED = 1024  # vLLM's room for biased tokens of a request
_TEXT, _IMAGE, _VIDEO = 0, 1, 2
_SECONDS = re.compile(r"<(\d+\.\d) seconds>")


class VllmWriter:
    """See `ThoughtWriter`.

    What it writes differs from the model's own generation only where two tokens are about equally probable and vLLM's arithmetic rounds otherwise.

    Args:
        model: Reads the thoughts; its backbone lies in a folder.
        bundle: Whose reasoning adapter writes.
        memory: Share of the GPU's memory that vLLM takes, 0 to 1.
        num_devices: GPUs over which vLLM spreads its weights; the first one is the model's too.

    Raises:
        ConfigError: vLLM is not installed, cannot start, or does not serve such a backbone or prompts.
    """

    def __init__(self, model: DualLoRAModel, bundle: Path, *, memory: float, num_devices: int = 1) -> None:
        _check(model)
        self._model, self._vllm = model, _import_vllm()
        self.name = f"vllm {self._vllm.__version__}, {num_devices} devices"
        rank = int(json.loads((bundle / "reasoning" / "adapter_config.json").read_text(encoding="utf-8"))["r"])
        try:
            self._llm = self._vllm.LLM(
                model=str(model.backbone.path),
                dtype=str(model.backbone.model.dtype).removeprefix("torch."),
                max_model_len=-1,  # the longest that memory allows
                gpu_memory_utilization=memory,
                tensor_parallel_size=num_devices,
                skip_mm_profiling=True,  # its vision tower never runs
                enable_mm_embeds=True,
                enable_lora=True,
                max_loras=1,
                max_lora_rank=next((allowed for allowed in _LORA_RANKS if allowed >= rank), rank),
            )
        except (ValueError, RuntimeError) as error:
            raise ConfigError(
                f"vLLM cannot serve {model.backbone.path} with evaluation.vllm_memory={memory:g} ({error}): "
                "change that share, or set evaluation.thought_writer=own."
            ) from error
        self._lora = importlib.import_module("vllm.lora.request").LoRARequest("reasoning", 1, str((bundle / "reasoning").resolve()))
        self._banned = dict.fromkeys(model.banned.nonzero().flatten().tolist(), -torch.inf)

    def write(self, prompts: Inputs, prefix: Prefix, decoding: Decoding, *, generator: torch.Generator | None) -> Prefix:
        """See `ThoughtWriter.write`."""
        return self._model.extend(prefix, self.thoughts(prompts, decoding, generator=generator).to(prefix.attention_mask.device))

    def thoughts(self, prompts: Inputs, decoding: Decoding, *, generator: torch.Generator | None = None) -> Thoughts:
        """A chain of thought for each prompt, in order, on the CPU.

        Args:
            prompts: On any device.
            decoding: How tokens are chosen.
            generator: Of the seeds of sampled thoughts.

        Raises:
            ConfigError: vLLM laid a prompt out otherwise than our processor, so that its thoughts would be about another prompt.
        """
        processor = self._model.processor
        token_ids = [row[mask.bool()].tolist() for row, mask in zip(prompts.input_ids, prompts.attention_mask, strict=True)]
        requests = self._requests(prompts, token_ids)
        seeds: list[int | None] = [None] * len(token_ids)
        if decoding.temperature:
            seeds = torch.randint(2**31, (len(token_ids),), generator=generator, device=generator.device if generator else None).tolist()
        params = [self._params(decoding, seed) for seed in seeds]
        outputs = self._llm.generate(requests, params, use_tqdm=False, lora_request=self._lora)
        written = []
        for ids, output in zip(token_ids, outputs, strict=True):
            if list(output.prompt_token_ids) != [*ids, processor.think_open_id]:
                raise ConfigError(
                    f"vLLM {self._vllm.__version__} reads a prompt of {len(ids) + 1} tokens as other {len(output.prompt_token_ids)} tokens, so its "
                    "thoughts would be about another prompt: set evaluation.thought_writer=own."
                )
            written.append(torch.tensor([processor.think_open_id, *output.outputs[0].token_ids]))
        return Thoughts(
            token_ids=pad_sequence(written, batch_first=True, padding_value=processor.pad_id),
            mask=pad_sequence([torch.ones_like(row) for row in written], batch_first=True),
        )

    def _params(self, decoding: Decoding, seed: int | None) -> Any:
        return self._vllm.SamplingParams(
            temperature=decoding.temperature,
            top_p=decoding.top_p,
            seed=seed,
            max_tokens=decoding.max_new_tokens,
            stop_token_ids=[self._model.processor.think_close_id],
            ignore_eos=True,
            logit_bias=self._banned,
            detokenize=False,
        )

    def _requests(self, prompts: Inputs, token_ids: Sequence[Sequence[int]]) -> list[dict[str, object]]:
        """The prompts as vLLM takes them: one placeholder a picture, and beside them what our vision tower makes of the pictures.

        Args:
            prompts: On the model's device.
            token_ids: Of each row.
        """
        features = self._features(prompts)
        requests = []
        for row, ids in enumerate(token_ids):
            own = prompts.select(torch.tensor([row], device=prompts.device))
            kinds = own.mm_token_type_ids[own.attention_mask.bool()].tolist()
            media: dict[str, Mapping[str, object]] = {}
            of_images = torch.tensor([kind == _IMAGE for kind in kinds if kind != _TEXT], dtype=torch.bool)
            if own.image_grid_thw is not None:
                media["image"] = {"image_embeds": features[row][of_images], "image_grid_thw": own.image_grid_thw.cpu()}
            if own.video_grid_thw is not None:
                times = self._seconds(ids, kinds, num_times=int(own.video_grid_thw[0, 0]))
                media["video"] = {"video_embeds": features[row][~of_images], "video_grid_thw": own.video_grid_thw.cpu(), "timestamps": [times]}
            request: dict[str, object] = {"prompt_token_ids": [*_folded(ids, kinds), self._model.processor.think_open_id]}
            requests.append({**request, "multi_modal_data": media} if media else request)
        return requests

    def _features(self, prompts: Inputs) -> Sequence[Tensor]:
        """What our vision tower makes of each row's pictures, and what it adds to the first layers, one after the other; none without pictures."""
        found = self._model.backbone.prompt(prompts)
        if found.visual_mask is None:
            return ()
        features = torch.cat([found.embeddings[found.visual_mask], *found.deepstack], dim=1).cpu()
        return torch.split(features, found.visual_mask.sum(dim=1).tolist())

    def _seconds(self, token_ids: Sequence[int], kinds: Sequence[int], *, num_times: int) -> list[float]:
        """The times of a clip's pairs of frames, as the prompt tells them.

        Raises:
            ConfigError: It does not.
        """
        start, end = _clip_span(token_ids, kinds)
        markers = {token_ids[kinds.index(_VIDEO) - 1], token_ids[end]}  # around each pair of frames
        words: list[list[int]] = [[]]
        for place in range(start, end):
            if token_ids[place] in markers or kinds[place] == _VIDEO:
                words.append([])
            else:
                words[-1].append(token_ids[place])
        times = [float(found.group(1)) for text in self._texts([row for row in words if row]) if (found := _SECONDS.fullmatch(text))]
        if len(times) != num_times:
            raise ConfigError(
                "evaluation.thought_writer is vllm, whose prompts tell the times of a clip's frames, but ours do not: set "
                "backbone.video_timestamps=true, or evaluation.thought_writer=own."
            )
        return times

    def _texts(self, rows: Sequence[Sequence[int]]) -> list[str]:
        if not rows:
            return []
        tensors = [torch.tensor(row) for row in rows]
        mask = pad_sequence([torch.ones_like(row) for row in tensors], batch_first=True)
        return self._model.processor.decode(Thoughts(pad_sequence(tensors, batch_first=True), mask))


def _check(model: DualLoRAModel) -> None:
    model_type = model.backbone.model.config.model_type
    if model_type not in FAMILIES:
        raise ConfigError(
            f"evaluation.thought_writer is vllm, which is known to read prompts of {' and '.join(FAMILIES)} as we do, but the backbone "
            f"{model.backbone.path} is of the family {model_type}: set evaluation.thought_writer=own."
        )
    num_banned = int(model.banned.sum())
    if num_banned > _MAX_BANNED:
        raise ConfigError(
            f"{num_banned} tokens of {model.backbone.path} may not be written, but vLLM has room for {_MAX_BANNED}: "
            "set evaluation.thought_writer=own."
        )


def _folded(token_ids: Sequence[int], kinds: Sequence[int]) -> list[int]:
    """The prompt with one placeholder for each picture and for the clip, which vLLM unfolds again."""
    if _VIDEO in kinds:
        start, end = _clip_span(token_ids, kinds)
        placeholder = kinds.index(_VIDEO)
        token_ids = [*token_ids[:start], token_ids[placeholder], *token_ids[end + 1 :]]
        kinds = [*kinds[:start], _VIDEO, *kinds[end + 1 :]]
    return [token for place, token in enumerate(token_ids) if not (kinds[place] == _IMAGE and place and kinds[place - 1] == _IMAGE)]


def _clip_span(token_ids: Sequence[int], kinds: Sequence[int]) -> tuple[int, int]:
    """First and last place between the clip's outer markers: ``<start>[<0.0 seconds><start>…<end>…]<end>``."""
    first, last = kinds.index(_VIDEO), len(kinds) - 1 - kinds[::-1].index(_VIDEO)
    opening = [place for place in range(first - 1) if token_ids[place] == token_ids[first - 1]]
    return (opening[-1] + 1 if opening else first), last + 1


def _import_vllm() -> Any:
    try:
        return importlib.import_module("vllm")
    except ImportError as error:
        raise ConfigError(
            "evaluation.thought_writer is vllm, which needs the package vllm: pip install 'twn-lightning[vllm]' on a machine with a GPU, "
            "or set evaluation.thought_writer=own."
        ) from error
