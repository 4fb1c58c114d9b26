"""Settings of the backbone, the two adapters, the queries and the gate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from twn_lightning.configs.checks import above, at_least, between
from twn_lightning.errors import ConfigError

LANGUAGE_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class BackboneConfig:
    """The frozen multimodal LLM."""

    path: str = "tiny_qwen3_vl"
    """A folder with config.json, tokenizer, processor and safetensors weights, or the name of one in experiments/backbones."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the frozen weights; adapters, queries and gate stay float32."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention kernel; flash_attention_2 only where it is installed."""
    gradient_checkpointing: bool = False
    """Recompute activations of the language model in stages 2 and 4: less memory, more time."""
    min_pixels: int | None = None
    """Smallest picture area after resizing, in pixels; None leaves it to the backbone's processor."""
    max_pixels: int | None = None
    """Largest picture area after resizing, in pixels; None leaves it to the backbone's processor."""
    num_frames: int = 8
    """Frames taken from a video, evenly spaced."""
    max_video_pixels: int | None = None
    """Largest area of all frames of a video together after resizing, in pixels; None: max_pixels of each frame."""
    layout: Literal["user", "system", "bare"] = "user"
    """Where the instruction stands. user: before the text in the user's turn; system: in the system turn (as Qwen3-VL-Embedding is used); bare: no
    chat template, media first, then instruction and text (as VLM2Vec-V2 is used)."""
    default_instruction: str = ""
    """Instruction of inputs that bring none."""
    max_prompt_tokens: int | None = None
    """A longer prompt is an error (it is never cut inside its image tokens); None for no limit."""
    max_thought_tokens: int = 256
    """Longest reference chain of thought in tokens, closing marker included; a longer one is an error."""
    video_timestamps: bool = True
    """Tell the model the time of each pair of frames in words, as Qwen3-VL was trained; False saves tokens."""
    padding_side: Literal["left", "right"] = "left"
    """Where prompts of a batch are padded; embeddings do not depend on it."""

    def __post_init__(self) -> None:
        at_least("backbone.num_frames", self.num_frames, 2, "the vision tower reads frames two by two")
        if self.max_video_pixels is not None:
            at_least("backbone.max_video_pixels", self.max_video_pixels, 1, "it is an area")
        at_least("backbone.max_thought_tokens", self.max_thought_tokens, 3, "a thought holds two markers and some text")


@dataclass(frozen=True)
class LoraConfig:
    """One LoRA adapter on the language model (never on the vision tower)."""

    rank: int = 16
    """Rank of the update."""
    alpha: int = 32
    """The update is scaled by alpha / rank."""
    dropout: float = 0.0
    """Dropout before the update, a probability; anything above 0 makes a re-encoded prompt differ from a cached one in training."""
    target_modules: tuple[str, ...] = LANGUAGE_PROJECTIONS
    """Names of the linear layers that are adapted."""

    def __post_init__(self) -> None:
        at_least("lora.rank", self.rank, 1, "an update of rank 0 is none")
        at_least("lora.alpha", self.alpha, 1, "the update is multiplied by alpha / rank")
        between("lora.dropout", self.dropout, 0.0, 0.99, "it is a probability")
        if not self.target_modules:
            raise ConfigError("lora.target_modules is empty, but an adapter without layers trains nothing: name at least one, e.g. [q_proj, v_proj].")


@dataclass(frozen=True)
class RoutingGateConfig:
    """The gate: a small MLP on what is known of an input before it thinks."""

    hidden_size: int = 128
    """Width of its hidden layer."""
    reads: Literal["embedding", "prompt", "both"] = "prompt"
    """embedding: the state behind the discriminative embedding (what the answer seems to be); prompt: the mean state of the prompt's words (what is
    asked, and of what); both: one after the other."""
    threshold: float = 0.5
    """An input thinks if its probability reaches this; stage 3 replaces it by the one chosen on the validation tasks, or on the labelled
    pairs where there are none."""

    def __post_init__(self) -> None:
        at_least("model.gate.hidden_size", self.hidden_size, 1, "the hidden layer needs a unit")
        between("model.gate.threshold", self.threshold, 0.0, 1.0, "it is compared with a probability (0 always thinks, 1 never)")


@dataclass(frozen=True)
class ModelConfig:
    """What is trained on top of the backbone."""

    reasoning: LoraConfig = field(default_factory=LoraConfig)
    """Adapter that reads the prompt and writes the thoughts."""
    embedding: LoraConfig = field(default_factory=LoraConfig)
    """Adapter under which only the K queries run; not used with adapters=shared."""
    adapters: Literal["dual", "shared"] = "dual"
    """dual: one adapter thinks, another embeds; shared: the adapter of model.reasoning does both, trained by every loss at once, as single-adapter
    models that reason before they embed do (UME-R1-like); needs detach=false. Its rank may be the sum of both for an equal size."""
    pooling: Literal["queries", "last"] = "queries"
    """queries: the embedding is the mean output of the K queries; last: there are no queries, and it is the state of the last token of prompt or
    thought (VLM2Vec-V2-like); needs interface=reencode or adapters=shared."""
    num_queries: int = 2
    """K, the learnable query embeddings whose mean output is the embedding; not used with pooling=last. Ablation: queries."""
    interface: Literal["kv", "reencode"] = "kv"
    """kv: the queries attend to the reasoning adapter's detached cache; reencode: prompt, thought and queries are read anew under the embedding
    adapter, which no reasoning weight influences except through the words (Think-Then-Embed-like). Ablation: interface."""
    detach: bool = True
    """Stop the contrastive gradient at the cache; False lets it reach the reasoning adapter. Ablation: dual_lora (attached)."""
    gate: RoutingGateConfig = field(default_factory=RoutingGateConfig)
    """The routing gate."""

    def __post_init__(self) -> None:
        at_least("model.num_queries", self.num_queries, 1, "the embedding is the mean of the queries' outputs")
        if self.adapters == "shared" and self.detach:
            raise ConfigError(
                "model.adapters is shared and model.detach is true, but a single adapter cannot be cut off from itself: "
                "set model.detach=false, or model.adapters=dual."
            )
        if self.pooling == "last" and self.interface == "kv" and self.adapters == "dual":
            raise ConfigError(
                "model.pooling is last and model.interface is kv, but then the last token was read by the reasoning adapter alone: "
                "set model.interface=reencode, or model.adapters=shared with model.detach=false."
            )


@dataclass(frozen=True)
class DecodingConfig:
    """How thoughts are written at evaluation (stage 4 samples with its own settings)."""

    max_new_tokens: int = 24
    """Longest thought in tokens, closing marker included."""
    temperature: float = 0.0
    """0 is greedy; otherwise it divides the logits."""
    top_p: float = 1.0
    """Nucleus: the smallest set of tokens with this probability mass is sampled from."""

    def __post_init__(self) -> None:
        at_least("decoding.max_new_tokens", self.max_new_tokens, 1, "a thought needs at least its closing marker")
        at_least("decoding.temperature", self.temperature, 0.0, "it divides the logits (0 means greedy)")
        above("decoding.top_p", self.top_p, 0.0, "it is a probability mass")
        between("decoding.top_p", self.top_p, 0.0, 1.0, "it is a probability mass")
