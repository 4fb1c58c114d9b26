"""The Qwen3-VL family: transformers' `Qwen3VLForConditionalGeneration`, frozen."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache, Qwen3VLForConditionalGeneration
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen3_vl.modeling_qwen3_vl import Qwen3VLVisionAttention, apply_rotary_pos_emb_vision

from twn_lightning.batches import Inputs
from twn_lightning.errors import ConfigError
from twn_lightning.models.backbones.base import ContextFn, Processor, ProcessorOptions, Prompt
from twn_lightning.models.backbones.qwen3_vl_processor import Qwen3VLProcessor

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_processor(path: str, *, options: ProcessorOptions | None) -> Processor:
    """See `twn_lightning.models.backbones.load_processor`."""
    return Qwen3VLProcessor(path, options or ProcessorOptions())


def load_backbone(path: str, *, dtype: str, attn_implementation: str, options: ProcessorOptions | None) -> Qwen3VLBackbone:
    """See `twn_lightning.models.backbones.load_backbone`."""
    if dtype not in DTYPES:
        raise ConfigError(f"The backbone's dtype is {dtype!r}; choose one of {', '.join(DTYPES)}.")
    processor = load_processor(path, options=options)
    try:
        model = Qwen3VLForConditionalGeneration.from_pretrained(path, dtype=DTYPES[dtype], attn_implementation=attn_implementation)
    except (OSError, ImportError) as error:
        raise ConfigError(f"The backbone {path} cannot be loaded: {error}") from error
    return Qwen3VLBackbone(model, processor, path=path)


class Qwen3VLBackbone(nn.Module):
    """See `Backbone`.

    Every pass is given explicit positions, so that the model's own `rope_deltas`, which outlive the call that made them, are never used.

    Args:
        model: The pretrained model; it is frozen, and its vision tower is told to run equal pictures together.
        processor: Of the same checkpoint.
        path: Where it came from.
    """

    def __init__(self, model: Qwen3VLForConditionalGeneration, processor: Processor, *, path: str) -> None:
        super().__init__()
        self.path = path
        self.processor = processor
        self.model = model
        self.model.requires_grad_(False).train(False)
        self._sdpa = model.config.get_text_config()._attn_implementation == "sdpa"
        model.model.visual.patch_embed.proj.__class__ = PatchProjection
        for block in model.model.visual.blocks:
            block.attn.__class__ = GroupedVisionAttention

    @property
    def hidden_size(self) -> int:
        """Width of the language model."""
        return int(self.model.config.get_text_config().hidden_size)

    def lora_targets(self, names: Sequence[str]) -> str:
        """See `Backbone.lora_targets`."""
        return rf".*language_model\.layers\.\d+\.\w+\.(?:{'|'.join(names)})"

    def embed_tokens(self, token_ids: Tensor) -> Tensor:
        """See `Backbone.embed_tokens`."""
        embeddings: Tensor = self.model.model.language_model.embed_tokens(token_ids)
        return embeddings

    def prompt(self, inputs: Inputs) -> Prompt:
        """See `Backbone.prompt`."""
        embeddings = self.embed_tokens(inputs.input_ids)
        num_tokens = inputs.attention_mask.sum(dim=1)
        if inputs.pixel_values is None and inputs.pixel_values_videos is None:
            position_ids = (inputs.attention_mask.cumsum(dim=1) - 1).clamp(min=0).expand(3, -1, -1)
            return Prompt(embeddings, position_ids, next_position=num_tokens)
        position_ids, deltas = self.model.model.get_rope_index(
            inputs.input_ids,
            mm_token_type_ids=inputs.mm_token_type_ids,
            image_grid_thw=inputs.image_grid_thw,
            video_grid_thw=inputs.video_grid_thw,
            attention_mask=inputs.attention_mask,
        )
        visual_mask = inputs.mm_token_type_ids > 0
        is_image = inputs.mm_token_type_ids[visual_mask] == 1
        vision, *deepstack = (_in_row_order(features, is_image) for features in self._vision(inputs))
        embeddings = embeddings.clone()
        embeddings[visual_mask] = vision.to(embeddings.dtype)
        return Prompt(embeddings, position_ids, num_tokens + deltas[:, 0], visual_mask, tuple(deepstack))

    def decode_layers(self, prompt: Prompt, attention_mask: Tensor, cache: DynamicCache | None) -> Tensor:
        """See `Backbone.decode_layers`."""
        if self._sdpa and prompt.embeddings.shape[1] == 1:
            attention_mask = attention_mask[:, None, None, :].bool()  # one token sees all of them: spares the making of a causal mask
        output = self.model.model.language_model(
            inputs_embeds=prompt.embeddings,
            attention_mask=attention_mask,
            position_ids=prompt.position_ids,
            past_key_values=cache,
            use_cache=cache is not None,
            visual_pos_masks=prompt.visual_mask,
            deepstack_visual_embeds=list(prompt.deepstack) or None,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """See `Backbone.logits`."""
        logits: Tensor = self.model.lm_head(hidden)
        return logits.float()

    def enable_gradient_checkpointing(self, context_fn: ContextFn) -> None:
        """See `Backbone.enable_gradient_checkpointing`."""
        language_model = self.model.model.language_model
        language_model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False, "context_fn": context_fn})
        # transformers makes the embeddings require a gradient, for reentrant checkpointing; here that would only build a useless graph.
        language_model.disable_input_require_grads()

    def checkpointed_layers(self) -> Sequence[nn.Module]:
        """See `Backbone.checkpointed_layers`."""
        return list(self.model.model.language_model.layers)

    @torch.no_grad()
    def _vision(self, inputs: Inputs) -> list[Tensor]:
        """Features of all images, then of all videos: the tower's output and what deepstack adds, each ``(tokens, H)``."""
        values = [value for value in (inputs.pixel_values, inputs.pixel_values_videos) if value is not None]
        grids = [grid for grid in (inputs.image_grid_thw, inputs.video_grid_thw) if grid is not None]
        visual = self.model.model.visual
        output = visual(torch.cat(values).to(visual.dtype), grid_thw=torch.cat(grids))
        return [output.pooler_output, *output.deepstack_features]


