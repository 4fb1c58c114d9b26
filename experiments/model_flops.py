"""How many floating-point operations a step needs, by formula: what a measured time is divided by to give a share of the device's peak (MFU).

A product of a row with a matrix of P weights takes 2 P operations. Of a frozen matrix the backward pass computes the gradient of its input alone
(2 P more), of a LoRA matrix that of its weights too (4 P more). Attention of one token to one key takes 4 operations for each unit of all heads'
width, once more as much for the gradients of query and weights, and once more where keys and values have gradients as well. Only what the result
needs is counted: causal halves, no padding, and neither the second forward of gradient checkpointing nor the first one of GradCache. Norms,
activations, rotary embeddings, softmax and the optimiser are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twn_lightning.models.dual_lora import DualLoRAModel


@dataclass(frozen=True)
class Side:
    """Queries or positives of a batch.

    Attributes:
        lengths: Prompt tokens of each row, padding left out.
        patches: Patches of each picture of the batch.
    """

    lengths: Sequence[int]
    patches: Sequence[int] = ()


@dataclass(frozen=True)
class ModelFlops:
    """Operations of a model's passes; each method gives a number of operations.

    Attributes:
        layer_weights: Weights of all decoder layers that a token meets (of experts, those that are chosen).
        attention_width: Sum over decoder layers of heads times head width.
        head_weights: Of the output layer.
        vision_weights: Of the vision tower's blocks, which every patch meets.
        merger_weights: Of what turns patches into tokens.
        patches_per_token: Patches that become one token.
        vision_width: Sum over the tower's blocks of their width.
        reasoning_weights: Of the reasoning adapter.
        embedding_weights: Of the embedding adapter.
        num_queries: K.
    """

    layer_weights: int
    attention_width: int
    head_weights: int
    vision_weights: int
    merger_weights: int
    patches_per_token: int
    vision_width: int
    reasoning_weights: int
    embedding_weights: int
    num_queries: int

    @classmethod
    def of(cls, model: DualLoRAModel) -> ModelFlops:
        """What a model's passes take, counted from its weights and configuration."""
        config = model.backbone.model.config
        text, vision = config.get_text_config(), config.vision_config
        counts = {"layer": 0, "expert": 0, "vision": 0, "merger": 0}
        for name, parameter in model.backbone.model.named_parameters():
            if ".lora_" not in name and parameter.ndim > 1:
                counts[_kind(name)] = counts.get(_kind(name), 0) + parameter.numel()
        chosen = getattr(text, "num_experts_per_tok", 1) / getattr(text, "num_experts", 1)
        report = model.parameter_report()
        head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return cls(
            layer_weights=counts["layer"] + round(counts["expert"] * chosen),
            attention_width=text.num_hidden_layers * text.num_attention_heads * head_width,
            head_weights=text.vocab_size * text.hidden_size,
            vision_weights=counts["vision"],
            merger_weights=counts["merger"],
            patches_per_token=vision.spatial_merge_size**2,
            vision_width=vision.depth * (getattr(vision, "embed_dim", None) or vision.hidden_size),
            reasoning_weights=int(report["reasoning"]),
            embedding_weights=int(report["embedding"]) or int(report["reasoning"]),
            num_queries=model.num_queries,
        )

    def read(
        self, lengths: Sequence[int], *, before: Sequence[int] | int = 0, adapter: int, gradient: bool = False, frozen_keys: bool = False
    ) -> float:
        """A pass of the decoder.

        Args:
            lengths: Tokens of each row that run.
            before: Tokens of each row, or of every row, that are in the cache already.
            adapter: Weights of the adapter it runs under.
            gradient: Whether a backward pass follows.
            frozen_keys: Whether the keys of what was there before have no gradient.
        """
        held = [before] * len(lengths) if isinstance(before, int) else before
        own = sum(length * (length + 1) / 2 for length in lengths)
        earlier = float(sum(length * number for length, number in zip(lengths, held, strict=True)))
        tokens = sum(lengths)
        linear = 2.0 * self.layer_weights * tokens * (2 if gradient else 1) + 2.0 * adapter * tokens * (3 if gradient else 1)
        attention = 4.0 * self.attention_width * (own * (3 if gradient else 1) + earlier * ((2 if frozen_keys else 3) if gradient else 1))
        return linear + attention

    def score(self, num_tokens: int, *, gradient: bool = False) -> float:
        """The output layer on so many tokens."""
        return 2.0 * self.head_weights * num_tokens * (2 if gradient else 1)

    def see(self, patches: Sequence[int]) -> float:
        """The frozen vision tower on pictures of so many patches, each of which sees its own picture."""
        tokens = sum(patches) / self.patches_per_token
        return 2.0 * (self.vision_weights * sum(patches) + self.merger_weights * tokens) + 4.0 * self.vision_width * sum(n * n for n in patches)

    def embed(self, before: Sequence[int], *, interface: str, gradient: bool) -> float:
        """The embeddings of what was read before, ``kv``, or is read anew, ``reencode``."""
        if interface == "kv":
            queries = [self.num_queries] * len(before)
            return self.read(queries, before=before, adapter=self.embedding_weights, gradient=gradient, frozen_keys=True)
        return self.read([number + self.num_queries for number in before], adapter=self.embedding_weights, gradient=gradient)

    def contrastive(self, sides: Sequence[Side], *, interface: str) -> float:
        """A step of stage 1."""
        total = 0.0
        for side in sides:
            prefill = self.read(side.lengths, adapter=self.reasoning_weights) if interface == "kv" else 0.0
            total += self.see(side.patches) + prefill + self.embed(side.lengths, interface=interface, gradient=True)
        return total

    def plain(self, sides: Sequence[Side]) -> float:
        """A step of contrastive training of the embedding adapter on whole sequences, last token."""
        return sum(self.see(side.patches) + self.read(side.lengths, adapter=self.embedding_weights, gradient=True) for side in sides)

    def cot_sft(self, sides: Sequence[Side], thought: int, *, interface: str) -> float:
        """A step of stage 2 with thoughts of so many tokens on every side."""
        total = 0.0
        for side in sides:
            whole = [length + thought for length in side.lengths]
            total += self.see(side.patches) + self.read(whole, adapter=self.reasoning_weights, gradient=True)
            total += self.score((thought - 1) * len(whole), gradient=True)
            total += sum(self.embed(before, interface=interface, gradient=True) for before in (side.lengths, whole))
        return total

    def labels(self, sides: Sequence[Side], thought: int, *, interface: str) -> float:
        """What stage 3 does with a batch of pairs: both embeddings of both sides, with thoughts of so many tokens."""
        total = 0.0
        for side in sides:
            whole = [length + thought for length in side.lengths]
            total += self.see(side.patches) + self.read(side.lengths, adapter=self.reasoning_weights) + self._write(side.lengths, thought)
            total += sum(self.embed(before, interface=interface, gradient=False) for before in (side.lengths, whole))
        return total

    def grpo(self, query: Side, positive: Side, thought: int, group_size: int, *, with_reference: bool) -> float:
        """A step of stage 4 (interface kv): rollouts, their embeddings and rewards, the reference's and the policy's log-probabilities."""
        prompts = [length for length in query.lengths for _ in range(group_size)]
        whole, written = [length + thought for length in prompts], [thought] * len(prompts)
        rollouts = self.see(query.patches) + self.read(query.lengths, adapter=self.reasoning_weights) + self._write(prompts, thought)
        vectors = self.embed(query.lengths, interface="kv", gradient=False) + self.embed(whole, interface="kv", gradient=False)
        targets = self.see(positive.patches) + self.read(positive.lengths, adapter=self.reasoning_weights)
        targets += self.embed(positive.lengths, interface="kv", gradient=False)

        def scored(*, gradient: bool) -> float:
            prompt = self.read(query.lengths, adapter=self.reasoning_weights, gradient=gradient)
            thoughts = self.read(written, before=prompts, adapter=self.reasoning_weights, gradient=gradient)
            return prompt + thoughts + self.score((thought - 1) * len(prompts), gradient=gradient)

        return rollouts + vectors + targets + (scored(gradient=False) if with_reference else 0.0) + scored(gradient=True)

    def _write(self, prompts: Sequence[int], thought: int) -> float:
        written = [thought] * len(prompts)
        return self.read(written, before=prompts, adapter=self.reasoning_weights) + self.score((thought - 1) * len(prompts))


def _kind(name: str) -> str:
    if ".visual." in name:
        is_table = "pos_embed" in name
        return "table" if is_table else "merger" if "merger" in name else "vision"
    if "embed_tokens" in name or "lm_head" in name:
        return "table"
    return "expert" if ".experts." in name else "layer"
