"""Writing chains of thought from a KV cache that is already there, and scoring given ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import DynamicCache

from twn_lightning.batches import Thoughts
from twn_lightning.distributed import max_over_ranks
from twn_lightning.models.backbones.base import Backbone, Prompt
from twn_lightning.models.outputs import Decoding
from twn_lightning.models.prefix import Prefix, leave_out_all_but, mapped_cache, roomy_cache

MAX_SCORES = 2**26
"""Float32 scores of tokens over the vocabulary that a training step holds at once: a quarter of a gibibyte, a few times over in backward."""
_LOOK_EVERY = {"cpu": 1, "cuda": 8}
"""Tokens between two looks at who has finished: an accelerator has to be waited for, the CPU has not."""


def banned_tokens(backbone: Backbone) -> Tensor:
    """Which entries of the backbone's vocabulary may not be written: the processor's, and rows that no token uses, bool ``(V,)``."""
    processor, device = backbone.processor, backbone.model.device
    num_entries = backbone.model.config.get_text_config().vocab_size
    banned = torch.arange(num_entries, device=device) >= processor.vocabulary_size
    banned[list(processor.banned_ids)] = True
    return banned


def log_softmax_of_allowed(logits: Tensor, banned: Tensor) -> Tensor:
    """Log-probabilities over the tokens that may be written; minus infinity for the others.

    The one definition for sampling, supervision and the policy ratio of GRPO, so that a first ratio is exactly 1.

    Args:
        logits: ``(..., V)``, float32.
        banned: Which tokens may not be written, bool ``(V,)``.
    """
    return logits.masked_fill(banned, float("-inf")).log_softmax(dim=-1)


def score_thoughts(
    backbone: Backbone, hidden: Tensor, thoughts: Thoughts, *, banned: Tensor, max_scores: int = MAX_SCORES, sharded: bool = False
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the thoughts' tokens, and whether each is the most probable one; both ``(B, T - 1)``.

    The scores of many tokens over a large vocabulary would be the largest tensor of a training step: they are computed some tokens at a time, and
    once more in backward.

    Args:
        backbone: Turns states into scores.
        hidden: Of the thoughts' columns, ``(B, T, H)``.
        thoughts: Whose tokens.
        banned: Tokens that may not be written, bool ``(V,)``.
        max_scores: Scores that are there at once, at most (but those of one token).
        sharded: All ranks must make as many parts.
    """
    is_written = thoughts.mask[:, 1:].bool()
    states, written = hidden[:, :-1][is_written], thoughts.token_ids[:, 1:][is_written]
    num_parts = max(1, math.ceil(len(written) / max(1, max_scores // len(banned))))
    num_parts = max_over_ranks(num_parts) if sharded else num_parts

    def score(states: Tensor, written: Tensor) -> tuple[Tensor, Tensor]:
        scores = log_softmax_of_allowed(backbone.logits(states), banned)
        return scores.gather(-1, written[:, None]).squeeze(-1), scores.argmax(dim=-1) == written

    if num_parts == 1:
        parts = [score(states, written)]
    else:
        pairs = zip(states.tensor_split(num_parts), written.tensor_split(num_parts), strict=True)
        parts = [checkpoint(score, *pair, use_reentrant=False, preserve_rng_state=False) for pair in pairs]
    log_probs, correct = torch.zeros(is_written.shape, dtype=torch.float32, device=hidden.device), torch.zeros_like(is_written)
    log_probs[is_written] = torch.cat([part[0] for part in parts])
    correct[is_written] = torch.cat([part[1] for part in parts])
    return log_probs, correct


def pick(log_probs: Tensor, decoding: Decoding, uniform: Tensor) -> Tensor:
    """One token a row.

    Args:
        log_probs: ``(B, V)``.
        decoding: Greedy at temperature 0, else sampling.
        uniform: The chance, at least 0 and below 1, float64 ``(B,)``; greedy picking leaves it unread.

    Returns:
        Token ids, ``(B,)``.
    """
    if decoding.temperature == 0.0:
        return log_probs.argmax(dim=-1)
    probabilities = (log_probs / decoding.temperature).softmax(dim=-1)
    if decoding.top_p < 1.0:
        descending, order = probabilities.sort(dim=-1, descending=True)
        beyond = descending.cumsum(dim=-1) - descending >= decoding.top_p
        probabilities = torch.zeros_like(probabilities).scatter(-1, order, descending.masked_fill(beyond, 0.0))
    # One uniform number a row through the inverse of the cumulative distribution: a tenth of the time of torch.multinomial on the CPU.
    cumulative = probabilities.double().cumsum(dim=-1)
    return torch.searchsorted(cumulative, uniform.clamp(max=1 - 1e-12)[:, None] * cumulative[:, -1:], right=True).squeeze(-1)


@torch.no_grad()
def write_thoughts(
    backbone: Backbone, prefix: Prefix, decoding: Decoding, *, banned: Tensor, generator: torch.Generator | None, sharded: bool = False
) -> tuple[Thoughts, Tensor, DynamicCache]:
    """Continues each prompt with an opening marker and what the active adapter writes until its closing marker.

    Rows that have finished are computed along, until half of the rows have: then they are left out.

    Args:
        backbone: With the adapter that writes active.
        prefix: Prompts without thoughts, with a cache, which stays as it is.
        decoding: How tokens are chosen.
        banned: Tokens that may not be written, bool ``(V,)``.
        generator: Of the sampling; each row's chance is its own, whatever the other rows write.
        sharded: All ranks must run as many passes, so that a rank goes on until the last one has finished.

    Returns:
        The thoughts; `Rollout.log_probs`; and the cache with the thoughts, each row's last token too.
    """
    assert prefix.cache is not None
    processor, device, (num_rows, num_columns) = backbone.processor, prefix.attention_mask.device, prefix.attention_mask.shape
    most, look_every = decoding.max_new_tokens, _LOOK_EVERY.get(device.type, 4)
    cache = roomy_cache(prefix.cache)
    mask = torch.cat([prefix.attention_mask, prefix.attention_mask.new_ones(num_rows, most + 1)], dim=1)
    chance = torch.zeros(num_rows, most, dtype=torch.float64, device=device)
    if decoding.temperature:
        chance.uniform_(generator=generator)
    token_ids = torch.full((num_rows, most + 1), processor.pad_id, device=device)
    token_ids[:, 0] = processor.think_open_id
    log_probs = torch.zeros(num_rows, most, dtype=torch.float32, device=device)
    rows = torch.arange(num_rows, device=device)
    writing = torch.ones_like(rows, dtype=torch.bool)
    for step in range(most + 1):
        token, position = token_ids[rows, step], prefix.next_position[rows] + step
        column = Prompt(backbone.embed_tokens(token[:, None]), position[None, :, None].expand(3, -1, -1), next_position=position + 1)
        hidden = backbone.decode_layers(column, mask[rows, : num_columns + step + 1], cache)[:, 0]
        if step == most:
            break
        writing = writing & (token != processor.think_close_id)
        if (step + 1) % look_every == 0:
            num_writing = int(writing.sum())
            if not (max_over_ranks(num_writing) if sharded else num_writing):
                break
            if 2 * num_writing <= len(rows) > 1:
                kept = writing if num_writing else torch.zeros_like(rows[:1])  # one row goes along with the other ranks
                rows, hidden, writing = rows[kept], hidden[kept], writing[kept]
                leave_out_all_but(cache, rows)
        scores = log_softmax_of_allowed(backbone.logits(hidden), banned)
        token = pick(scores, decoding, chance[rows, step])
        log_probs[rows, step] = torch.where(writing, scores.gather(1, token[:, None]).squeeze(1), 0.0)
        token_ids[rows, step + 1] = torch.where(writing, token, processor.pad_id)
    is_close = (token_ids == processor.think_close_id).long()
    written = (is_close.cumsum(dim=1) - is_close == 0).long()
    width = int(written.sum(dim=1).max())
    grown = mapped_cache(cache, lambda tensor: tensor[:, :, : num_columns + width])
    return Thoughts(token_ids[:, :width], written[:, :width]), log_probs[:, : width - 1], grown
