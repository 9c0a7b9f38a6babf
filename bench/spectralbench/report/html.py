"""A report as one HTML file that needs no network: figures inside, tables that sort, light and dark."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from spectralbench.report.page import Block, Cell, Detail, Figure, FoldedBlocks, Heading, Table, Text, text_of
from spectralbench.text import printable

STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --paper: #fff; --line: #d8dee4; --pale: #f3f5f7; --soft: #57606a;
  --win: #0a7a3d; --lose: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8ea; --paper: #14171a; --line: #363c43; --pale: #1e2328;
  --soft: #9aa4ae; --win: #5fd38d; --lose: #ff8a80; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 830px;
  margin: 0 auto; padding: 0 14px 60px; }
h1 { font-size: 1.6em; } h2 { margin-top: 2em; border-bottom: 1px solid var(--line); } h3 { margin-top: 1.6em; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; margin: .4em 0 1em; }
th, td { border-bottom: 1px solid var(--line); padding: 3px 6px; text-align: left; vertical-align: top; }
th { background: var(--pale); position: sticky; top: 0; } th[data-sort] { cursor: pointer; }
th[aria-sort=ascending]::after { content: " \\2191"; } th[aria-sort=descending]::after { content: " \\2193"; }
td.n { white-space: nowrap; } td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
td.win { color: var(--win); font-weight: 600; } td.lose { color: var(--lose); } td.open { color: var(--soft); }
figure { margin: 1em 0; } figure img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption, .soft { color: var(--soft); font-size: 14px; }
details { margin: .6em 0; } summary { cursor: pointer; color: var(--soft); } .strong { font-weight: 600; }
code { font-size: .9em; background: var(--pale); padding: 1px 4px; border-radius: 3px; }
"""

SCRIPT = """
for (const head of document.querySelectorAll("th[data-sort]")) head.addEventListener("click", () => {
  const table = head.closest("table"), body = table.tBodies[0], column = head.cellIndex;
  const up = head.getAttribute("aria-sort") !== "ascending";
  const key = row => row.cells[column].dataset.key ?? row.cells[column].textContent;
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  body.append(...[...body.rows].sort((a, b) => {
    const one = key(a), two = key(b);
    if (one === "" || two === "") return (one === "") - (two === "");
    const order = isNaN(one) || isNaN(two) ? one.localeCompare(two, undefined, {numeric: true}) : one - two;
    return up ? order : -order;
  }));
});
"""


def write(blocks: Sequence[Block], path: Path, title: str) -> None:
    """Write the page, everything in it, to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    page = [
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<style>{STYLE}</style></head><body>",
        *_lines(blocks),
        f"<script>{SCRIPT}</script></body></html>\n",
    ]
    path.write_text("\n".join(page), encoding="utf-8")


def _lines(blocks: Sequence[Block]) -> Iterator[str]:
    for block in blocks:
        match block:
            case Heading(level, text):
                yield f"<h{level}>{_text(text)}</h{level}>"
            case Text(text, strong):
                yield f'<p class="strong">{_text(text)}</p>' if strong else f"<p>{_text(text)}</p>"
            case Table():
                yield from _table(block)
            case Figure(path, finding):
                data = base64.b64encode(path.read_bytes()).decode("ascii")
                image = f'<img alt="{escape(printable(finding))}" src="data:image/png;base64,{data}">'
                yield f"<figure>{image}<figcaption>{_text(finding)}</figcaption></figure>"
            case FoldedBlocks(title, inner) | Detail(title, _, inner):
                yield f"<details><summary>{_text(title)}</summary>"
                yield from _lines(inner)
                yield "</details>"


def _table(table: Table) -> Iterator[str]:
    yield '<div class="scroll"><table><thead><tr>'
    for index, column in enumerate(table.columns):
        yield f"<th data-sort{_numeric(index, table)}>{_whole(column)}</th>"
    yield "</tr></thead><tbody>"
    for row in table.rows:
        yield "<tr>" + "".join(_cell(text_of(one), _numeric(index, table)) for index, one in enumerate(row)) + "</tr>"
    yield "</tbody></table></div>"


def _numeric(index: int, table: Table) -> str:
    return ' class="n"' if index in table.numbers else ""


def _cell(one: Cell, numeric: str) -> str:
    classes = " ".join(name for name in ("n" if numeric else "", one.kind) if name)
    key = f' data-key="{one.key!r}"' if one.key is not None else ""
    return f"<td{f' class={chr(34)}{classes}{chr(34)}' if classes else ''}{key}>{_whole(one.text)}</td>"


SHORT = 9


def _whole(text: str) -> str:
    """The text of a cell, whose lines are not broken where they are short, such as `K = 1` on a narrow screen."""
    shown = ((line, _text(line)) for line in text.split("\n"))
    return "<br>".join(said.replace(" ", "&nbsp;") if len(line) <= SHORT else said for line, said in shown)


def _text(text: str) -> str:
    """Nothing in it that a browser would obey; long names may break at underscores, what is in backticks is code."""
    shown = escape(printable(text))
    broken = re.sub(r"\w{12,}", lambda name: name[0].replace("_", "_<wbr>"), shown).replace("\n", "<br>")
    return re.sub(r"`([^`<]+)`", r"<code>\1</code>", broken)
