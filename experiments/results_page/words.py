"""Numbers as words of the page: signs, intervals, lists, tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from experiments.statistics import Interval


def number(value: float, digits: int = 1) -> str:
    """A number with so many decimals; never "−0.0"."""
    text = f"{value:.{digits}f}"
    if float(text) == 0.0:
        return text.removeprefix("-")
    return text.replace("-", "−")


def signed(value: float, digits: int = 1) -> str:
    """A difference, with its sign; 0 has none."""
    text = number(value, digits)
    return text if text.startswith("−") or float(text) == 0.0 else f"+{text}"


def percent(share: float, digits: int = 0) -> str:
    """A share from 0 to 1 as per cent."""
    return f"{number(100.0 * share, digits)} %"


def with_interval(found: Interval, digits: int = 1) -> str:
    """A mean and its interval."""
    return f"{number(found.mean, digits)} [{number(found.low, digits)}, {number(found.high, digits)}]"


def change(found: Interval, digits: int = 1) -> str:
    """A difference and its interval; bold where the interval excludes 0."""
    text = f"{signed(found.mean, digits)} [{number(found.low, digits)}, {number(found.high, digits)}]"
    return f"**{text}**" if found.excludes_zero else text


def listed(parts: Iterable[str], *, none: str = "none") -> str:
    """A list in a sentence."""
    words = list(parts)
    if not words:
        return none
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def cell(text: str) -> str:
    """Free text as one cell of a table: no bar, no line break, nothing that HTML would take for a tag."""
    plain = " ".join(text.split())
    for mark, safe in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("|", "\\|"), ("`", "'"), ("*", "\\*"), ("_", "\\_")):
        plain = plain.replace(mark, safe)
    return plain or "–"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> list[str]:
    """A Markdown table.

    Args:
        head: Of each column.
        rows: Cells.
        left: So many columns at the left are aligned left, the others right.
    """
    rule = ["---" if number < left else "---:" for number in range(len(head))]
    return [f"| {' | '.join(row)} |" for row in (head, rule, *rows)]
