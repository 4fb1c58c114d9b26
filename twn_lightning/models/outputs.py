"""What the model's passes give back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from twn_lightning.batches import Thoughts
from twn_lightning.errors import ConfigError
from twn_lightning.models.prefix import Prefix


@dataclass(frozen=True)
class Embedding:
    """Embeddings of a batch.

    Attributes:
        vector: Unit rows, float32 ``(B, D)``.
        state: Mean of the query outputs (or the last token's output) after the final RMSNorm, before normalisation, float32 ``(B, H)``.
        prompt_state: Mean of the outputs of the prompt's words (its text tokens): under the reasoning adapter with the interface "kv", under the
            embedding adapter with "reencode"; float32 ``(B, H)``. None where no pass read the prompts alone.
    """

    vector: Tensor
    state: Tensor
    prompt_state: Tensor | None = None


@dataclass(frozen=True)
class Decoding:
    """How chains of thought are written.

    Attributes:
        max_new_tokens: Most tokens after the opening marker, at least 1; the closing marker counts.
        temperature: Divides the scores before sampling; 0 takes the most probable token.
        top_p: Samples from the smallest set of tokens with at least this probability together (Holtzman et al., 2020), in (0, 1].
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.temperature < 0.0 or not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"{self}: max_new_tokens must be at least 1, temperature at least 0 (greedy), and top_p in (0, 1].")


@dataclass(frozen=True)
class Rollout:
    """Chains of thought the model wrote.

    Attributes:
        thoughts: The tokens, ``(B, T)``.
        log_probs: Log-probability of each written token, by softmax at temperature 1 over the tokens that may be written, whatever the
            decoding's temperature and top_p were; 0 on padding, ``(B, T - 1)``. Equal to `DualLoRAModel.thought_log_probs`.
        prefix: Cache of prompt and thought, last token included.
        finished: Whether the row wrote its closing marker, bool ``(B,)``.
    """

    thoughts: Thoughts
    log_probs: Tensor
    prefix: Prefix
    finished: Tensor


@dataclass(frozen=True)
class Supervised:
    """Given chains of thought under the reasoning adapter.

    Attributes:
        log_probs: As in `Rollout`, with gradient, ``(B, T - 1)``.
        correct: Whether the most probable token is the given one, bool ``(B, T - 1)``.
        mask: 1 where there is a token to predict, ``(B, T - 1)``.
        prefix: Cache of prompt and thought, without gradient (unless the model was built with ``detach=False``).
    """

    log_probs: Tensor
    correct: Tensor
    mask: Tensor
    prefix: Prefix


@dataclass(frozen=True)
class Encoded:
    """Everything one encoding pass knows of a batch.

    Attributes:
        discriminative: Unit rows without reasoning, ``(B, D)``.
        state: What the gate reads, ``(B, G)``.
        gate_probability: That thinking helps, ``(B,)``.
        thinks: Which rows thought, bool ``(B,)``.
        generative: Unit rows after reasoning; of rows that did not think, the discriminative ones, ``(B, D)``.
        num_reasoning_tokens: Tokens written, 0 for rows that did not think, ``(B,)``.
        thoughts: Of the thinking rows, in order, or None if there are none.
    """

    discriminative: Tensor
    state: Tensor
    gate_probability: Tensor
    thinks: Tensor
    generative: Tensor
    num_reasoning_tokens: Tensor
    thoughts: Thoughts | None

    @property
    def vector(self) -> Tensor:
        """The embedding to search with: generative where the row thought, ``(B, D)``."""
        return torch.where(self.thinks[:, None], self.generative, self.discriminative)

    def select(self, rows: Tensor) -> Encoded:
        """The given rows, in the given order; a row may be named several times.

        Args:
            rows: Row numbers, ``(R,)``.
        """
        thoughts = self.thoughts
        if thoughts is not None:
            thoughts = thoughts.select((self.thinks.long().cumsum(0) - 1)[rows][self.thinks[rows]])
        return Encoded(
            discriminative=self.discriminative[rows],
            state=self.state[rows],
            gate_probability=self.gate_probability[rows],
            thinks=self.thinks[rows],
            generative=self.generative[rows],
            num_reasoning_tokens=self.num_reasoning_tokens[rows],
            thoughts=thoughts,
        )
