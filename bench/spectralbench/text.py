"""Text for people: what a stored file says, escaped for where it goes, and the ends of errors (standard library)."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Iterator, Sequence


def printable(text: str) -> str:
    """The text with everything that a terminal would obey, or not show, written out: `\\\\x1b[31m`; line ends stay."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter == "\n" else _written_out(letter) for letter in text)


def meant(name: str, known: Iterable[str], likely: Sequence[str] = ()) -> str:
    """How an error about an unknown name ends: the first of the likely ones, else the nearest in letters; all known."""
    listed = list(known)
    near = likely or difflib.get_close_matches(name, listed, n=1)
    return f"{f', did you mean {near[0]!r}?' if near else ';'} known: {', '.join(listed)}"


def cell(text: str) -> str:
    """One cell of a Markdown table: no HTML, no link or image, no end of the cell or the line."""
    text = printable(text.replace("\r\n", " ").replace("\n", " ")).replace("\\", "\\\\").replace("|", "\\|")
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace("](", "]\\(")
    return f"\\{text}" if text.startswith(">") else text


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: Collection[int] = ()) -> Iterator[str]:
    """The lines of a Markdown table, each as soon as its row is there; numbers: columns that stand to the right.

    The texts are Markdown: what comes from a file goes through `cell`.
    """
    yield f"| {' | '.join(heads)} |"
    yield f"|{'|'.join('---:' if at in numbers else '---' for at in range(len(heads)))}|"
    for row in rows:
        yield f"| {' | '.join(row)} |"


def lined_up(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines of a Markdown table that is one as plain text, too: nothing is escaped, so that no cell ends early."""
    found = [[text.replace("|", "/").replace("\n", " ") for text in row] for row in (heads, *rows)]
    widths = [max(map(len, column)) for column in zip(*found, strict=True)]
    padded = [[text.ljust(width) for text, width in zip(row, widths, strict=True)] for row in found]
    head, _, *rest = table(padded[0], padded[1:])
    yield from (head, f"|{'|'.join('-' * (width + 2) for width in widths)}|", *rest)


def code(text: str) -> str:
    """A code span of Markdown."""
    return f"`{printable(text.replace('`', chr(39)).replace(chr(10), ' '))}`"


def _written_out(letter: str) -> str:
    return letter.encode("unicode_escape").decode()
