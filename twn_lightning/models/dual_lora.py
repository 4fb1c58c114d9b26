"""The model: one frozen multimodal backbone, a reasoning and an embedding adapter, learnable queries, and a gate."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache

from twn_lightning.batches import Inputs, Thoughts
from twn_lightning.errors import ConfigError
from twn_lightning.models.adapters import LoraSpec, checkpoint_context_fn, lora_layers, use_adapter
from twn_lightning.models.backbones.base import Backbone, Processor, Prompt
from twn_lightning.models.gate import RoutingGate
from twn_lightning.models.generation import log_softmax_of_allowed, write_thoughts
from twn_lightning.models.outputs import Decoding, Embedding, Encoded, Rollout, Supervised
from twn_lightning.models.prefix import Prefix, detached_cache, last_token, shared_cache

Interface = Literal["kv", "reencode"]
Part = Literal["reasoning", "embedding", "queries", "gate"]
PARTS: tuple[Part, ...] = ("reasoning", "embedding", "queries", "gate")


class DualLoRAModel(nn.Module):
    """A multimodal embedding model that can think before it embeds.

    The reasoning adapter reads the prompt and writes chains of thought. The queries, under the embedding adapter, read what it left: its KV cache
    (interface "kv"), or the same tokens encoded anew (interface "reencode"). By default nothing flows back from the queries into the
    reasoning adapter. Nothing is trainable until `set_trainable`.

    Args:
        backbone: Freshly loaded; it is changed in place (adapters are put into it) and belongs to this model from then on.
        reasoning: The adapter that thinks.
        embedding: The adapter the queries run under.
        num_queries: K, at least 1.
        interface: What the queries read.
        gate_hidden_size: Width of the gate's hidden layer.
        gate_threshold: An input thinks from this probability on.
        detach: False lets contrastive gradients reach the reasoning adapter through `supervise` (an ablation; interface "kv" only).

    Raises:
        ConfigError: A value out of range, or a backbone that carries adapters already.
    """

    backbone: Backbone
    banned: Tensor

    def __init__(
        self,
        backbone: Backbone,
        *,
        reasoning: LoraSpec,
        embedding: LoraSpec,
        num_queries: int,
        interface: Interface = "kv",
        gate_hidden_size: int = 128,
        gate_threshold: float = 0.5,
        detach: bool = True,
    ) -> None:
        super().__init__()
        if num_queries < 1:
            raise ConfigError(f"num_queries is {num_queries}; the embedding is the mean of the queries' outputs, so at least 1 is needed.")
        if interface not in ("kv", "reencode"):
            raise ConfigError(f"interface is {interface!r}; choose kv or reencode.")
        if lora_layers(backbone.model):
            raise ConfigError("The backbone carries adapters already. Load a fresh one for each model.")
        self.backbone = backbone
        self.interface: Interface = interface
        self.detach = detach
        self.adapters = {"reasoning": reasoning, "embedding": embedding}
        self.num_prompt_tokens = 0
        """Prompt columns the reasoning adapter has read so far, padding included."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # PEFT asks under a name transformers is leaving
            peft = get_peft_model(backbone.model, reasoning.config(self._targets(reasoning)), adapter_name="reasoning")
        peft.add_adapter("embedding", embedding.config(self._targets(embedding)))
        # In a tuple, so that it is not registered: the wrapper holds the same parameters as the backbone under other names.
        self._peft: tuple[PeftModel] = (peft,)
        self._lora_layers = lora_layers(backbone.model)
        table = backbone.embed_tokens(torch.arange(backbone.processor.vocabulary_size, device=backbone.model.device)).float()
        self.queries = nn.Parameter(torch.randn(num_queries, backbone.hidden_size) * table.std().cpu())
        self.gate = RoutingGate(backbone.hidden_size, gate_hidden_size=gate_hidden_size, threshold=gate_threshold)
        self.to(backbone.model.device)
        self.register_buffer("banned", _banned(backbone), persistent=False)
        self._recomputes = False
        self.set_trainable()

    @property
    def processor(self) -> Processor:
        """Makes prompts and thoughts for this model."""
        return self.backbone.processor

    @property
    def peft(self) -> PeftModel:
        """PEFT's view of the backbone, which loads and saves the adapters."""
        return self._peft[0]

    @property
    def hidden_size(self) -> int:
        """Width H of the language model, and length D of an embedding."""
        return self.backbone.hidden_size

    @property
    def num_queries(self) -> int:
        """K."""
        return int(self.queries.shape[0])

    @property
    def device(self) -> torch.device:
        """Where the queries are."""
        return self.queries.device

    # What trains

    def named_part_parameters(self, *parts: Part) -> dict[str, nn.Parameter]:
        """Parameters of these parts by their name in `named_parameters`.

        Raises:
            ConfigError: A part that does not exist.
        """
        unknown = set(parts) - set(PARTS)
        if unknown:
            raise ConfigError(f"There is no part {', '.join(map(repr, sorted(unknown)))}; parts are {', '.join(PARTS)}.")
        return {name: parameter for name, parameter in self.named_parameters() if _part_of(name) in parts}

    def set_trainable(self, *parts: Part) -> None:
        """Lets exactly these parts require gradients."""
        chosen = self.named_part_parameters(*parts)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in chosen)

    def parameter_report(self) -> dict[str, float]:
        """Parameters of each part, "backbone", "added" (all parts), "trainable" now, and "ratio": added / backbone."""
        counts: dict[str, float] = dict.fromkeys([*PARTS, "backbone", "trainable"], 0)
        for name, parameter in self.named_parameters():
            part = _part_of(name)
            if part != "reference":
                counts[part] += parameter.numel()
            counts["trainable"] += parameter.numel() if parameter.requires_grad else 0
        counts["added"] = sum(counts[part] for part in PARTS)
        counts["ratio"] = counts["added"] / counts["backbone"]
        return counts

    def enable_gradient_checkpointing(self) -> None:
        """Recomputes the decoder layers in the backward of passes that train and use no cache.

        Raises:
            ConfigError: With ``detach=False``, whose gradients run through the cache that recomputing does away with.
        """
        if not self.detach:
            raise ConfigError("detach=false sends gradients through the KV cache, which gradient checkpointing does not keep: turn one of them off.")
        self._recomputes = True
        self.backbone.enable_gradient_checkpointing(lambda: checkpoint_context_fn(self._lora_layers))

    def add_reference(self) -> None:
        """Keeps a frozen copy of the reasoning adapter as it is now, named "reference"; an earlier one is replaced."""
        self.drop_reference()
        trainable = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        self.peft.add_adapter("reference", self.adapters["reasoning"].config(self._targets(self.adapters["reasoning"])))
        parameters = dict(self.named_parameters())
        with torch.no_grad():
            for name, parameter in parameters.items():
                if _part_of(name) == "reference":
                    parameter.copy_(parameters[name.replace(".reference.", ".reasoning.")])
                parameter.requires_grad_(name in trainable)

    def drop_reference(self) -> None:
        """Forgets the copy made by `add_reference`, if there is one."""
        if "reference" in self.peft.peft_config:
            trainable = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
            self.peft.delete_adapter("reference")
            for name, parameter in self.named_parameters():
                parameter.requires_grad_(name in trainable)

    # Passes

    @torch.no_grad()
    def prefill(self, inputs: Inputs) -> Prefix:
        """Reads prompts with the reasoning adapter, without gradient and dropout."""
        self.num_prompt_tokens += inputs.input_ids.numel()
        prompt, cache = self.backbone.prompt(inputs), DynamicCache()
        with self._pass("reasoning", dropout=False, recompute=False):
            hidden = self.backbone.decode_layers(prompt, inputs.attention_mask, cache)
        last = last_token(hidden, inputs.attention_mask)
        return Prefix(cache, inputs.attention_mask, prompt.next_position, last, inputs, thoughts=None, prompt_hidden=last)

    @torch.no_grad()
    def extend(self, prefix: Prefix, thoughts: Thoughts) -> Prefix:
        """Appends given chains of thought with the reasoning adapter, without gradient and dropout.

        Args:
            prefix: Prompts without thoughts; it stays as it is.
            thoughts: A row each.
        """
        assert prefix.thoughts is None
        column = _columns(prefix.next_position, self.backbone.embed_tokens(thoughts.token_ids), thoughts.mask)
        mask, cache = torch.cat([prefix.attention_mask, thoughts.mask], dim=1), shared_cache(prefix.cache)
        with self._pass("reasoning", dropout=False, recompute=False):
            hidden = self.backbone.decode_layers(column, mask, cache)
        last = last_token(hidden, thoughts.mask)
        return replace(prefix, cache=cache, attention_mask=mask, next_position=column.next_position, last_hidden=last, thoughts=thoughts)

    def think(self, prefix: Prefix, decoding: Decoding, *, generator: torch.Generator | None = None) -> Rollout:
        """Writes a chain of thought for each row with the reasoning adapter, without gradient and dropout.

        Args:
            prefix: Prompts without thoughts; it stays as it is.
            decoding: How tokens are chosen.
            generator: Of the sampling, on the model's device; None for the global one.
        """
        with self._pass("reasoning", dropout=False, recompute=False):
            return write_thoughts(self.backbone, prefix, decoding, banned=self.banned, generator=generator)

    def embed(self, prefix: Prefix) -> Embedding:
        """Embeds what the prefix holds: prompts, or prompts with their thoughts. The prefix's cache stays as it is.

        Gradients reach the queries and the embedding adapter, and nothing else unless the model was built with ``detach=False``.
        """
        queries = self.queries.to(self.backbone.model.dtype).expand(len(prefix), -1, -1)
        ones = prefix.attention_mask.new_ones(len(prefix), self.num_queries)
        dropout = self.training and torch.is_grad_enabled()
        if self.interface == "kv":
            cache = detached_cache(prefix.cache) if self.detach else shared_cache(prefix.cache)
            mask = torch.cat([prefix.attention_mask, ones], dim=1)
            with self._pass("embedding", dropout=dropout, recompute=False):
                hidden = self.backbone.decode_layers(_columns(prefix.next_position, queries, ones), mask, cache)
        else:
            prompt, mask = self.backbone.prompt(prefix.inputs), prefix.inputs.attention_mask
            if prefix.thoughts is not None:
                prompt = _appended(prompt, self.backbone.embed_tokens(prefix.thoughts.token_ids), prefix.thoughts.mask)
                mask = torch.cat([mask, prefix.thoughts.mask], dim=1)
            mask = torch.cat([mask, ones], dim=1)
            with self._pass("embedding", dropout=dropout, recompute=self.training):
                hidden = self.backbone.decode_layers(_appended(prompt, queries, ones), mask, None)
        state = hidden[:, -self.num_queries :].float().mean(dim=1)
        return Embedding(vector=functional.normalize(state, dim=-1), state=state)

    def supervise(self, inputs: Inputs, thoughts: Thoughts) -> Supervised:
        """Scores given chains of thought with gradient to the reasoning adapter, and leaves the cache for `embed`.

        Args:
            inputs: Prompts.
            thoughts: A row each.
        """
        self.num_prompt_tokens += inputs.input_ids.numel()
        recompute = self.training and self._recomputes
        cache = None if recompute else DynamicCache()
        prompt, hidden = self._read(inputs, thoughts, adapter="reasoning", dropout=self.training, cache=cache)
        log_probs, correct = self._score(hidden, inputs, thoughts)
        if cache is None:
            prefix = self.extend(self.prefill(inputs), thoughts)
        else:
            columns, mask = inputs.input_ids.shape[1], torch.cat([inputs.attention_mask, thoughts.mask], dim=1)
            prefix = Prefix(
                cache=detached_cache(cache) if self.detach else cache,
                attention_mask=mask,
                next_position=prompt.next_position,
                last_hidden=last_token(hidden, mask).detach(),
                inputs=inputs,
                thoughts=thoughts,
                prompt_hidden=last_token(hidden[:, :columns], inputs.attention_mask).detach(),
            )
        return Supervised(log_probs=log_probs, correct=correct, mask=thoughts.mask[:, 1:], prefix=prefix)

    def thought_log_probs(self, inputs: Inputs, thoughts: Thoughts, *, adapter: Literal["reasoning", "reference"] = "reasoning") -> Tensor:
        """Log-probability of each token of given chains of thought, as in `Rollout`; never with dropout.

        Args:
            inputs: Prompts.
            thoughts: A row each, ``(B, T)``.
            adapter: "reference" is the copy made by `add_reference`.

        Returns:
            0 on padding, ``(B, T - 1)``.
        """
        assert adapter in self.peft.peft_config, "add_reference first"
        _, hidden = self._read(inputs, thoughts, adapter=adapter, dropout=False, cache=None)
        return self._score(hidden, inputs, thoughts)[0]

    @torch.no_grad()
    def encode(
        self, inputs: Inputs, *, think: Literal["never", "always", "auto"], decoding: Decoding, generator: torch.Generator | None = None
    ) -> Encoded:
        """Embeds a batch with or without reasoning; the prompts are read once for all of it.

        Args:
            inputs: Prompts.
            think: "auto" lets the gate decide for each row.
            decoding: How chains of thought are written.
            generator: Of the sampling.
        """
        prefix = self.prefill(inputs)
        discriminative = self.embed(prefix)
        probability = self.gate.probability(discriminative.state)
        thinks = {
            "never": torch.zeros_like(probability, dtype=torch.bool),
            "always": torch.ones_like(probability, dtype=torch.bool),
            "auto": probability >= self.gate.threshold,
        }[think]
        generative, num_tokens = discriminative.vector.clone(), torch.zeros_like(probability, dtype=torch.long)
        rows, thoughts = thinks.nonzero().squeeze(1), None
        if len(rows):
            rollout = self.think(prefix if len(rows) == len(prefix) else prefix.select(rows), decoding, generator=generator)
            thoughts = rollout.thoughts
            generative[rows] = self.embed(rollout.prefix).vector
            num_tokens[rows] = thoughts.num_reasoning_tokens
        return Encoded(discriminative.vector, discriminative.state, probability, thinks, generative, num_tokens, thoughts)

    def _targets(self, spec: LoraSpec) -> str:
        return spec.target_modules[0] if spec.is_regex else self.backbone.lora_targets(spec.target_modules)

    def _read(self, inputs: Inputs, thoughts: Thoughts, *, adapter: str, dropout: bool, cache: DynamicCache | None) -> tuple[Prompt, Tensor]:
        """One pass over prompt and thought together: where it ended, and the hidden states."""
        prompt = _appended(self.backbone.prompt(inputs), self.backbone.embed_tokens(thoughts.token_ids), thoughts.mask)
        mask = torch.cat([inputs.attention_mask, thoughts.mask], dim=1)
        with self._pass(adapter, dropout=dropout, recompute=self.training and cache is None):
            return prompt, self.backbone.decode_layers(prompt, mask, cache)

    def _score(self, hidden: Tensor, inputs: Inputs, thoughts: Thoughts) -> tuple[Tensor, Tensor]:
        """Log-probabilities of the thoughts' tokens, and whether each is the most probable one; both ``(B, T - 1)``."""
        written, is_written = thoughts.token_ids[:, 1:], thoughts.mask[:, 1:].bool()
        before = hidden[:, inputs.input_ids.shape[1] : -1]
        scores = log_softmax_of_allowed(self.backbone.logits(before), self.banned)
        safe = torch.where(is_written, written, self.processor.think_close_id)
        log_probs = scores.gather(-1, safe[..., None]).squeeze(-1)
        return torch.where(is_written, log_probs, 0.0), (scores.argmax(dim=-1) == written) & is_written

    @contextlib.contextmanager
    def _pass(self, adapter: str, *, dropout: bool, recompute: bool) -> Iterator[None]:
        """Runs the body under an adapter, with or without its dropout, and with or without recomputing in backward."""
        flags: list[tuple[nn.Module, str, bool]] = []
        if self._recomputes:
            flags += [(layer, "gradient_checkpointing", recompute) for layer in self.backbone.checkpointed_layers()]
        drops = [layer.lora_dropout[adapter] for layer in self._lora_layers if adapter in layer.lora_dropout]
        flags += [(drop, "training", dropout) for drop in drops if isinstance(drop, nn.Dropout)]
        before = [getattr(module, flag) for module, flag, _ in flags]
        for module, flag, value in flags:
            setattr(module, flag, value)
        try:
            with use_adapter(self._lora_layers, adapter):
                yield
        finally:
            for (module, flag, _), value in zip(flags, before, strict=True):
                setattr(module, flag, value)


