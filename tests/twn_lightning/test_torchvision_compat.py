"""torchvision can be imported, whether its compiled half fits the torch beside it or not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from twn_lightning.torchvision_compat import ensure_torchvision


@pytest.mark.slow
def test_torchvision_can_be_imported_afterwards() -> None:
    code = "from twn_lightning.torchvision_compat import ensure_torchvision; ensure_torchvision(); import torchvision.transforms.v2"
    assert subprocess.run([sys.executable, "-c", code], check=False, capture_output=True).returncode == 0


def test_a_second_call_declares_nothing_again() -> None:
    assert ensure_torchvision() is ensure_torchvision()
