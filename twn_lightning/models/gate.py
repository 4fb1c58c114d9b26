"""The routing gate: whether an input is worth a chain of thought."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

from twn_lightning.errors import ConfigError

if TYPE_CHECKING:
    from twn_lightning.models.outputs import Embedding

CurvePoint: TypeAlias = Mapping[str, float]
"""What a threshold brings and costs on validation tasks.

Keys: ``threshold``; ``quality``; ``think_rate`` (share of inputs that think); ``query_tokens`` (reasoning tokens a query); ``candidate_tokens`` (a
candidate); ``reasoning_tokens`` (a query, the candidates' tokens included, each candidate once); ``candidates_per_query``. Tokens are means over
tasks.
"""
BudgetSides: TypeAlias = Literal["query", "candidate", "both"]
GateReads: TypeAlias = Literal["embedding", "prompt", "both"]


def tokens_per_query(point: CurvePoint, *, candidates_per_query: float, sides: BudgetSides = "both") -> float:
    """Reasoning tokens a query that a threshold should cost where the queries share other numbers of candidates than the validation tasks did.

    What a query costs, and what a candidate costs, is a matter of the input and carries over; how many queries share a candidate is not, and is
    put right.

    Args:
        point: Of a gate's curve.
        candidates_per_query: Of the tasks at hand: candidates divided by queries, mean over tasks.
        sides: Which sides may think.
    """
    own = point["query_tokens"]
    shared = (point["reasoning_tokens"] - own) * candidates_per_query / point["candidates_per_query"]
    return {"query": own, "candidate": shared, "both": own + shared}[sides]


def threshold_within(curve: Sequence[CurvePoint], cost: Callable[[CurvePoint], float], *, budget: float) -> float:
    """The threshold that spends as much of a token budget as can be spent without exceeding it; of equally dear ones the best.

    A budget is what to spend, even where fewer tokens would do: for those there is the threshold chosen by quality.

    Args:
        curve: Of a gate.
        cost: Tokens of a point, in the budget's unit.
        budget: At least 0.

    Raises:
        ConfigError: The budget is no number of tokens, the curve knows no cost, or no point of it is that cheap.
    """
    if not (math.isfinite(budget) and budget >= 0.0):
        raise ConfigError(f"budget is {budget}, but it is a mean number of reasoning tokens: choose 0 or more.")
    try:
        costs = [cost(point) for point in curve]
    except KeyError as error:
        raise ConfigError(
            f"A budget of {budget:g} tokens is asked for, but the gate's curve knows no {error}: it is of an older version; train the gate again."
        ) from None
    affordable = [(spent, point["quality"], point["threshold"]) for spent, point in zip(costs, curve, strict=True) if spent <= budget]
    if not costs:
        raise ConfigError(
            f"A budget of {budget:g} tokens is asked for, but the gate has no curve of thresholds and tokens: stage 3 leaves one. Use a bundle that "
            "has gone through it, or ask for think='never' or 'always'."
        )
    if not affordable:
        raise ConfigError(f"No known threshold keeps to a budget of {budget:g} reasoning tokens; the cheapest costs {min(costs):g}.")
    return max(affordable)[2]


class RoutingGate(nn.Module):
    """A small MLP on what is known of an input before it thinks.

    The discriminative embedding's state says what the answer seems to be and hardly what was asked; the mean state of the prompt's words says what
    was asked, and, since words see the pictures before them, of what. Both are there after prefill and embedding: the gate costs next to nothing.

    Args:
        hidden_size: H, width of a state.
        gate_hidden_size: Width of the MLP's hidden layer.
        reads: "embedding": the state behind the discriminative embedding; "prompt": the mean state of the prompt's words; "both": one after the
            other, so that G = 2 H, where it is H otherwise.
        threshold: An input thinks if its probability is at least this, from 0 (always) to 1 (practically never).

    Attributes:
        threshold: As above; chosen on held-out pairs and saved with the bundle.
        curve: Quality and cost at other thresholds (`CurvePoint`), saved beside it, so that a token budget can be asked for.
        dropout: Share of what it reads that is hidden from it in training mode, 0 to 1; the stage that trains it sets it.
    """

    def __init__(self, hidden_size: int, *, gate_hidden_size: int = 128, reads: GateReads = "prompt", threshold: float = 0.5) -> None:
        super().__init__()
        if reads not in ("embedding", "prompt", "both"):
            raise ConfigError(f"model.gate.reads is {reads!r}; choose embedding, prompt or both.")
        if not 0.0 <= threshold <= 1.0:
            raise ConfigError(
                f"gate.threshold is {threshold}, but it is compared with a probability: choose a value from 0 (always think) to 1 (never think)."
            )
        self.threshold = threshold
        self.curve: list[dict[str, float]] = []
        self.dropout = 0.0
        self.hidden_size = hidden_size
        self.gate_hidden_size = gate_hidden_size
        self.reads: GateReads = reads
        self.mlp = nn.Sequential(nn.Linear(self.width, gate_hidden_size), nn.GELU(), nn.Linear(gate_hidden_size, 1))

    @property
    def width(self) -> int:
        """G, width of what it reads."""
        return self.hidden_size * (2 if self.reads == "both" else 1)

    def reset_parameters(self) -> None:
        """Draws its weights anew."""
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                layer.reset_parameters()

    def reading(self, embedding: Embedding) -> Tensor:
        """What the gate reads of discriminative embeddings, float32 ``(B, G)``, without gradient."""
        prompt_state = embedding.prompt_state
        assert prompt_state is not None, "embed what prefill gives"
        parts = {"embedding": (embedding.state,), "prompt": (prompt_state,), "both": (embedding.state, prompt_state)}[self.reads]
        return torch.cat(parts, dim=-1).detach().float()

    def forward(self, state: Tensor) -> Tensor:
        """Logit of "thinking helps".

        Args:
            state: As `reading` gives it, ``(B, G)``; each of its parts is normalised. No gradient flows back into it.

        Returns:
            ``(B,)``, float32.
        """
        parts = state.detach().float().reshape(len(state), -1, self.hidden_size)
        centred = functional.layer_norm(parts, (self.hidden_size,)).flatten(1)
        seen = functional.dropout(centred, self.dropout, self.training)
        with torch.autocast(device_type=state.device.type, enabled=False):  # in 16 bits many inputs would have the same probability
            logit: Tensor = self.mlp(seen.to(next(self.mlp.parameters()).dtype)).squeeze(-1)
        return logit.float()

    def probability(self, state: Tensor) -> Tensor:
        """`forward` as a probability, ``(B,)``."""
        return self.forward(state).sigmoid()
