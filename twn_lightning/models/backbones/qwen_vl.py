"""What the Qwen-VL families share: one frozen transformers model, a vision tower without gradient, and passes with explicit positions."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel
from transformers.utils.import_utils import is_flash_attn_2_available

from twn_lightning.batches import Inputs
from twn_lightning.errors import ConfigError
from twn_lightning.models.backbones.base import ContextFn, Processor, Prompt
from twn_lightning.models.backbones.packed_attention import use_packed_attention
from twn_lightning.models.backbones.qwen_vl_vision import GroupedVisionAttention, PatchProjection

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(path: str, model_class: type[PreTrainedModel], *, dtype: str, attn_implementation: str) -> PreTrainedModel:
    """The pretrained weights.

    Args:
        path: Folder (or hub name) of the checkpoint.
        model_class: The family's class of the whole model, of transformers.
        dtype: One of `DTYPES`.
        attn_implementation: sdpa, eager or flash_attention_2.

    Raises:
        ConfigError: A setting is not possible here, or the checkpoint cannot be loaded.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"The backbone's dtype is {dtype!r}; choose one of {', '.join(DTYPES)}.")
    if attn_implementation == "flash_attention_2":
        _check_flash_attention(dtype)
    try:
        model: PreTrainedModel = model_class.from_pretrained(path, dtype=DTYPES[dtype], attn_implementation=attn_implementation)
    except (OSError, ImportError, ValueError) as error:
        raise ConfigError(f"The backbone {path} cannot be loaded: {error}") from error
    return model


def _check_flash_attention(dtype: str) -> None:
    if not is_flash_attn_2_available():
        raise ConfigError(
            "backbone.attn_implementation is flash_attention_2, but the package flash-attn (2.3.3 or newer) and a CUDA GPU are not both there: "
            "set backbone.attn_implementation=sdpa, or install it on a machine with a GPU (pip install flash-attn --no-build-isolation)."
        )
    if dtype == "float32":
        raise ConfigError(
            "backbone.attn_implementation is flash_attention_2, which knows no float32: set backbone.dtype=bfloat16, or attn_implementation=sdpa."
        )


