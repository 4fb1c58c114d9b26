"""torchvision can be imported, whether its compiled half fits the torch beside it or not."""

from __future__ import annotations

import importlib

from twn_lightning.torchvision_compat import ensure_torchvision


def test_torchvision_can_be_imported_afterwards() -> None:
    """tests/conftest.py called it before anything imported torchvision; the package does so by itself in the process of tests/test_readme.py."""
    assert importlib.import_module("torchvision.transforms.v2").Resize


def test_a_second_call_declares_nothing_again() -> None:
    assert ensure_torchvision() is ensure_torchvision()
