"""Tiles measured to be the fastest, and a rule where nothing was measured (standard library only).

A site is a place in a launch where a tile must be chosen. What decides, in this order:

    pin      what `pinned` says, to replay a recorded choice or to try one
    table    the winner in `tuned/sm_<capability>.json` for the launch's bucket of shapes
    rule     the tile that the launch works out itself, proven not to spill by ahead-of-time compilation

So a first call searches nothing. `noted_choices` tells which tiles a call took; records keep them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from spectralkernels.errors import RangeError

Tile = TypeVar("Tile", bound=Any)
Fields = Mapping[str, int]
Source = Literal["pin", "table", "rule"]

TABLES = Path(__file__).parent / "tuned"
SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Choice:
    """What one launch took: the fields of its tile and who decided; `ranges` are the bounds of a search."""

    site: str
    bucket: str
    tile: Fields
    source: Source
    ranges: Mapping[str, tuple[int, int]]

    @property
    def label(self) -> str:
        """`dft_triton.contract[m=128,n=64]`: the key of tables, pins and records."""
        return f"{self.site}[{self.bucket}]"

    @property
    def recorded(self) -> dict[str, int | str]:
        """The tile and its source, as a record keeps them."""
        return {**self.tile, "source": self.source}

    def neighbours(self) -> Iterator[dict[str, int]]:
        """Every tile with one field halved or doubled within its range."""
        for name, (least, most) in self.ranges.items():
            for value in (self.tile[name] // 2, self.tile[name] * 2):
                if least <= value <= most:
                    yield {**self.tile, name: value}


@dataclass(frozen=True, slots=True)
class Site:
    """A place where a tile is chosen: its name, and the least and largest value of every field that may vary.

    Fields are powers of two. A launch calls `choose` with the tile of its rule, a frozen dataclass of integers.
    """

    name: str
    ranges: Mapping[str, tuple[int, int]]

    def choose(self, bucket: Mapping[str, object], rule: Tile, capability: int) -> Tile:
        """The tile for a launch.

        bucket: what decides which tile wins, rounded to classes by the caller (see `rounded`). rule: the tile where
        neither a pin nor the table has one. capability: 90 for sm_90, see `target.target_capability`; off a GPU it is
        90 too, so that tests and fingerprints see the tiles that were tuned.
        Raises: RangeError if a pin names a field that the tile does not have, or a value outside its range.
        """
        text = ",".join(f"{name}={value}" for name, value in bucket.items())
        label = f"{self.name}[{text}]"
        pins = _pins.get()
        found: Fields | None = pins.get(label, pins.get(self.name))
        source: Source = "pin"
        if found is None:
            found, source = winners(capability).get(label), "table"
        tile, source = (rule, "rule") if found is None else (replace(rule, **self._checked(found, rule)), source)
        notes = _notes.get()
        if notes is not None:
            notes[label] = Choice(self.name, text, asdict(tile), source, self.ranges)
        return tile

    def _checked(self, fields: Fields, rule: Any) -> dict[str, int]:
        known = asdict(rule)
        for name, value in fields.items():
            if name not in known:
                raise RangeError(f"a tile of {self.name} has no field {name!r}; it has {', '.join(known)}")
            least, most = self.ranges.get(name, (known[name], known[name]))
            power = isinstance(value, int) and value > 0 and value & (value - 1) == 0
            if value != known[name] and not (power and least <= value <= most):
                raise RangeError(
                    f"{name} of {self.name} must be a power of two from {least} to {most}, got {value!r}; "
                    "take a tile from a record's `tiles`"
                )
        return dict(fields)


_pins: ContextVar[Mapping[str, Fields]] = ContextVar("pins", default={})  # noqa: B039 - never written to
_notes: ContextVar[dict[str, Choice] | None] = ContextVar("notes", default=None)


def watched() -> bool:
    """Whether tiles are pinned or noted here, so that every launch must choose its own."""
    return bool(_pins.get()) or _notes.get() is not None


@contextmanager
def noted_choices() -> Iterator[dict[str, Choice]]:
    """Collect what every launch inside took, by label; the last one where a label comes twice."""
    notes: dict[str, Choice] = {}
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


@contextmanager
def pinned(pins: Mapping[str, Fields]) -> Iterator[None]:
    """Take these tiles inside: by label for one bucket of shapes, or by a site's name for all of its launches."""
    token = _pins.set({**_pins.get(), **pins})
    try:
        yield
    finally:
        _pins.reset(token)


@cache
def winners(capability: int) -> Mapping[str, Fields]:
    """The table of an architecture by label; empty where nothing was measured on one.

    Raises: RangeError if the table's schema is newer than this code.
    """
    path = TABLES / f"sm_{capability}.json"
    if not path.is_file():
        return {}
    table = json.loads(path.read_text(encoding="utf-8"))
    if table["schema"] != SCHEMA:
        raise RangeError(f"{path} has schema {table['schema']}, this spectralkernels reads {SCHEMA}; update it")
    return {label: entry["tile"] for label, entry in table["winners"].items()}


def rounded(size: int) -> int:
    """The power of two at or above `size`: buckets of sizes that share a winner (0 stays 0)."""
    return 1 << (size - 1).bit_length() if size > 0 else 0
