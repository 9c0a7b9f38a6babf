"""Which implementation is at work in a measuring process, for whoever watches that process from outside.

What never ends cannot say so itself: its name stands in memory that both processes share (no torch).
"""

from __future__ import annotations

import ctypes
import time
from multiprocessing.sharedctypes import RawValue

LONGEST_NAME = 200


class _Seen(ctypes.Structure):
    _fields_ = [("since", ctypes.c_double), ("name", ctypes.c_char * LONGEST_NAME)]


class Board:
    """Where one process writes who is at work and another reads it; it travels to a process that is being started."""

    def __init__(self) -> None:
        self._seen = RawValue(_Seen)

    def write(self, name: str, since: float) -> None:
        """Somebody has begun a step at this moment of the monotonic clock; 0: nobody is at work."""
        self._seen.since = 0.0
        self._seen.name = name.encode()[: LONGEST_NAME - 1]
        self._seen.since = since

    def stuck(self, seconds: float) -> str | None:
        """Who has been at one step for more than `seconds`, or None."""
        since, name = self._seen.since, self._seen.name.decode(errors="replace")
        # The same step before and after, or the name may be that of another one.
        return name if 0.0 < since < time.monotonic() - seconds and since == self._seen.since else None


_boards: list[Board] = []


def write_to(board: Board) -> None:
    """Let `begin` and `end` in this process write to this board."""
    _boards[:] = [board]


def begin(name: str) -> None:
    """An implementation begins a step."""
    for board in _boards:
        board.write(name, time.monotonic())


def end() -> None:
    """The step is over."""
    for board in _boards:
        board.write("", 0.0)
