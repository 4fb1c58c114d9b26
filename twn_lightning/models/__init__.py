"""What owns parameters or tokens: backbones, adapters, the queries, the gate, and decoding."""

from twn_lightning.torchvision_compat import ensure_torchvision

ensure_torchvision()
