"""Give stored files another machine's name, by writing new files beside them (no torch).

A record is never rewritten. The copy below `records/<new>/` differs from its original in its first line alone, which
names the new machine and says `rekeyed_from`; the lines of the records are the same bytes. The original stays until
somebody removes it, so that nothing can be lost here: until then both machines are in the history.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from spectralbench import fields
from spectralbench.record import RecordFile, environment_line, read_file


class RekeyError(Exception):
    """The request cannot be fulfilled; the message says why, and what is there."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A file and its copy; `left` says why there is none."""

    old: Path
    new: Path
    left: str | None = None


def rekey(results: Path, old: str, new: str, where: Mapping[str, str], *, write: bool = True) -> Iterator[Copy]:
    """Copy the files of the machine `old` whose environment holds `where` to the machine `new`, one by one.

    where: facts of a first line and their values as text; "none" is what a file does not tell. write: else only say.

    Raises: RekeyError for a name that is none, or a machine or fact that no file has; OSError.
    """
    records = results / "records"
    for name in (old, new):
        if not fields.is_name(name):
            raise RekeyError(f"a machine is {fields.NAME.expected}, got {name!r}")
    if old == new:
        raise RekeyError(f"{old!r} already has that name")
    files = [read_file(path) for path in sorted((records / old).glob("*.jsonl"))]
    if not files:
        known = sorted({path.parent.name for path in records.glob("*/*.jsonl")})
        raise RekeyError(f"no records of machine {old!r}; known: {', '.join(known) or 'none'}")
    facts = {name for file in files for name in file.environment or ()}
    for name in where:
        if name not in facts:
            raise RekeyError(f"no file tells {name!r}; known: {', '.join(sorted(facts))}")
    for file in files:
        yield _copy(file, records / new / file.path.name, old, where, write)


def _copy(file: RecordFile, path: Path, old: str, where: Mapping[str, str], write: bool) -> Copy:
    environment = file.environment
    if environment is None:
        return Copy(file.path, path, "its first line is damaged")
    if environment["machine"] != old:
        return Copy(file.path, path, f"its first line names the machine {environment['machine']}")
    for name, value in where.items():
        if (known := _text(environment.get(name))) != value:
            return Copy(file.path, path, f"{name} is {known}")
    first = environment_line({**environment, "machine": path.parent.name, "rekeyed_from": old}).encode()
    content = _with_first_line(fields.regular_file(file.path), first)
    if path.exists():
        same = fields.regular_file(path) == content
        return Copy(file.path, path, "it is there already" if same else "another file of that name is there")
    if write:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, content, file)
    return Copy(file.path, path)


def _with_first_line(content: bytes, first: bytes) -> bytes:
    """The content with another environment; everything else byte for byte, damage included."""
    lines = content.removeprefix(codecs.BOM_UTF8).split(b"\n")
    at = next(number for number, line in enumerate(lines) if _is_environment(line))
    return b"\n".join([*lines[:at], first.rstrip(b"\n"), *lines[at + 1 :]])


def _is_environment(line: bytes) -> bool:
    try:
        found = fields.parsed(line.decode())
    except ValueError:
        return False
    return isinstance(found, dict) and found.get("kind") == "environment"


def _write(path: Path, content: bytes, file: RecordFile) -> None:
    """The whole copy or none: one that is cut off would be taken for the original's end.

    Raises: RekeyError if it does not read back as `file`.
    """
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as copy:
            copy.write(content)
            copy.flush()
            os.fsync(copy.fileno())
        if read_file(part).records != file.records:
            raise RekeyError(f"the copy of {file.path} does not read back as the file, and is not kept")
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)


def _text(value: object) -> str:
    return "none" if value is None else str(value)
