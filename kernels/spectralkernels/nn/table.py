"""A plain table, for what the layers say of a model."""

from __future__ import annotations

from collections.abc import Sequence


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell; numbers to the right."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    numbers = [any(row[i][:1].isdigit() and "x" not in row[i] for row in rows) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        placed = (
            cell.rjust(width) if number else cell.ljust(width)
            for cell, width, number in zip(row, widths, numbers, strict=True)
        )
        return "  ".join(placed).rstrip()

    return "\n".join([line(head), *map(line, rows)])
