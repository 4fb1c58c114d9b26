"""The model: one frozen multimodal backbone, a reasoning and an embedding adapter, learnable queries, and a gate."""

from __future__ import annotations

import warnings
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Literal

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn import functional
from transformers import DynamicCache

from twn_lightning.batches import Inputs, Thoughts
from twn_lightning.distributed import is_sharded, max_over_ranks, num_elements
from twn_lightning.errors import ConfigError
from twn_lightning.models.adapters import (
    LoraSpec,
    adapter_pass,
    checkpoint_context_fn,
    keeping_trainable,
    lora_layers,
    merged_into_base,
    parameter_counts,
    part_of,
)
from twn_lightning.models.architecture import check_architecture
from twn_lightning.models.backbones.base import Backbone, Processor, Prompt
from twn_lightning.models.columns import appended, at_column, last_column, mean_over_words, text_columns
from twn_lightning.models.gate import GateReads, RoutingGate
from twn_lightning.models.generation import banned_tokens, score_thoughts, write_thoughts
from twn_lightning.models.outputs import Decoding, Embedding, Encoded, Rollout, Supervised
from twn_lightning.models.pieces import joined, piece_of, rows_by_length
from twn_lightning.models.prefix import Prefix, detached_cache, mapped_cache, shared_cache
from twn_lightning.models.queries import QueryTable
from twn_lightning.models.thought_writers import OwnWriter, ThoughtWriter, encode_batch

Interface = Literal["kv", "reencode"]
Part = Literal["reasoning", "embedding", "queries", "gate"]
PARTS: tuple[Part, ...] = ("reasoning", "embedding", "queries", "gate")

_RECOMPUTED_ROWS = 32


