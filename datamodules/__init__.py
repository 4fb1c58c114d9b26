"""Data sets, files and the batches made of them."""

from twn_lightning.torchvision_compat import ensure_torchvision

ensure_torchvision()
