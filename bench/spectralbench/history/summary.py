"""What a record file says of each subject, as numbers that series are made of; cached, because it is much less.

A point needs the median of every process and not its samples, so that a file of thousands of samples is a few numbers
for each subject and metric. The cache holds them under the digest of the file's bytes and of the code that made them:
the files stay the truth, and one that changes is read again. It lies in the user's cache folder, is rewritten whole,
and may be deleted at any time; one that is damaged, or cannot be written, costs the time of reading the files.
"""

from __future__ import annotations

import hashlib
import json
import os
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

from spectralbench import fields, identity, outcome, record
from spectralbench.fields import is_moment
from spectralbench.outcome import Measurement
from spectralbench.record import Damage, Record

REMARKS = ("launch_bound", "launch_gaps", "precision", "throttled")
"""What measuring says of a time that it gave all the same, stored beside what it could not give."""

LEAST_BYTES = 1 << 20
"""A tree of fewer bytes is read faster than anybody would notice."""

Part = tuple[str, float, float, float, int, Sequence[tuple[int | str, float]], Mapping[str, str]]
"""Of one point: when first, value, q25, q75, samples, (process, its median) of every process, remarks on a time."""


@dataclass(frozen=True, slots=True)
class Told:
    """One subject in a file. identity: the fields of `Identity` in their order.

    outcomes: (process, profile, when), and of one without a number also (role, status, failure, reason).
    parts: (metric, version, unit, its part of a point).
    """

    identity: Sequence[Any]
    role: str
    params: Mapping[str, Any]
    cost: Mapping[str, int] | None
    outcomes: Sequence[Sequence[Any]]
    parts: Sequence[tuple[str, int, str, Part]]


@dataclass(frozen=True, slots=True)
class Summary:
    """One file. when: the latest of its records, "" if it has neither a record nor a start. records: how many."""

    path: Path
    environment: Mapping[str, Any] | None
    damage: tuple[Damage, ...]
    when: str
    records: int
    subjects: Sequence[Told]


def summaries(root: Path) -> Iterator[Summary]:
    """The summary of every record file below `root` (results/records), in the order of their names."""
    store = _place(root)
    known = {} if store is None else _stored(store)
    kept: dict[str, bytes] = {}
    fresh, size = False, 0
    for path in sorted(root.glob("*/*.jsonl")):
        try:
            content = fields.regular_file(path)
        except OSError:
            yield _as_summary(path, _told(path))  # `read_file` says why
            continue
        digest, size = hashlib.sha256(content).hexdigest(), size + len(content)
        del content
        text = known.get(digest)
        told = _told(path) if text is None else json.loads(text)
        if store is not None:
            kept[digest] = _line(told) if text is None else text
        fresh = fresh or text is None
        yield _as_summary(path, told)
    if store is not None and fresh and size >= LEAST_BYTES:
        _store(store, kept)


def _told(path: Path) -> list[Any]:
    """The summary of a file as JSON has it."""
    file = record.read_file(path)
    environment = file.environment or {}
    started = environment.get("started_at")
    moments = [one.recorded_at for one in file.records] or [str(started)] * is_moment(started)
    damage = [(one.line, one.why) for one in file.damage]
    return [file.environment, damage, max(map(utc, moments), default=""), len(file.records), subjects(file.records)]


def subjects(records: Iterable[Record]) -> list[tuple[Any, ...]]:
    """What records say of each subject: the fields of a `Told`."""
    by_subject: dict[tuple[Any, ...], list[Record]] = {}
    for one in records:
        key = (
            one.operation, one.operation_version, one.implementation, one.case_id, one.dtype, one.pass_, one.fft_size,
            one.cache, one.launch, one.seed,
        )  # fmt: skip
        by_subject.setdefault(key, []).append(one)
    return [
        (key, found[0].role, found[0].case, found[0].cost, [_outcome(one) for one in found], _parts(found))
        for key, found in by_subject.items()
    ]


