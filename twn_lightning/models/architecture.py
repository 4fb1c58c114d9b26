"""Which settings of the model go together."""

from __future__ import annotations

from twn_lightning.errors import ConfigError


def check_architecture(*, interface: str, num_queries: int, is_shared: bool, detach: bool) -> None:
    """Refuses what no model can be made of.

    Args:
        interface: What the queries read: kv or reencode.
        num_queries: K; 0 pools the last token.
        is_shared: Whether one adapter thinks and embeds.
        detach: Whether contrastive gradients are kept from the reasoning adapter.

    Raises:
        ConfigError: A value out of range, or settings that contradict each other.
    """
    if interface not in ("kv", "reencode"):
        raise ConfigError(f"interface is {interface!r}; choose kv or reencode.")
    if num_queries < 0:
        raise ConfigError(f"num_queries is {num_queries}; choose at least 1, or 0 to pool the last token.")
    if num_queries == 0 and interface == "kv" and not is_shared:
        raise ConfigError(
            "num_queries is 0, but with the interface kv the reasoning adapter alone has read the last token: choose at least 1, "
            "interface='reencode', or embedding=None (one shared adapter)."
        )
    if is_shared and detach:
        raise ConfigError("A shared adapter (embedding=None) cannot be cut off from itself: choose detach=False, or give an embedding adapter.")