class QwenVLBackbone(nn.Module):
    """See `Backbone`.

    Every pass is given explicit positions, so that the model's own `rope_deltas`, which outlive the call that made them, are never used.

    Args:
        model: The pretrained model; it is frozen, and its vision tower is told to run equal pictures together.
        processor: Of the same checkpoint.
        path: Where it came from.
        attention: Takes the place of the class of the tower's attention layers.
        is_timed: Whether positions of a clip's frames are counted in time, by the processor's frames per second.

    Raises:
        ConfigError: The checkpoint has a structure that the passes cannot serve.
    """

    def __init__(
        self, model: PreTrainedModel, processor: Processor, *, path: str, attention: type[GroupedVisionAttention], is_timed: bool = False
    ) -> None:
        super().__init__()
        self.path = path
        self.processor = processor
        self.model = model
        self.always_run_vision = False
        self._seen: tuple[weakref.ref[Inputs], list[Tensor]] | None = None
        self.model.requires_grad_(False).train(False)
        self._is_timed = is_timed
        text = model.config.get_text_config()
        self._sdpa = text._attn_implementation == "sdpa"
        if "sliding_attention" in (getattr(text, "layer_types", None) or ()):
            raise ConfigError(f"The backbone {path} has sliding-window attention, which a shared cache of prompts cannot serve: choose one without.")
        if self._sdpa:
            use_packed_attention(model.model.language_model.layers)
        layers = [name for name, layer in model.model.language_model.layers.named_modules() if isinstance(layer, nn.Linear)]
        self._projections = {name.rpartition(".")[2] for name in layers}
        self._has_experts = bool(getattr(text, "num_experts", 0))
        model.model.visual.patch_embed.proj.__class__ = PatchProjection
        for block in model.model.visual.blocks:
            block.attn.__class__ = attention

    @property
    def hidden_size(self) -> int:
        """Width of the language model."""
        return int(self.model.config.get_text_config().hidden_size)

    def lora_targets(self, names: Sequence[str]) -> str:
        """See `Backbone.lora_targets`."""
        missing = [name for name in names if name not in self._projections]
        if missing and self._has_experts:
            known = ", ".join(sorted(self._projections))
            raise ConfigError(
                f"target_modules names {', '.join(missing)}, but the experts of {self.path} are fused parameters, which adapters on linear layers do "
                f"not reach: set model.reasoning.target_modules=[{known}], and model.embedding.target_modules likewise."
            )
        if missing:
            raise ConfigError(
                f"target_modules names {', '.join(missing)}, but the linear layers of {self.path} are {', '.join(sorted(self._projections))}: "
                "choose among them."
            )
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
            if self.always_run_vision:
                self._features(inputs, *self._grey_picture())
            position_ids = (inputs.attention_mask.cumsum(dim=1) - 1).clamp(min=0).expand(3, -1, -1)
            return Prompt(embeddings, position_ids, next_position=num_tokens)
        position_ids, deltas = self.positions(inputs)
        visual_mask = inputs.mm_token_type_ids > 0
        is_image = inputs.mm_token_type_ids[visual_mask] == 1
        values = [value for value in (inputs.pixel_values, inputs.pixel_values_videos) if value is not None]
        grids = [grid for grid in (inputs.image_grid_thw, inputs.video_grid_thw) if grid is not None]
        vision, *deepstack = (_in_row_order(features, is_image) for features in self._features(inputs, torch.cat(values), torch.cat(grids)))
        embeddings = embeddings.clone()
        embeddings[visual_mask] = vision.to(embeddings.dtype)
        return Prompt(embeddings, position_ids, num_tokens + deltas[:, 0], visual_mask, tuple(deepstack))

    def positions(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Positions of prompts with pictures on the three rotary axes, ``(3, B, S)``, and how much further than its length each goes, ``(B, 1)``."""
        timing = {}
        if self._is_timed and inputs.video_grid_thw is not None:
            seconds = self.model.config.vision_config.temporal_patch_size / self.processor.options.video_fps
            timing["second_per_grid_ts"] = torch.full((len(inputs.video_grid_thw),), seconds, device=inputs.device)
        position_ids, deltas = self.model.model.get_rope_index(
            inputs.input_ids,
            mm_token_type_ids=inputs.mm_token_type_ids,
            image_grid_thw=inputs.image_grid_thw,
            video_grid_thw=inputs.video_grid_thw,
            attention_mask=inputs.attention_mask,
            **timing,
        )
        return position_ids, deltas

    def decode_layers(self, prompt: Prompt, attention_mask: Tensor, cache: DynamicCache | None) -> Tensor:
        """See `Backbone.decode_layers`."""
        if self._sdpa and prompt.embeddings.shape[1] == 1:
            attention_mask = attention_mask[:, None, None, :].bool()  # one token sees all of them: spares the making of a causal mask
        deepstack = {"visual_pos_masks": prompt.visual_mask, "deepstack_visual_embeds": list(prompt.deepstack)} if prompt.deepstack else {}
        output = self.model.model.language_model(
            inputs_embeds=prompt.embeddings,
            attention_mask=attention_mask,
            position_ids=prompt.position_ids,
            past_key_values=cache,
            use_cache=cache is not None,
            **deepstack,
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

    def _features(self, inputs: Inputs, patches: Tensor, grid_thw: Tensor) -> list[Tensor]:
        """What `_run_tower` gives, kept for as long as the next prompts are the same object: stage 4 reads its prompts three times."""
        if self._seen is None or self._seen[0]() is not inputs:
            self._seen = None  # before the next features are made: one batch's at a time
            self._seen = (weakref.ref(inputs), self._run_tower(patches, grid_thw))
        return self._seen[1]

    @torch.no_grad()
    def _run_tower(self, patches: Tensor, grid_thw: Tensor) -> list[Tensor]:
        """Features of pictures in order: the tower's output and, if the family has it, what deepstack adds, each ``(tokens, H)``."""
        visual = self.model.model.visual
        output = visual(patches.to(visual.dtype), grid_thw=grid_thw)
        return [output.pooler_output, *output.get("deepstack_features", ())]

    def _grey_picture(self) -> tuple[Tensor, Tensor]:
        """Patches and grid of a picture of one token, in the mean colour."""
        vision, device = self.model.config.vision_config, self.model.device
        merge, width = vision.spatial_merge_size, vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        return torch.zeros(merge**2, width, device=device), torch.tensor([[1, merge, merge]], device=device)


def _in_row_order(features: Tensor, is_image: Tensor) -> Tensor:
    """Features of all images then all videos, put into the order in which their tokens appear."""
    ordered = torch.empty_like(features)
    num_images = int(is_image.sum())
    ordered[is_image] = features[:num_images]
    ordered[~is_image] = features[num_images:]
    return ordered