def _part_of(name: str) -> str:
    """Which part a parameter of `DualLoRAModel` belongs to; "backbone" if to none."""
    for adapter in ("reasoning", "embedding", "reference"):
        if ".lora_" in name and f".{adapter}." in name:
            return adapter
    head = name.partition(".")[0]
    return head if head in ("queries", "gate") else "backbone"


def _banned(backbone: Backbone) -> Tensor:
    """Which entries of the backbone's vocabulary may not be written: the processor's, and rows that no token uses."""
    processor, device = backbone.processor, backbone.model.device
    num_entries = backbone.model.config.get_text_config().vocab_size
    banned = torch.arange(num_entries, device=device) >= processor.vocabulary_size
    banned[list(processor.banned_ids)] = True
    return banned


def _columns(next_position: Tensor, embeddings: Tensor, mask: Tensor) -> Prompt:
    """Right-padded text columns that start at each row's next position."""
    steps = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return Prompt(embeddings, (next_position[:, None] + steps).expand(3, -1, -1), next_position + mask.sum(dim=1))


def _appended(prompt: Prompt, embeddings: Tensor, mask: Tensor) -> Prompt:
    """The prompt with right-padded text columns after it."""
    new = _columns(prompt.next_position, embeddings, mask)
    visual = prompt.visual_mask
    return Prompt(
        embeddings=torch.cat([prompt.embeddings, embeddings], dim=1),
        position_ids=torch.cat([prompt.position_ids, new.position_ids], dim=2),
        next_position=new.next_position,
        visual_mask=None if visual is None else torch.cat([visual, torch.zeros_like(mask, dtype=torch.bool)], dim=1),
        deepstack=prompt.deepstack,
    )
