"""Tables for a terminal and a page alike, and times for people."""

from __future__ import annotations

from collections.abc import Sequence

from spectralbench.text import lined_up


def microseconds(seconds: float) -> str:
    """A time for people."""
    return f"{seconds * 1e6:.4g} us"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table that is one as plain text, too: nothing is escaped, so that no cell may end early."""
    return list(lined_up(heads, [[cell.replace("|", "/").replace("\n", " ") for cell in row] for row in rows]))
