"""Numbers as words of the page: signs, intervals, lists, tables."""

from __future__ import annotations

from collections import Counter
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


def commits(named: Iterable[str]) -> str:
    """Commits, each once and in 8 digits, with the number of records that name it where others do not; empty if none is named.

    Args:
        named: What each record says: commits with ", " between, "-dirty" behind one with uncommitted changes; empty where it says nothing.
    """
    of_records = [dict.fromkeys(part for part in text.split(", ") if part) for text in named]
    counts = Counter(commit for found in of_records for commit in found)
    some = {name: f" ({count} of {len(of_records)} records)" for name, count in counts.items() if count < len(of_records)}
    return ", ".join(f"{_commit(name)}{some.get(name, '')}" for name in counts)


def _commit(name: str) -> str:
    plain = name.removesuffix("-dirty")
    return plain[:8] + (" with uncommitted changes" if plain != name else "")


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
