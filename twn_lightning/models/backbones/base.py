"""What the model asks of a backbone family: a processor that makes prompts and thoughts, and four passes over tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from twn_lightning.batches import Inputs, Item, Thoughts
from twn_lightning.errors import ConfigError

ContextFn = Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]
"""Contexts of a checkpointed layer's forward and of its recompute, as torch.utils.checkpoint asks for them."""


@dataclass(frozen=True)
class ProcessorOptions:
    """How items become prompts.

    Attributes:
        min_pixels: Smaller pictures are enlarged to this many pixels; None: the checkpoint's own.
        max_pixels: Larger pictures are shrunk to this many pixels; None: the checkpoint's own. Of a video: of each frame.
        max_video_pixels: All frames of a video together are shrunk to this many pixels; None: no limit but that of each frame.
        num_frames: Frames taken from a video file, evenly spaced.
        max_prompt_tokens: A longer prompt is an error, because cutting it could cut through an image; None: no limit.
        max_thought_tokens: A longer reference chain of thought is an error.
        padding_side: Where prompts of a batch are padded; the results are the same.
        video_timestamps: Whether each pair of frames is preceded by its time, as Qwen3-VL was trained; False saves tokens. Other families have no
            such words.
        video_fps: Frames per second from which those times are reckoned, and Qwen2.5-VL's positions in time.
        layout: Where the instruction stands. user: before the text in the user's turn; system: alone in the system turn; bare: no chat template,
            media first, then instruction and text, and a thought follows at once.
        default_instruction: Of items that bring none.

    Raises:
        ConfigError: A limit below another that it must not undercut.
    """

    min_pixels: int | None = None
    max_pixels: int | None = None
    num_frames: int = 8
    max_prompt_tokens: int | None = None
    max_thought_tokens: int = 256
    padding_side: Literal["left", "right"] = "left"
    video_timestamps: bool = True
    video_fps: float = 2.0
    layout: Literal["user", "system", "bare"] = "user"
    default_instruction: str = ""
    max_video_pixels: int | None = None

    def __post_init__(self) -> None:
        if self.min_pixels is not None and self.max_pixels is not None and self.min_pixels > self.max_pixels:
            raise ConfigError(
                f"backbone.min_pixels is {self.min_pixels} and backbone.max_pixels {self.max_pixels}, but no picture can be larger than the one and "
                "smaller than the other: lower min_pixels, or raise max_pixels."
            )
        if self.layout not in ("user", "system", "bare"):
            raise ConfigError(f"backbone.layout is {self.layout!r}; choose user, system or bare.")


class Processor(Protocol):
    """Makes tensors of items and chains of thought. Holds no weights, and can be pickled for the workers of a data loader."""

    @property
    def options(self) -> ProcessorOptions:
        """The settings it was made with."""

    @property
    def think_open_id(self) -> int:
        """Token of the opening marker, given to the model."""

    @property
    def think_close_id(self) -> int:
        """Token of the closing marker, written by the model."""

    @property
    def pad_id(self) -> int:
        """Token that fills padding."""

    @property
    def eos_id(self) -> int:
        """Token that ends a turn."""

    @property
    def banned_ids(self) -> tuple[int, ...]:
        """Tokens a chain of thought may not hold: vision, padding and chat markers, and the opening marker."""

    @property
    def vocabulary_size(self) -> int:
        """Number of tokens that mean something; a backbone's table may be longer."""

    @property
    def pixels_per_token(self) -> int:
        """Pixels of a picture that become one token."""

    def inputs(self, items: Sequence[Item]) -> Inputs:
        """Prompts of the items, laid out as the options say, with the assistant's turn opened if there are turns. Opens media files.

        Raises:
            DataError: An item is empty, a medium cannot be read, a text holds a marker, or a prompt is too long.
        """

    def thoughts(self, texts: Sequence[str]) -> Thoughts:
        """Chains of thought between their markers.

        Raises:
            DataError: A text is empty, too long, or holds a marker.
        """

    def decode(self, thoughts: Thoughts) -> list[str]:
        """The words of each row, without markers."""


