"""A report as Markdown: one page, and a page of its own for every detail."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from spectralbench.report.page import Block, Cell, Detail, Figure, FoldedBlocks, Heading, Table, Text, text_of
from spectralbench.text import cell
from spectralbench.text import table as written


def write(blocks: Sequence[Block], path: Path) -> None:
    """Write the page to `path` and its details below the folder that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(_lines(blocks, path.parent)).rstrip("\n") + "\n", encoding="utf-8")


def _lines(blocks: Sequence[Block], folder: Path) -> Iterator[str]:
    for block in blocks:
        match block:
            case Heading(level, text):
                yield from (f"{'#' * level} {cell(text)}", "")
            case Text(text, strong):
                yield from (f"**{cell(text)}**" if strong else cell(text), "")
            case Table():
                yield from _table(block)
            case Figure(path, finding):
                yield from (f"![{cell(finding)}]({path.relative_to(folder).as_posix()})", "", f"*{cell(finding)}*", "")
            case FoldedBlocks(title, inner):
                yield from ("<details>", f"<summary>{cell(title)}</summary>", "")
                yield from _lines(inner, folder)
                yield from ("</details>", "")
            case Detail(title, path, inner):
                write([Heading(1, title), *inner], folder / path)
                yield from (f"- [{cell(title)}]({path.as_posix()})", "")


def _table(table: Table) -> Iterator[str]:
    rows = ([_shown(text_of(one)) for one in row] for row in table.rows)
    yield from written([_broken(column) for column in table.columns], rows, table.numbers)
    yield ""


def _shown(one: Cell) -> str:
    text = _broken(one.text)
    return f"**{text}**" if one.kind == "win" and text else text


def _broken(text: str) -> str:
    return "<br>".join(cell(line) for line in text.split("\n"))