def _as_summary(path: Path, told: Sequence[Any]) -> Summary:
    environment, damage, when, records, found_there = told
    found = tuple(Damage(path, line, why) for line, why in damage)
    return Summary(path, environment, found, when, records, [Told(*one) for one in found_there])


def _outcome(one: Record) -> tuple[Any, ...]:
    shared = one.replicate, one.profile, utc(one.recorded_at)
    if one.status == "measured":
        return shared
    return *shared, one.role, one.status, one.failure, one.reason or "no reason given"


def _parts(found: Sequence[Record]) -> list[tuple[str, int, str, Part]]:
    gathered: dict[tuple[str, int, str], tuple[list[str], dict[int, list[float]], dict[str, str]]] = {}
    for one in found:
        for got in one.measurements:
            times, samples, remarks = gathered.setdefault((got.metric, got.version, got.unit), ([], {}, {}))
            times.append(utc(one.recorded_at))
            samples.setdefault(one.replicate, []).extend(got.samples)
            if got.metric == "device_time":
                remarks.update((kind, why) for kind, why in (one.unavailable or {}).items() if kind in REMARKS)
                remarks.update({"not_interleaved": one.reason} if one.reason else {})
    return [
        (*key, (min(times), *level([median(one) for one in samples.values()], next(iter(samples.values()))),
                sum(map(len, samples.values())), [(at, median(one)) for at, one in samples.items()], remarks))
        for key, (times, samples, remarks) in gathered.items()
    ]  # fmt: skip


def level(values: list[float], samples: Sequence[float] | None = None) -> tuple[float, float, float]:
    """The median of the values of processes and their quartiles, which are those of the samples if there is one."""
    spread = values if len(values) > 1 or samples is None else samples
    return median(values), *Measurement("", 0, "", tuple(spread)).quartiles


def median(values: Sequence[float]) -> float:
    return values[0] if len(values) == 1 else statistics.median(values)


@lru_cache(maxsize=4096)
def utc(text: str) -> str:
    """An ISO time in UTC with a fixed width, so that the order of strings is the order of times."""
    when = datetime.fromisoformat(text)
    when = when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
    return when.isoformat(timespec="microseconds")


# --- the cache ------------------------------------------------------------------------------------------------------


@cache
def _code() -> str:
    """A digest of the code whose results are stored: another reader makes other summaries."""
    found = hashlib.sha256()
    for path in (__file__, *(module.__file__ for module in (fields, identity, outcome, record))):
        found.update(Path(str(path)).read_bytes())
    return found.hexdigest()


def _place(root: Path) -> Path | None:
    """The file of a tree's cache; None for a user without a home."""
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:
        return None
    name = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:16]
    return home / "spectralbench" / f"{name}.json" if home.is_absolute() else None


def _line(told: Sequence[Any]) -> bytes:
    return json.dumps(told, separators=(",", ":")).encode()


def _stored(path: Path) -> dict[str, bytes]:
    """Summaries, still as text, by the digest of their file; none where there is no whole cache of this code.

    The first line names the code and what follows; then there is a line for every file.
    """
    try:
        head, *lines = fields.regular_file(path).split(b"\n")
    except OSError:
        return {}
    found = hashlib.sha256()
    for line in lines:
        found.update(line + b"\n")
    if head.decode(errors="replace") != f"{_code()} {found.hexdigest()}":
        return {}
    pairs = (line.partition(b" ") for line in lines)
    return {digest.decode(): text for digest, _, text in pairs}


def _store(path: Path, found: Mapping[str, bytes]) -> None:
    lines = [digest.encode() + b" " + text for digest, text in found.items()]
    whole = hashlib.sha256()
    for line in lines:
        whole.update(line + b"\n")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            try:
                file.write(f"{_code()} {whole.hexdigest()}".encode())
                file.writelines(b"\n" + line for line in lines)
                file.close()
                Path(file.name).replace(path)
            except OSError:
                Path(file.name).unlink()
    except OSError:
        return  # a home that cannot be written, or a full disk: the files will be read again
