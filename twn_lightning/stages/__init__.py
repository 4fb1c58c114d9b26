"""The four stages of training, one LightningModule each."""

from twn_lightning.torchvision_compat import ensure_torchvision

ensure_torchvision()
