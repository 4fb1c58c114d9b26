"""Writing chains of thought from a KV cache that is already there."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from twn_lightning.batches import Thoughts
from twn_lightning.models.backbones.base import Backbone, Prompt
from twn_lightning.models.outputs import Decoding, Rollout
from twn_lightning.models.prefix import Prefix, shared_cache


def log_softmax_of_allowed(logits: Tensor, banned: Tensor) -> Tensor:
    """Log-probabilities over the tokens that may be written; minus infinity for the others.

    The one definition for sampling, supervision and the policy ratio of GRPO, so that a first ratio is exactly 1.

    Args:
        logits: ``(..., V)``, float32.
        banned: Which tokens may not be written, bool ``(V,)``.
    """
    return logits.masked_fill(banned, float("-inf")).log_softmax(dim=-1)


def pick(log_probs: Tensor, decoding: Decoding, generator: torch.Generator | None) -> Tensor:
    """One token a row.

    Args:
        log_probs: ``(B, V)``.
        decoding: Greedy at temperature 0, else sampling.
        generator: Of the sampling, on the device of the scores; None for the global one.

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
    uniform = torch.rand(len(cumulative), 1, dtype=torch.float64, device=cumulative.device, generator=generator).clamp(max=1 - 1e-12)
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True).squeeze(-1)


@torch.no_grad()
def write_thoughts(backbone: Backbone, prefix: Prefix, decoding: Decoding, *, banned: Tensor, generator: torch.Generator | None) -> Rollout:
    """Continues each prompt with an opening marker and what the active adapter writes until its closing marker.

    Every written token, the last one too, ends in the rollout's cache; the given prefix stays as it is.

    Args:
        backbone: With the adapter that writes active.
        prefix: Prompts without thoughts.
        decoding: How tokens are chosen.
        banned: Tokens that may not be written, bool ``(V,)``.
        generator: Of the sampling.
    """
    assert prefix.thoughts is None
    processor, device = backbone.processor, prefix.attention_mask.device
    num_rows, num_columns = prefix.attention_mask.shape
    cache = shared_cache(prefix.cache)
    room = prefix.attention_mask.new_zeros(num_rows, decoding.max_new_tokens + 1)
    mask = torch.cat([prefix.attention_mask, room], dim=1)
    writing = torch.ones(num_rows, dtype=torch.bool, device=device)
    token = torch.full((num_rows,), processor.think_open_id, device=device)
    position, last_hidden = prefix.next_position, prefix.last_hidden
    tokens, log_probs = [token], []
    for step in range(decoding.max_new_tokens + 1):
        end = num_columns + step + 1
        mask[:, end - 1] = writing
        column = Prompt(backbone.embed_tokens(token[:, None]), position[None, :, None].expand(3, -1, -1), next_position=position + 1)
        hidden = backbone.decode_layers(column, mask[:, :end], cache)[:, 0]
        last_hidden = torch.where(writing[:, None], hidden, last_hidden)
        position = position + writing
        writing = writing & (token != processor.think_close_id)
        if step == decoding.max_new_tokens or not writing.any():
            break
        scores = log_softmax_of_allowed(backbone.logits(hidden), banned)
        token = torch.where(writing, pick(scores, decoding, generator), processor.pad_id)
        log_prob = scores.gather(1, token[:, None]).squeeze(1)
        tokens.append(token)
        log_probs.append(torch.where(writing, log_prob, 0.0))
    width = len(tokens)
    thoughts = Thoughts(token_ids=torch.stack(tokens, dim=1), mask=mask[:, num_columns : num_columns + width])
    grown = replace(
        prefix, cache=cache, attention_mask=mask[:, : num_columns + width], next_position=position, last_hidden=last_hidden, thoughts=thoughts
    )
    finished = (thoughts.token_ids == processor.think_close_id).any(dim=1)
    return Rollout(thoughts=thoughts, log_probs=torch.stack(log_probs, dim=1), prefix=grown, finished=finished)
