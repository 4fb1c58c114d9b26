"""Which words can be encoded."""

from __future__ import annotations

import pytest

from twn_lightning.utf8 import is_utf8


@pytest.mark.parametrize(
    ("words", "can"), [("", True), ("Zürich 東京 🦉", True), ("\ud83e", False), (b"caf\xe9".decode("utf-8", "surrogateescape"), False)]
)
def test_words_with_a_lone_surrogate_cannot_be_encoded(words: str, can: bool) -> None:
    assert is_utf8(words) == can
