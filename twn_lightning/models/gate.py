"""The routing gate: whether an input is worth a chain of thought."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from twn_lightning.errors import ConfigError


class RoutingGate(nn.Module):
    """A small MLP on the discriminative state.

    Args:
        hidden_size: Width of the state.
        gate_hidden_size: Width of the MLP's hidden layer.
        threshold: An input thinks if its probability is at least this, from 0 (always) to 1 (practically never).

    Attributes:
        threshold: As above; chosen on held-out pairs and saved with the bundle.
        curve: Quality and cost at other thresholds, saved beside it, so that a token budget can be asked for.
    """

    def __init__(self, hidden_size: int, *, gate_hidden_size: int = 128, threshold: float = 0.5) -> None:
        super().__init__()
        if not 0.0 <= threshold <= 1.0:
            raise ConfigError(
                f"gate.threshold is {threshold}, but it is compared with a probability: choose a value from 0 (always think) to 1 (never think)."
            )
        self.threshold = threshold
        self.curve: list[dict[str, float]] = []
        self.hidden_size = hidden_size
        self.gate_hidden_size = gate_hidden_size
        self.mlp = nn.Sequential(nn.Linear(hidden_size, gate_hidden_size), nn.GELU(), nn.Linear(gate_hidden_size, 1))

    def forward(self, state: Tensor) -> Tensor:
        """Logit of "thinking helps".

        Args:
            state: Mean of the query outputs, before L2 normalisation, ``(B, H)``. No gradient flows back into it.

        Returns:
            ``(B,)``, float32.
        """
        centred = functional.layer_norm(state.detach().float(), (self.hidden_size,))
        logit: Tensor = self.mlp(centred.to(next(self.mlp.parameters()).dtype)).squeeze(-1)
        return logit.float()

    def probability(self, state: Tensor) -> Tensor:
        """`forward` as a probability, ``(B,)``."""
        return self.forward(state).sigmoid()