class DualLoRAModel(nn.Module):
    """A multimodal embedding model that can think before it embeds.

    The reasoning adapter reads the prompt and writes chains of thought. The queries, under the embedding adapter, read what it left: its KV cache
    (interface "kv"), or the same tokens encoded anew (interface "reencode": a reader of its own that shares nothing but the words with the
    writer, as in Think-Then-Embed). By default nothing flows back from the queries into the reasoning adapter. Nothing is trainable until
    `set_trainable`.

    Args:
        backbone: Freshly loaded; it is changed in place (adapters are put into it) and belongs to this model from then on.
        reasoning: The adapter that thinks.
        embedding: The adapter the queries run under; None has the reasoning adapter embed too, and lets contrastive gradients through every
            pass, `prefill` and `extend` included: one adapter under one joint loss (UME-R1-like). The parts "reasoning" and "embedding" are
            then the same parameters.
        num_queries: K; 0 takes the state of the last token of prompt or thought for the embedding (VLM2Vec-V2-like).
        interface: What the queries read.
        gate_hidden_size: Width of the gate's hidden layer.
        gate_reads: What the gate reads: see `RoutingGate`.
        gate_threshold: An input thinks from this probability on.
        detach: False lets contrastive gradients reach the reasoning adapter through `supervise` (an ablation; interface "kv" only).

    Raises:
        ConfigError: A value out of range, settings that contradict each other, or a backbone that carries adapters already.
    """

    backbone: Backbone
    banned: Tensor

    def __init__(  # noqa: PLR0913 - all but one by keyword
        self,
        backbone: Backbone,
        *,
        reasoning: LoraSpec,
        embedding: LoraSpec | None,
        num_queries: int,
        interface: Interface = "kv",
        gate_hidden_size: int = 128,
        gate_reads: GateReads = "prompt",
        gate_threshold: float = 0.5,
        detach: bool = True,
    ) -> None:
        super().__init__()
        check_architecture(interface=interface, num_queries=num_queries, is_shared=embedding is None, detach=detach)
        if lora_layers(backbone.model):
            raise ConfigError("The backbone carries adapters already. Load a fresh one for each model.")
        self.backbone = backbone
        self.interface: Interface = interface
        self.detach = detach
        self.is_shared = embedding is None
        """Whether one adapter thinks and embeds."""
        self.adapters = {"reasoning": reasoning, "embedding": embedding or reasoning}
        self.num_prompt_tokens = 0
        """Prompt columns the reasoning adapter (or its reference) has read so far, padding included."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*")  # PEFT asks under a name transformers is leaving
            peft = get_peft_model(backbone.model, reasoning.config(self._targets(reasoning)), adapter_name="reasoning")
        if embedding is not None:
            peft.add_adapter("embedding", embedding.config(self._targets(embedding)))
        # In a tuple, so that it is not registered: the wrapper holds the same parameters as the backbone under other names.
        self._peft: tuple[PeftModel] = (peft,)
        self._lora_layers = lora_layers(backbone.model)
        table = backbone.embed_tokens(torch.arange(backbone.processor.vocabulary_size, device=backbone.model.device)).float()
        self.num_queries = num_queries
        self.query_table = QueryTable(torch.randn(num_queries, backbone.hidden_size) * table.std().cpu())
        self.gate = RoutingGate(backbone.hidden_size, gate_hidden_size=gate_hidden_size, reads=gate_reads, threshold=gate_threshold)
        self.to(backbone.model.device)
        self.register_buffer("banned", banned_tokens(backbone), persistent=False)
        self.decoding = Decoding()
        """How its thoughts are written where nobody says otherwise; saved with it."""
        self._recomputes = False
        self.is_merged = False
        """Whether the reasoning adapter lies in the backbone's weights: for inference alone."""
        self.set_trainable()

    @property
    def processor(self) -> Processor:
        """Makes prompts and thoughts for this model."""
        return self.backbone.processor

    @property
    def peft(self) -> PeftModel:
        """PEFT's view of the backbone."""
        return self._peft[0]

    @property
    def hidden_size(self) -> int:
        """Width H of the language model, and length D of an embedding."""
        return self.backbone.hidden_size

    @property
    def queries(self) -> nn.Parameter:
        """The learnable queries, ``(K, H)``."""
        return self.query_table.weight

    @property
    def device(self) -> torch.device:
        """Where the queries are."""
        return self.queries.device

    @property
    def is_sharded(self) -> bool:
        """Whether each rank holds a share of every parameter (ZeRO-3), so that all ranks must run the same passes in the same order."""
        return is_sharded(self)

    def named_part_parameters(self, *parts: Part) -> dict[str, nn.Parameter]:
        """Parameters of these parts by their name in `named_parameters`.

        Raises:
            ConfigError: A part that does not exist.
        """
        unknown = set(parts) - set(PARTS)
        if unknown:
            raise ConfigError(f"There is no part {', '.join(map(repr, sorted(unknown)))}; parts are {', '.join(PARTS)}.")
        wanted = {self._adapter_of(part) for part in parts}
        return {name: parameter for name, parameter in self.named_parameters() if part_of(name) in wanted}

    def set_trainable(self, *parts: Part) -> None:
        """Lets exactly these parts require gradients; shared adapters are both parts."""
        assert not (parts and self.is_merged), "a merged model is for inference"
        chosen = self.named_part_parameters(*parts)
        for name, parameter in self.named_parameters():
            parameter.requires_grad_(name in chosen and num_elements(parameter) > 0)  # no queries, no gradient: DDP would wait for it

    def parameter_report(self) -> dict[str, float]:
        """Parameters of each part, "backbone", "added" (all parts), "trainable" now, and "ratio": added / backbone.

        A shared adapter is counted once, as "reasoning".
        """
        return parameter_counts(self, PARTS)

    def enable_gradient_checkpointing(self) -> None:
        """Recomputes the decoder layers in the backward of passes that train and use no cache.

        Raises:
            ConfigError: With ``detach=False``, whose gradients run through the cache that recomputing does away with (interface "kv" only).
        """
        if not self.detach and self.interface == "kv":
            raise ConfigError("detach=false sends gradients through the KV cache, which gradient checkpointing does not keep: turn one of them off.")
        self._recomputes = True
        self.backbone.enable_gradient_checkpointing(lambda: checkpoint_context_fn(self._lora_layers))

    def add_reference(self) -> None:
        """Keeps a frozen copy of the reasoning adapter as it is now, named "reference"; an earlier one is replaced."""
        self.drop_reference()
        with keeping_trainable(self), torch.no_grad():
            self.peft.add_adapter("reference", self.adapters["reasoning"].config(self._targets(self.adapters["reasoning"])))
            parameters = dict(self.named_parameters())
            for name, parameter in parameters.items():
                if part_of(name) == "reference":
                    parameter.copy_(parameters[name.replace(".reference.", ".reasoning.")])

    def drop_reference(self) -> None:
        """Forgets the copy made by `add_reference`, if there is one."""
        if "reference" in self.peft.peft_config:
            with keeping_trainable(self):
                self.peft.delete_adapter("reference")

    def merge_for_inference(self) -> None:
        """Puts the reasoning adapter into the backbone's weights, so that reading and writing cost what they cost the bare backbone.

        With the interface "kv" only, whose embedding adapter runs over a few queries (where it takes the reasoning adapter away again); otherwise
        nothing happens. The model can no longer be trained or saved.
        """
        if self.interface == "kv" and not self.is_merged:
            self.set_trainable()
            self.is_merged = merged_into_base(self._lora_layers, "reasoning")

    def prefill(self, inputs: Inputs) -> Prefix:
        """Prompts for `embed` and `think`; the reasoning adapter reads them now if the queries need its cache.

        Without gradient and dropout, unless the adapters are shared.
        """
        with torch.set_grad_enabled(self._reads_with_gradient):
            return self._prefix_of(self.backbone.prompt(inputs), inputs.attention_mask)

    def extend(self, prefix: Prefix, thoughts: Thoughts) -> Prefix:
        """Appends given chains of thought; the reasoning adapter reads them if there is a cache.

        Without gradient and dropout, unless the adapters are shared.

        Args:
            prefix: Prompts without thoughts; it stays as it is.
            thoughts: A row each.
        """
        assert prefix.thoughts is None
        if prefix.cache is None:
            return prefix.with_thoughts(thoughts, None)
        cache, has_gradient = shared_cache(prefix.cache), self._reads_with_gradient
        with torch.set_grad_enabled(has_gradient), self._pass("reasoning", dropout=has_gradient and self.training, recompute=False):
            self._read_thoughts(prefix.next_position, prefix.attention_mask, thoughts, cache)
        return prefix.with_thoughts(thoughts, cache)

    @torch.no_grad()
    def think(self, prefix: Prefix, decoding: Decoding, *, generator: torch.Generator | None = None) -> Rollout:
        """Writes a chain of thought for each row with the reasoning adapter, without gradient and dropout.

        Args:
            prefix: Prompts without thoughts; it stays as it is.
            decoding: How tokens are chosen.
            generator: Of the sampling, on the model's device; None for the global one.
        """
        assert prefix.thoughts is None
        start = prefix
        if prefix.prompt is not None:
            start = replace(prefix, cache=self._read_prompts(prefix.prompt, prefix.attention_mask, "reasoning")[0])
        with self.reasoning_pass():
            thoughts, log_probs, cache = write_thoughts(
                self.backbone, start, decoding, banned=self.banned, generator=generator, sharded=self.is_sharded
            )
        finished = (thoughts.token_ids == self.processor.think_close_id).any(dim=1)
        grown = prefix.with_thoughts(thoughts, None if prefix.cache is None else cache)
        return Rollout(thoughts=thoughts, log_probs=log_probs, prefix=grown, finished=finished)

    def reasoning_pass(self) -> AbstractContextManager[None]:
        """Runs a body under the reasoning adapter without dropout: for a loop of one's own over the backbone's passes."""
        return self._pass("reasoning", dropout=False, recompute=False)

    def embed(self, prefix: Prefix) -> Embedding:
        """Embeds what the prefix holds: prompts, or prompts with their thoughts. The prefix stays as it is.

        Gradients reach the queries and the embedding adapter, and nothing else unless the model was built with ``detach=False`` and the
        interface "kv".
        """
        mask, next_position, cache = prefix.attention_mask, prefix.next_position, None
        if prefix.cache is not None:
            cache = detached_cache(prefix.cache) if self.detach else shared_cache(prefix.cache)
        if self.num_queries:
            readers = self.query_table(len(prefix), self.backbone.model.dtype)
        elif cache is not None:
            # The last token runs again in place of queries, where it stood and with its first reading hidden: the same state.
            readers, next_position = self._last_embedding(prefix)[:, None], next_position - 1
            mask = mask.scatter(1, last_column(mask)[:, None], 0)
        else:
            readers = None
        columns = None if prefix.prompt is None else self._columns_of(prefix.prompt, prefix.thoughts)
        if readers is not None:
            ones = mask.new_ones(readers.shape[:2])
            mask = torch.cat([mask, ones], dim=1)
            columns = text_columns(next_position, readers, ones) if columns is None else appended(columns, readers, ones)
        assert columns is not None
        with self._pass("embedding", dropout=self.training and torch.is_grad_enabled(), recompute=self.training and cache is None):
            hidden = self.backbone.decode_layers(columns, mask, cache)
        state = at_column(hidden, last_column(mask)).float() if readers is None else hidden[:, -readers.shape[1] :].float().mean(dim=1)
        prompt_state = prefix.prompt_state
        if cache is None and prefix.thoughts is None:
            assert prefix.prompt is not None
            columns_read = hidden[:, : prefix.attention_mask.shape[1]].detach()
            prompt_state = mean_over_words(columns_read, prefix.attention_mask, prefix.prompt.visual_mask)
        return Embedding(vector=functional.normalize(state, dim=-1), state=state, prompt_state=prompt_state)

    def embed_prompts(self, inputs: Inputs, *, max_tokens: int | None) -> Embedding:
        """`embed` of `prefill`, in pieces of prompts of similar length: the same rows and gradients with less memory and less padding.

        Args:
            inputs: Prompts.
            max_tokens: Tokens that are read at once, padding included, at most (a single longer prompt is read alone); None reads all at once.
        """
        pieces = rows_by_length(inputs, max_tokens=max_tokens)
        if self.is_sharded and max_tokens is not None:  # as many passes on each rank; what the spare ones give is left out
            pieces += [pieces[-1][:1]] * (max_over_ranks(len(pieces)) - len(pieces))
        if len(pieces) == 1:
            return self.embed(self.prefill(inputs))
        parts = [self.embed(self.prefill(piece_of(inputs, rows))) for rows in pieces]
        return joined(parts, pieces, num_rows=len(inputs))

    def supervise(self, inputs: Inputs, thoughts: Thoughts) -> Supervised:
        """Scores given chains of thought with gradient to the reasoning adapter, and leaves what `embed` reads: one pass serves both.

        Gradient checkpointing, which keeps no cache, takes a second pass for it with the interface "kv".

        Args:
            inputs: Prompts.
            thoughts: A row each.
        """
        prompt, mask = self.backbone.prompt(inputs), inputs.attention_mask
        recompute = self.training and self._recomputes
        cache = DynamicCache() if self.interface == "kv" and not recompute else None
        with self._pass("reasoning", dropout=self.training, recompute=recompute):
            hidden = self._read_together(prompt, mask, thoughts, cache)
        log_probs, correct = score_thoughts(self.backbone, hidden, thoughts, banned=self.banned, sharded=self.is_sharded)
        if cache is None:
            prefix = self.extend(self._prefix_of(prompt, mask), thoughts)
        else:
            start = Prefix(mask, prompt.next_position, last=self._kept_last(prompt, mask))
            prefix = start.with_thoughts(thoughts, detached_cache(cache) if self.detach else cache)
        return Supervised(log_probs=log_probs, correct=correct, mask=thoughts.mask[:, 1:], prefix=prefix)

    def thought_log_probs(self, inputs: Inputs, thoughts: Thoughts, *, adapter: Literal["reasoning", "reference"] = "reasoning") -> Tensor:
        """Log-probability of each token of given chains of thought, as in `Rollout`; never with dropout.

        Each prompt is read once, however many thoughts it has (with gradient checkpointing, its pictures are).

        Args:
            inputs: P prompts.
            thoughts: As many for each prompt, in a run: ``P * G`` rows, ``(P * G, T)``.
            adapter: "reference" is the copy made by `add_reference`.

        Returns:
            0 on padding, ``(P * G, T - 1)``.
        """
        assert adapter in self.peft.peft_config, "add_reference first"
        prompt, mask = self.backbone.prompt(inputs), inputs.attention_mask
        rows = torch.arange(len(inputs), device=mask.device).repeat_interleave(len(thoughts) // len(inputs))
        if self.training and self._recomputes:
            pieces = torch.split(torch.arange(len(rows), device=rows.device), _RECOMPUTED_ROWS)  # a layer of one is recomputed at a time
            with self._pass(adapter, dropout=False, recompute=True):
                read = [self._read_together(prompt.select(rows[piece]), mask[rows[piece]], thoughts.select(piece), None) for piece in pieces]
            hidden = torch.cat(read)
        else:
            cache = mapped_cache(self._read_prompts(prompt, mask, adapter)[0], lambda tensor: tensor.index_select(0, rows))
            with self._pass(adapter, dropout=False, recompute=False):
                hidden = self._read_thoughts(prompt.next_position[rows], mask[rows], thoughts, cache)
        return score_thoughts(self.backbone, hidden, thoughts, banned=self.banned, sharded=self.is_sharded)[0]

    @torch.no_grad()
    def encode(
        self,
        inputs: Inputs,
        *,
        think: Literal["never", "always", "auto"],
        decoding: Decoding,
        generator: torch.Generator | None = None,
        writer: ThoughtWriter | None = None,
    ) -> Encoded:
        """Embeds a batch with or without reasoning; the prompts are read once for all of it.

        Args:
            inputs: Prompts.
            think: "auto" lets the gate decide for each row.
            decoding: How chains of thought are written.
            generator: Of the sampling.
            writer: Of the thoughts; the model itself by default.
        """
        return encode_batch(self, inputs, think=think, decoding=decoding, generator=generator, writer=writer or OwnWriter(self))

    def _targets(self, spec: LoraSpec) -> str:
        return spec.target_modules[0] if spec.is_regex else self.backbone.lora_targets(spec.target_modules)

    def _adapter_of(self, part: str) -> str:
        """Whose parameters a part's are: shared adapters are the reasoning adapter."""
        return "reasoning" if self.is_shared and part == "embedding" else part

    @property
    def _reads_with_gradient(self) -> bool:
        return self.is_shared and torch.is_grad_enabled()

    def _prefix_of(self, prompt: Prompt, attention_mask: Tensor) -> Prefix:
        if self.interface == "reencode":
            return Prefix(attention_mask, prompt.next_position, prompt=prompt)
        has_gradient = self._reads_with_gradient
        with torch.set_grad_enabled(has_gradient):
            cache, hidden = self._read_prompts(prompt, attention_mask, "reasoning", dropout=has_gradient and self.training)
        state = mean_over_words(hidden.detach(), attention_mask, prompt.visual_mask)
        return Prefix(attention_mask, prompt.next_position, cache=cache, last=self._kept_last(prompt, attention_mask), prompt_state=state)

    def _kept_last(self, prompt: Prompt, attention_mask: Tensor) -> Tensor | None:
        return at_column(prompt.embeddings, last_column(attention_mask)) if not self.num_queries else None

    def _last_embedding(self, prefix: Prefix) -> Tensor:
        """Token embedding of each row's last token, ``(B, H)``."""
        if prefix.thoughts is None:
            assert prefix.last is not None
            return prefix.last
        return self.backbone.embed_tokens(at_column(prefix.thoughts.token_ids, last_column(prefix.thoughts.mask)))

    def _read_prompts(self, prompt: Prompt, attention_mask: Tensor, adapter: str, *, dropout: bool = False) -> tuple[DynamicCache, Tensor]:
        """What an adapter leaves of the prompts, and its final hidden states of them, ``(B, S, H)``."""
        self.num_prompt_tokens += attention_mask.numel()
        cache = DynamicCache()
        with self._pass(adapter, dropout=dropout, recompute=False):
            hidden = self.backbone.decode_layers(prompt, attention_mask, cache)
        return cache, hidden

    def _read_thoughts(self, next_position: Tensor, attention_mask: Tensor, thoughts: Thoughts, cache: DynamicCache) -> Tensor:
        """Hidden states of thoughts behind prompts that are in a cache, which grows, ``(B, T, H)``."""
        columns = text_columns(next_position, self.backbone.embed_tokens(thoughts.token_ids), thoughts.mask)
        return self.backbone.decode_layers(columns, torch.cat([attention_mask, thoughts.mask], dim=1), cache)

    def _read_together(self, prompt: Prompt, attention_mask: Tensor, thoughts: Thoughts, cache: DynamicCache | None) -> Tensor:
        """Hidden states of thoughts from one pass over prompts and thoughts, ``(B, T, H)``."""
        self.num_prompt_tokens += attention_mask.numel()
        mask = torch.cat([attention_mask, thoughts.mask], dim=1)
        return self.backbone.decode_layers(self._columns_of(prompt, thoughts), mask, cache)[:, attention_mask.shape[1] :]

    def _columns_of(self, prompt: Prompt, thoughts: Thoughts | None) -> Prompt:
        return prompt if thoughts is None else appended(prompt, self.backbone.embed_tokens(thoughts.token_ids), thoughts.mask)

    def _pass(self, adapter: str, *, dropout: bool, recompute: bool) -> AbstractContextManager[None]:
        """Runs a body under an adapter, with or without its dropout, and with or without recomputing in backward."""
        checkpointed = self.backbone.checkpointed_layers() if self._recomputes else ()
        names: tuple[str, ...] = (self._adapter_of(adapter),)
        if self.is_merged:
            names = () if names == ("reasoning",) else (*names, "reasoning")
        return adapter_pass(self._lora_layers, checkpointed, names, dropout=dropout, recompute=recompute)
