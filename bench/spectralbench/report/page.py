"""What a page is made of, whoever writes it: Markdown for a repository's page, or HTML for a browser."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spectralbench.contest import Kind


@dataclass(frozen=True, slots=True)
class Cell:
    """Text of a table's cell, with line breaks. kind: who wins there, for its colour. key: what it is sorted by."""

    text: str
    kind: Kind = ""
    key: float | None = None


@dataclass(frozen=True, slots=True)
class Heading:
    level: int
    text: str


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph; strong: it must not be overlooked."""

    text: str
    strong: bool = False


@dataclass(frozen=True, slots=True)
class Table:
    """Columns and rows; `numbers` are the columns that are aligned to the right."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Cell | str, ...], ...]
    numbers: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture and the finding that it shows."""

    path: Path
    finding: str


@dataclass(frozen=True, slots=True)
class FoldedBlocks:
    """Blocks that are closed until a reader opens them."""

    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Detail:
    """Blocks on a page of their own where a page cannot hold everything. path: below the folder of the report."""

    title: str
    path: Path
    blocks: tuple[Block, ...]


Block = Heading | Text | Table | Figure | FoldedBlocks | Detail


def text_of(cell: Cell | str) -> Cell:
    """A cell, whatever was given for it."""
    return cell if isinstance(cell, Cell) else Cell(cell)


def figures(blocks: Sequence[Block]) -> list[Figure]:
    """Every figure of a page, in order."""
    found: list[Figure] = []
    for block in blocks:
        if isinstance(block, Figure):
            found.append(block)
        elif isinstance(block, FoldedBlocks | Detail):
            found += figures(block.blocks)
    return found
