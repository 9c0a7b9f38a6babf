"""The two streams of the command line, and errors as one sentence with an exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from spectralbench.text import printable

PIPE_WIDTH = 200
"""Columns of a table that goes to a file or a pipe, where there is no window to fit."""

Results = Annotated[Path, typer.Option("--results", help="Folder that holds records/, asv/ and figures/.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON lines instead of a table.")]


def data() -> Console:
    """Where data goes: stdout."""
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)


def talk() -> Console:
    """Where talk goes: stderr."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str) -> None:
    """One line of talk."""
    talk().print(printable(text), markup=False)


def fail(text: str, code: int) -> typer.Exit:
    """Say what went wrong; raise what this returns."""
    say(f"error: {text}")
    return typer.Exit(code)


def split(texts: list[str] | None) -> tuple[str, ...] | None:
    """The names of a repeatable, comma-separated option; None where it was not given."""
    if not texts:
        return None
    return tuple(dict.fromkeys(name.strip() for text in texts for name in text.split(",") if name.strip()))


@contextmanager
def usage_errors() -> Iterator[None]:
    """Answer a wrong name or value with the message that lists the right ones, and exit 2."""
    from spectralkernels.errors import RangeError, ShapeError

    try:
        yield
    except (RangeError, ShapeError) as error:
        raise fail(str(error), 2) from None
