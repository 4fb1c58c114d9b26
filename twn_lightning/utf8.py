"""Words that files and networks can carry."""

from __future__ import annotations


def is_utf8(words: str) -> bool:
    """Whether words can be encoded: lone surrogates, which a lenient decoder (``surrogateescape``) leaves in place of other bytes, cannot."""
    try:
        words.encode()
    except UnicodeEncodeError:
        return False
    return True
