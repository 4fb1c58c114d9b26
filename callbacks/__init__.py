"""When something happens beside the training steps: evaluation, checkpoints, records. Knows no data set and no tracker."""

from twn_lightning.torchvision_compat import ensure_torchvision

ensure_torchvision()
