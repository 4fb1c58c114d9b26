"""Chains of thought as their originals write them: ``<think>…</think><answer>…``, with or without closing tags and debris."""

from __future__ import annotations

import re
from dataclasses import dataclass

_MARKER = re.compile(r"</?think>|</?answer>|<(?:gen|disc)_emb>|<\|[a-z0-9_]+\|>")
_ENDS_OF_ANSWER = ("</answer>", "<gen_emb>")


@dataclass(frozen=True)
class ThoughtParts:
    """What a reply holds.

    Attributes:
        thought: The words between ``<think>`` and ``</think>``; of a reply without these tags all of it, but for the answer. Empty for none.
        answer: The words behind ``<answer>``; empty for none.
        has_debris: Whether markers had to be removed from within the words.
    """

    thought: str
    answer: str
    has_debris: bool

    def joined(self, *, with_answer: bool) -> str:
        """Thought, and in a line of its own the answer, if it is wanted and there is one."""
        return "\n".join([self.thought, *([self.answer] if with_answer and self.answer and self.thought else [])])


def split_reply(reply: str) -> ThoughtParts:
    """Thought and answer of a reply, each without markers.

    A reply whose ``<think>`` is never closed has no thought: where it ends is not known.
    """
    before, opened, after = reply.partition("<think>")
    if opened:
        inner, closed, rest = after.partition("</think>")
        thought = inner if closed else ""
    else:
        thought, _, rest = before.partition("<answer>")
        thought, rest = thought.removesuffix("</think>"), f"<answer>{rest}" if rest else ""
    _, _, answer = rest.partition("<answer>")
    for end in _ENDS_OF_ANSWER:
        answer = answer.partition(end)[0]
    if not opened:
        thought = thought.rstrip().removesuffix("<gen_emb>").rstrip().removesuffix("</think>")
    words = [_MARKER.sub("", text).strip() for text in (thought, answer)]
    return ThoughtParts(words[0], words[1], has_debris=bool(_MARKER.search(thought) or _MARKER.search(answer)))
