"""What a field of a stored line may hold (standard library only).

A record file is anybody's text: it may come with a clone, from a broken disk or from another machine. Every field is
checked once, where its line is read, so that whoever uses a record later may trust its types, build a path from its
names and divide its numbers. Free text stays as it is; `text` escapes it for where it goes.
"""

from __future__ import annotations

import json
import os
import re
import reprlib
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

LARGEST_FILE = 256 << 20
"""Bytes of a file that is read at all; a journal begins a new one at 1 MiB."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
_PARAMETER = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,49}")
_LARGEST, _SMALLEST = 1e30, 1e-30


@dataclass(frozen=True, slots=True)
class Field:
    """What a field must be, in words and as a test; one that is not `required` may be missing or null."""

    expected: str
    holds: Callable[[Any], bool]
    required: bool = True


def checked(fields: Mapping[str, Any], declared: Mapping[str, Field]) -> None:
    """Hold every declared field to its declaration.

    Raises: ValueError naming the field, what it must be and what it is; KeyError for a required one that is missing.
    """
    for name, field in declared.items():
        value = fields.get(name)
        if value is None and not field.required:
            continue
        if not field.holds(value):
            fields[name]  # a missing one has no value to show
            raise ValueError(f"{name} must be {field.expected}, got {reprlib.repr(value)}")


def _refused(word: str) -> float:
    raise ValueError(f"{word} is not a number")


def _nan_only(word: str) -> float:
    return float("nan") if word == "NaN" else _refused(word)


_PLAIN, _WITH_NAN = json.JSONDecoder(parse_constant=_refused), json.JSONDecoder(parse_constant=_nan_only)


def parsed(text: str, *, not_a_number: bool = False) -> Any:
    """The JSON value in `text`; `not_a_number` accepts the NaN that asv writes.

    Raises: ValueError for anything else, for nesting that no record has, and for text that no file could store.
    """

    try:
        value = (_WITH_NAN if not_a_number else _PLAIN).decode(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair cannot be written anywhere
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def regular_file(path: Path) -> bytes:
    """The bytes of a file.

    Raises: OSError where it cannot be read, is too large, or is a FIFO, a device or a folder: those may never end.
    """
    return _read(path, lambda file: file.read())


def first_line(path: Path) -> bytes:
    """The bytes of a file up to its first line end, at most 1 MiB. Raises: as `regular_file` does."""
    return _read(path, lambda file: file.readline(1 << 20))


def _read(path: Path, take: Callable[[BinaryIO], bytes]) -> bytes:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError("not a regular file")
        if status.st_size > LARGEST_FILE:
            raise OSError(f"{status.st_size >> 20} MiB are more than the {LARGEST_FILE >> 20} MiB that are read")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            return take(file)
    finally:
        os.close(descriptor)


def is_name(value: Any) -> bool:
    """A word that may become part of a path, a title or a table cell as it stands."""
    return type(value) is str and _matches(_NAME, value)


@lru_cache(maxsize=1 << 14)
def _matches(pattern: re.Pattern[str], text: str) -> bool:
    """The names of a history are few and are met a million times."""
    return pattern.fullmatch(text) is not None


def is_number(value: Any) -> bool:
    """An integer of 64 bits, or a float that is zero or so far from the ends that ratios and squares stay finite."""
    if type(value) is int:
        return -(2**63) <= value < 2**63
    return type(value) is float and (value == 0 or _SMALLEST <= abs(value) <= _LARGEST)


def is_scalar(value: Any) -> bool:
    """A parameter's value; as text, one that a case's `name=value,name=value` can hold."""
    if type(value) is str:
        return len(value) <= 200 and value.isprintable() and not {",", "="} & set(value)
    return type(value) is bool or is_number(value)


def is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def is_text(value: Any) -> bool:
    return type(value) is str


def is_moment(value: Any) -> bool:
    """An ISO time that has a place in UTC."""
    return type(value) is str and _is_time(value)


@lru_cache(maxsize=1 << 12)
def _is_time(text: str) -> bool:
    try:
        return datetime.fromisoformat(text).astimezone(UTC) is not None
    except (ValueError, OverflowError):
        return False


def is_case(value: Any) -> bool:
    return (
        type(value) is dict
        and len(value) <= 50
        and all(_matches(_PARAMETER, name) and is_scalar(item) for name, item in value.items())
    )


def is_sizes(value: Any) -> bool:
    return type(value) is list and len(value) <= 4 and all(type(size) is int and 0 < size < 2**31 for size in value)


def is_samples(value: Any) -> bool:
    if type(value) is not list or not value or not set(map(type, value)) <= {int, float}:
        return False
    return (_SMALLEST <= min(value) and max(value) < 2**63) or all(map(is_number, value))


def is_facts(value: Any, depth: int = 3) -> bool:
    """Text and numbers, in objects and lists no deeper than an environment's."""
    if type(value) in (dict, list):
        inner = value.values() if type(value) is dict else value
        return depth > 0 and all(is_facts(item, depth - 1) for item in inner)
    return value is None or type(value) in (str, bool) or is_number(value)


def is_tiles(value: Any) -> bool:
    """Tiles by label, as `site[size=24]`; what tests of them ask for is there."""
    return type(value) is dict and all(
        type(tile) is dict and "source" in tile and is_facts(tile, 1) for tile in value.values()
    )


def one_of(*names: str) -> Field:
    return Field(" or ".join(names), lambda value: value in names if type(value) is str else False)


def mapping(expected: str, holds: Callable[[Any], bool], *, required: bool = False) -> Field:
    """An object whose keys are names and whose values hold."""
    return Field(
        expected,
        lambda value: type(value) is dict and all(is_name(key[:100]) and holds(item) for key, item in value.items()),
        required,
    )


NAME = Field("a name of at most 100 letters, digits and . _ + - that begins with a letter or digit", is_name)
COUNT = Field("an integer from 0", is_count)
INTEGER = Field("an integer", lambda value: type(value) is int and is_number(value))
MOMENT = Field("an ISO time such as 2026-01-05T08:00:00+00:00", is_moment)
CASE = Field("an object of parameters with numbers or short plain texts", is_case)
SIZES = Field("a list of sizes", is_sizes)
SAMPLES = Field("finite numbers, at least one", is_samples)