@dataclass(frozen=True)
class Prompt:
    """A batch of prompts just before the first decoder layer.

    Attributes:
        embeddings: Token embeddings with the vision tower's outputs in their places, ``(B, S, H)``.
        position_ids: Positions on the three rotary axes (time, height, width), ``(3, B, S)``.
        next_position: Position of the token after each prompt, the same on the three axes, ``(B,)``.
        visual_mask: Where vision tokens are, bool ``(B, S)``, or None.
        deepstack: For each of the first decoder layers, what is added at the vision tokens, ``(tokens, H)``; empty without vision.
    """

    embeddings: Tensor
    position_ids: Tensor
    next_position: Tensor
    visual_mask: Tensor | None = None
    deepstack: tuple[Tensor, ...] = ()

    def select(self, rows: Tensor) -> Prompt:
        """The given rows, in the given order; a row may be named several times.

        Args:
            rows: Row numbers, ``(R,)``.
        """
        visual_mask, deepstack = self.visual_mask, self.deepstack
        if visual_mask is not None:
            number = (visual_mask.flatten().cumsum(0) - 1).reshape(visual_mask.shape)
            visual_mask = visual_mask[rows]
            chosen = number[rows][visual_mask]
            deepstack = tuple(features[chosen] for features in deepstack)
        return Prompt(self.embeddings[rows], self.position_ids[:, rows], self.next_position[rows], visual_mask, deepstack)


class Backbone(Protocol):
    """A frozen multimodal language model. Implementations are `nn.Module`s."""

    path: str
    processor: Processor
    always_run_vision: bool
    """Whether a batch without pictures runs the vision tower too, on a small grey one whose features are thrown away. Where the tower's parameters
    lie scattered over ranks (DeepSpeed ZeRO stage 3), a rank that leaves it out would leave the others waiting for its share."""

    @property
    def model(self) -> PreTrainedModel:
        """The transformers model that PEFT puts adapters into."""

    @property
    def hidden_size(self) -> int:
        """Width H of the language model."""

    def lora_targets(self, names: Sequence[str]) -> str:
        """A regular expression for these projections of the language model, none of the vision tower.

        Raises:
            ConfigError: The language model has no linear layer of such a name.
        """

    def prompt(self, inputs: Inputs) -> Prompt:
        """Embeds text, runs the vision tower (without gradient) and lays out positions."""

    def embed_tokens(self, token_ids: Tensor) -> Tensor:
        """Token embeddings, ``(..., H)``."""

    def decode_layers(self, prompt: Prompt, attention_mask: Tensor, cache: DynamicCache | None) -> Tensor:
        """The decoder over the prompt's columns, which come after those of the cache; the cache grows by them.

        Args:
            prompt: ``S`` columns to run.
            attention_mask: 1 on tokens of the cache and of the prompt, ``(B, columns of the cache + S)``.
            cache: What came before, or an empty cache to fill, or None for neither.

        Returns:
            Hidden states after the final RMSNorm, ``(B, S, H)``.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every token, float32 ``(..., V)``."""

    def enable_gradient_checkpointing(self, context_fn: ContextFn) -> None:
        """Lets passes without a cache recompute the decoder layers in backward."""

    def checkpointed_layers(self) -> Sequence[nn.Module]:
        """The layers whose `gradient_checkpointing` flag says whether they recompute."""


class Family(Protocol):
    """What a family's module offers."""

    def load_backbone(self, path: str, *, dtype: str, attn_implementation: str, options: ProcessorOptions | None) -> Backbone:
        """See `twn_lightning.models.backbones.load_backbone`."""

    def load_processor(self, path: str, *, options: ProcessorOptions | None) -> Processor:
        """See `twn_lightning.models.backbones.load_processor`."""
