"""Think When Needed: train, evaluate and use multimodal embedding models that think only when thinking helps."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from twn_lightning.encoder import Encoder

__version__ = "0.1.0"

__all__ = ["Encoder", "__version__"]


def __getattr__(name: str) -> object:
    """`Encoder`, loaded when it is asked for: settings and errors are answered without torch."""
    if name == "Encoder":
        from twn_lightning.encoder import Encoder

        return Encoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
