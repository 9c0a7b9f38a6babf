"""Markdown tables that also line up as plain text."""

from __future__ import annotations

from collections.abc import Sequence


def microseconds(seconds: float) -> str:
    """A time for people."""
    return f"{seconds * 1e6:.4g} us"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table whose columns also line up as plain text."""
    safe = [[cell.replace("|", "/").replace("\n", " ") for cell in row] for row in rows]
    widths = [max(len(row[at]) for row in [list(heads), *safe]) for at in range(len(heads))]

    def line(cells: Sequence[str]) -> str:
        return f"| {' | '.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))} |"

    return [line(heads), f"|{'|'.join('-' * (width + 2) for width in widths)}|", *map(line, safe)]
