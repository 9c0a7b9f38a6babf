"""The two streams of the command line, and errors as one sentence with an exit code."""

from __future__ import annotations

import codecs
import errno
import importlib.util
import io
import os
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from spectralbench.text import meant, printable

PIPE_WIDTH = 200
"""Columns of a table that goes to a file or a pipe, where there is no window to fit."""

Results = Annotated[Path, typer.Option("--results", help="Folder that holds records/, asv/ and figures/.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON lines instead of a table.")]


SPELLED = {
    "µ": "u",
    "\N{MULTIPLICATION SIGN}": "x",
    "→": "->",
    "·": "-",
    "…": "...",
    "†": "+",
    "≥": ">=",
    "≤": "<=",
    "Δ": "d",
}
"""What a stream that cannot hold a sign gets instead; anything else is written out as its code."""


def survive_any_encoding() -> None:
    """A sign that stdout or stderr cannot encode is spelled, so that no output ends in a traceback."""

    def spell(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeEncodeError), "the handler is set on streams that are written to"
        bad = error.object[error.start : error.end]
        spelled = (SPELLED.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in bad)
        return "".join(spelled), error.end

    codecs.register_error("spell", spell)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="spell")


def keep_data_apart() -> None:
    """Data gets a descriptor of its own; what a library or a child writes to that of stdout is talk, on stderr.

    A stream that is closed is one that nobody reads: the next file that is opened must not get its number.
    """
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w", encoding="utf-8")
    if sys.stderr is None:
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")
    if not isinstance(sys.stdout, io.TextIOWrapper):
        return  # somebody's own
    try:
        place, errors = sys.stdout.fileno(), sys.stderr.fileno()
    except (OSError, AttributeError):
        return  # one of the two is no file: there is nothing to keep apart
    sys.stdout.flush()
    own = os.dup(place)
    os.dup2(errors, place)
    encoding, lines = sys.stdout.encoding, sys.stdout.line_buffering
    sys.stdout = os.fdopen(own, "w", 1 if lines else -1, encoding=encoding, errors=sys.stdout.errors)


@contextmanager
def whole_data() -> Iterator[None]:
    """A stdout that has no room ends with 2 and a sentence, whenever that shows; it is not written to again."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
        say(f"error: stdout is not all there: {error.strerror}")
        raise SystemExit(2) from None


def operation_names() -> list[str]:
    """The operations by their files, without importing them: that would import torch."""
    found = importlib.util.find_spec("spectralkernels")
    assert found is not None and found.submodule_search_locations, "spectralkernels is installed with spectralbench"
    folders = [Path(folder) / "ops" for folder in found.submodule_search_locations]
    workloads = Path(__file__).parent.parent / "workloads"
    return [module.name for folder in (*folders, workloads) for module in pkgutil.iter_modules([str(folder)])]


def check_operations(names: Sequence[str] | None) -> None:
    """Answer a misspelt operation at once, with the one that is nearest."""
    known = operation_names()
    if not set(names or ()) <= set(known):
        known += plugin_names()
    for name in names or ():
        if name not in known:
            # `conv1d`, as tables shorten it, is a part of the name and not the nearest in letters.
            parts = [one for one in known if name and name in one]
            raise fail(f"unknown operation {name!r}{meant(name, known, parts)}", 2)


def plugin_names() -> list[str]:
    """The operations of other packages, which must be imported to be known; what is broken is said."""
    from spectralbench import plugins

    if not plugins.found():
        return []
    from spectralbench.workloads import outside

    say_broken(outside().broken)
    return list(outside().operations)


def say_broken(broken: Sequence[str]) -> None:
    """Name the plug-ins that are left out."""
    for text in broken:
        say(f"plug-in left out: {text}")


def data() -> Console:
    """Where data goes: stdout."""
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False)


def talk() -> Console:
    """Where talk goes: stderr."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def out(text: str) -> None:
    """One piece of data on stdout in the stream's own encoding; `typer.echo` writes UTF-8 where ASCII is asked for."""
    sys.stdout.write(f"{text}\n")


def say(text: str) -> None:
    """One line of talk."""
    talk().print(printable(text), markup=False)


def spoken(error: Exception) -> str:
    """What went wrong in a line: of a file that may not be written, which, and what to do; else the error's own."""
    if isinstance(error, PermissionError) and error.filename is not None:
        return (
            f"cannot write {error.filename}: {error.strerror}; name a place where you may, with --out if there is one"
        )
    return str(error)


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
