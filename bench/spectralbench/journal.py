"""Append outcomes to the record files so that a kill, a full disk or a second run loses nothing that was stored.

One run owns one file under an exclusive lock; a second run at the same time takes the next name. The block of lines of
a case is one write and one fsync. A file is only reused by a run in the same environment, because the environment is
stored once, in its first line. A file that has grown large is left for the next name, so that git handles small files.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from spectralbench.identity import MUST_MATCH, Conditions, Identity, changes
from spectralbench.record import Damage, Record, environment_line, read_environment, read_file, record_line

RecordKey = tuple[Identity, int, str]
"""What was measured, by which process (`replicate`), for which profile."""
K = TypeVar("K")

# Facts that move while nothing that matters changes; they do not make a new file.
VOLATILE = frozenset(
    {
        "started_at",
        "cpu_clock_hz",
        "load",
        "gpu_sm_clock_mhz",
        "gpu_memory_clock_mhz",
        "gpu_temperature_c",
        "gpu_throttle_reasons",
    }
)


LARGEST_BYTES = 1 << 20


class JournalError(Exception):
    """A record file cannot be written; the message names it and says what became of earlier records."""


@dataclass(frozen=True, slots=True)
class Stored(Generic[K]):
    """What a machine has stored at one code state.

    records: the newest of every key that was measured in the conditions asked for. elsewhere: keys that were measured
    in other conditions only, with what differs in words, `threads 2 -> 1`. damage: of the files of that state, and of
    those that do not say theirs.
    """

    records: Mapping[K, Record]
    elsewhere: Mapping[K, str]
    damage: Sequence[Damage]


@dataclass(slots=True)
class Kept:
    """All that a machine has stored at one code state, read once; who stores more there adds it.

    records: in the order of their files. elsewhere: those of other conditions, each with what differs.
    """

    records: list[Record]
    elsewhere: list[tuple[Record, str]]
    damage: list[Damage]

    def by(self, key_of: Callable[[Record], K]) -> Stored[K]:
        """The newest of every key."""
        found: dict[K, Record] = {}
        for record in self.records:
            key = key_of(record)
            if key not in found or found[key].recorded_at <= record.recorded_at:
                found[key] = record
        elsewhere = {key: other for record, other in self.elsewhere if (key := key_of(record)) not in found}
        return Stored(found, elsewhere, self.damage)


def record_key(record: Record) -> RecordKey:
    """What makes two records of one code state, in one place, the same measurement."""
    return record.identity, record.replicate, record.profile


def file_stem(environment: Mapping[str, Any], day: str | None = None) -> str:
    """`<date>-<commit8>[-dirty-<hash8>]`; a tree without git says `nogit-<source8>` where the commit stands."""
    commit, dirty = environment.get("commit"), environment.get("dirty")
    parts = [day or datetime.now(UTC).strftime("%Y-%m-%d"), commit[:8] if commit else "nogit"]
    if not commit and environment.get("source"):
        parts.append(environment["source"])
    if dirty:
        parts += ["dirty", str(dirty)[:8]]
    return "-".join(parts)


def key_on_its_card(record: Record) -> tuple[str, RecordKey]:
    """`record_key` with the GPU that measured: two cards of one model are two processes, never one."""
    return record.card or "", record_key(record)


def kept(folder: Path, environment: Mapping[str, Any]) -> Kept:
    """What this machine stored at the same commit and dirty state.

    folder: results/records/<machine>; it may be missing.
    """
    found = Kept([], [], [])
    wanted = Conditions.of(environment).known(MUST_MATCH)
    for path in sorted(folder.glob("*.jsonl")):
        if _is_of_another_state(path, environment):
            continue
        file = read_file(path)
        found.damage.extend(file.damage)
        if file.environment is None or _state(file.environment) != _state(environment):
            continue
        other = changes(Conditions.of(file.environment).known(MUST_MATCH), wanted)
        if other:
            found.elsewhere.extend((record, other) for record in file.records)
        else:
            found.records.extend(file.records)
    return found


class Journal:
    """The record file that is appended to, locked against every other run; `path` changes when it has grown large."""

    def __init__(self, path: Path, descriptor: int, environment: Mapping[str, Any]) -> None:
        self.path = path
        self._descriptor = descriptor
        self._environment = environment

    @classmethod
    def open(cls, folder: Path, environment: Mapping[str, Any]) -> Journal:
        """Lock the first of today's files that is free, not large and of the same environment, or make the next one.

        folder: results/records/<machine>; made if missing.
        Raises: JournalError if the folder or the file cannot be written.
        """
        stem = file_stem(environment)
        path = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for count in itertools.count(1):
                path = folder / (f"{stem}.jsonl" if count == 1 else f"{stem}-{count}.jsonl")
                journal = cls._take(path, environment)
                if journal is not None:
                    return journal
        except OSError as error:
            raise JournalError(_message(path, error, "nothing was measured")) from error
        raise AssertionError("itertools.count ended")

    @classmethod
    def _take(cls, path: Path, environment: Mapping[str, Any]) -> Journal | None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            journal = cls(path, descriptor, environment)
            size = os.fstat(descriptor).st_size
            if size == 0:
                journal._write(environment_line(environment))
                return journal
            first = read_file(path).environment if size < LARGEST_BYTES else None
            if first is not None and _lasting(first) == _lasting(environment):
                return journal
        except BlockingIOError:
            pass  # another run holds this file: the caller takes the next name
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def append(self, records: Sequence[Record]) -> None:
        """Store the records of one case by one synced write.

        Raises: JournalError if the disk is full or gone; what was stored before stays whole.
        """
        if not records:
            return
        try:
            if os.fstat(self._descriptor).st_size >= LARGEST_BYTES:
                following = Journal.open(self.path.parent, self._environment)
                self.close()
                self.path, self._descriptor = following.path, following._descriptor
            self._write("".join(record_line(record) for record in records))
        except OSError as error:
            raise JournalError(_message(self.path, error, "the records stored before are intact")) from error

    def close(self) -> None:
        """Release the lock."""
        os.close(self._descriptor)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, text: str) -> None:
        """Write the whole block, on a line of its own even where an earlier run was killed inside its last line."""
        size = os.fstat(self._descriptor).st_size
        torn = size > 0 and os.pread(self._descriptor, 1, size - 1) != b"\n"
        block = memoryview((("\n" if torn else "") + text).encode())
        try:
            while block:
                block = block[os.write(self._descriptor, block) :]
            os.fsync(self._descriptor)
        except OSError:
            # Half a block of our own is taken back; where even that fails, readers report the torn line.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, size)
            raise


def _is_of_another_state(path: Path, environment: Mapping[str, Any]) -> bool:
    """Whether the first line says so: a history has a hundred times more files than one commit has."""
    with contextlib.suppress(OSError):
        first = read_environment(path)
        return first is not None and _state(first) != _state(environment)
    return False


def _state(environment: Mapping[str, Any]) -> tuple[Any, ...]:
    """The code state that records belong to; `source` stands in for the commit where there is no git."""
    return tuple(environment.get(name) for name in ("machine", "commit", "dirty", "source"))


def _lasting(environment: Mapping[str, Any]) -> dict[str, Any]:
    """What a file's first line fixes, as it reads back from JSON."""
    return {name: value for name, value in json.loads(json.dumps(environment)).items() if name not in VOLATILE}


def _message(path: Path, error: OSError, consequence: str) -> str:
    return (
        f"cannot write records to {path}: {error.strerror or error}; {consequence}; "
        "free the disk or pass --results with a writable folder, then run again to resume"
    )