class PatchProjection(nn.Conv3d):
    """The patch embedding's convolution as the matrix product that it is: its windows don't overlap, and torch's way is several times slower.

    Takes the place of the original's class in a loaded model.
    """

    def forward(self, patches: Tensor) -> Tensor:
        """As the original, without the three axes of length 1: ``(patches, width)``."""
        return functional.linear(patches.flatten(1), self.weight.flatten(1), self.bias)


class GroupedVisionAttention(Qwen3VLVisionAttention):
    """transformers' vision attention, which runs picture by picture, with pictures of one size run together.

    Takes the place of the original's class in a loaded model; with an implementation other than sdpa it is the original.
    """

    def forward(
        self,
        hidden_states: Tensor,
        cu_seqlens: Tensor,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        max_seqlen: int | None = None,
        **kwargs: object,
    ) -> Tensor:
        """As the original: ``(patches of all pictures, width)`` in and out."""
        assert position_embeddings is not None
        if self.config._attn_implementation != "sdpa":
            original: Tensor = super().forward(hidden_states, cu_seqlens, position_embeddings, max_seqlen, **kwargs)
            return original
        num_patches = hidden_states.shape[0]
        states = self.qkv(hidden_states).reshape(num_patches, 3, self.num_heads, -1).permute(1, 0, 2, 3)
        query, key = apply_rotary_pos_emb_vision(states[0], states[1], *position_embeddings)
        attend = ALL_ATTENTION_FUNCTIONS["sdpa"]
        starts, lengths = cu_seqlens[:-1], cu_seqlens.diff()
        distinct = torch.unique(lengths).tolist()
        if len(distinct) == 1:
            output = self._together(attend, query, key, states[2], distinct[0])
        else:
            output = torch.empty_like(query)
            for length in distinct:
                rows = (starts[lengths == length, None] + torch.arange(length, device=starts.device)).flatten()
                output[rows] = self._together(attend, query[rows], key[rows], states[2][rows], length)
        projected: Tensor = self.proj(output.reshape(num_patches, -1))
        return projected

    def _together(self, attend: Callable[..., tuple[Tensor, None]], query: Tensor, key: Tensor, value: Tensor, length: int) -> Tensor:
        """Attention within each run of ``length`` rows, all runs at once; ``(rows, heads, head size)`` in and out."""
        shape = query.shape
        batched = [tensor.reshape(-1, length, *shape[1:]).transpose(1, 2) for tensor in (query, key, value)]
        output, _ = attend(self, *batched, attention_mask=None, dropout=0.0, scaling=self.scaling, is_causal=False)
        return output.reshape(shape)


def _in_row_order(features: Tensor, is_image: Tensor) -> Tensor:
    """Features of all images then all videos, put into the order in which their tokens appear."""
    ordered = torch.empty_like(features)
    num_images = int(is_image.sum())
    ordered[is_image] = features[:num_images]
    ordered[~is_image] = features[num_images:]
    return ordered
