"""Text of a stored file, escaped for where it goes: a terminal, or cells and code of Markdown (standard library)."""

from __future__ import annotations


def printable(text: str) -> str:
    """The text with everything that a terminal would obey, or not show, written out: `\\\\x1b[31m`; line ends stay."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter == "\n" else _written_out(letter) for letter in text)


def cell(text: str) -> str:
    """One cell of a Markdown table: no HTML, no link or image, no end of the cell or the line."""
    text = printable(text.replace("\r\n", " ").replace("\n", " ")).replace("\\", "\\\\").replace("|", "\\|")
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("](", "]\\(")


def code(text: str) -> str:
    """A code span of Markdown."""
    return f"`{printable(text.replace('`', chr(39)).replace(chr(10), ' '))}`"


def _written_out(letter: str) -> str:
    return letter.encode("unicode_escape").decode()
