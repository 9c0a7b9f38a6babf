"""One stored outcome: one JSON line in an append-only file whose first line is the environment (standard library only).

    results/records/<machine>/<date>-<commit8>[-dirty-<hash8>][-<k>].jsonl

    {"schema": 1, "kind": "environment", "machine": "cpu-epyc-2c", "commit": "...", "dirty": null, "torch": ...}
    {"schema": 1, "kind": "outcome", "status": "measured", "operation": "masked_multiply", "case": {...}, ...}

The lines of one case (all its implementations, timed interleaved) are written by one write and synced, so that a kill
at any moment loses at most the case in flight. Nothing is ever rewritten. A damaged or newer line is reported with its
file and number, and the rest is still read.

Schema history: 1 (2026-11) first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spectralbench.outcome import Failed, Measured, Measurement, Outcome, Skipped

SCHEMA = 1
Scalar = int | float | str | bool


@dataclass(frozen=True, slots=True)
class Record:
    """An outcome with its identity; `measurements` is empty unless status is "measured".

    operation, operation_version, implementation, role, case (parameters in declared order), dtype, pass_, fft_size,
    cache ("warm" | "cold"), launch ("eager" | "graph"): the identity, together with machine and metric.
    replicate: index of the process; with `card`, the GPU's identifier, the unit of replication; `card` is read off the
    file's environment and not written again. profile: the sweep it came from.
    cost: floor of the forward pass {"bytes_read", "bytes_written", "flops"}.
    tiles: what the kernels ran with, label -> fields of the tile and its "source" (pin, table, rule).
    """

    status: str
    operation: str
    operation_version: int
    implementation: str
    role: str
    case: Mapping[str, Scalar]
    dtype: str
    pass_: str
    fft_size: tuple[int, ...]
    cache: str
    launch: str
    seed: int
    replicate: int
    profile: str
    recorded_at: str
    measurements: tuple[Measurement, ...] = ()
    unavailable: Mapping[str, str] | None = None
    reason: str | None = None
    failure: str | None = None
    requested_bytes: int | None = None
    cost: Mapping[str, int] | None = None
    tiles: Mapping[str, Mapping[str, int | str]] | None = None
    card: str | None = None

    @property
    def case_id(self) -> str:
        return ",".join(f"{name}={value}" for name, value in self.case.items())

    def metric(self, name: str) -> Measurement | None:
        """The measurement of that name, or None if it was not taken."""
        return next((found for found in self.measurements if found.metric == name), None)


@dataclass(frozen=True, slots=True)
class Damage:
    """A line that could not be used: where, and why."""

    path: Path
    line: int
    why: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.why}"


@dataclass(frozen=True, slots=True)
class RecordFile:
    """One file: its environment (None if its first line is damaged), its records and its damaged lines."""

    path: Path
    environment: Mapping[str, Any] | None
    records: tuple[Record, ...]
    damage: tuple[Damage, ...]


def from_outcome(outcome: Outcome, **identity: Any) -> Record:
    """A record from an outcome and the identity fields of `Record`."""
    match outcome:
        case Measured(measurements, unavailable, tiles):
            return Record(
                status="measured",
                measurements=measurements,
                unavailable=dict(unavailable) or None,
                tiles=dict(tiles) or None,
                **identity,
            )
        case Skipped(reason):
            return Record(status="skipped", reason=reason, **identity)
        case Failed(kind, error, requested_bytes):
            return Record(status="failed", failure=kind, reason=error, requested_bytes=requested_bytes, **identity)


def environment_line(environment: Mapping[str, Any]) -> str:
    """The first line of a file."""
    return _line({"schema": SCHEMA, "kind": "environment", **environment})


def record_line(record: Record) -> str:
    """One record as one line; NaN and infinity are refused with ValueError."""
    fields = asdict(record)
    fields["pass"] = fields.pop("pass_")
    del fields["card"]
    fields["measurements"] = {
        found.metric: {"version": found.version, "unit": found.unit, "samples": [_short(x) for x in found.samples]}
        for found in record.measurements
    }
    return _line({"schema": SCHEMA, "kind": "outcome", **{k: v for k, v in fields.items() if v is not None}})


def read_file(path: Path) -> RecordFile:
    """Read one record file; damaged or newer lines become `damage`, the rest is kept."""
    environment: Mapping[str, Any] | None = None
    records: list[Record] = []
    damage: list[Damage] = []
    for number, text in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        if not text.strip():
            continue
        try:
            fields = _parse(text)
            if fields["kind"] == "environment":
                environment = {k: v for k, v in fields.items() if k not in ("schema", "kind")}
            else:
                records.append(_record(fields, environment))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            why = f"missing field {error}" if isinstance(error, KeyError) else str(error)
            damage.append(Damage(path, number, why))
    if environment is None:
        damage.insert(0, Damage(path, 1, "no environment line, so its records have no machine or commit"))
    return RecordFile(path, environment, tuple(records), tuple(damage))


def read_tree(root: Path) -> Iterator[RecordFile]:
    """Every record file below `root` (results/records), in the order of their names."""
    for path in sorted(root.glob("*/*.jsonl")):
        yield read_file(path)


def _parse(text: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not a whole JSON line ({error.msg} at column {error.colno}): cut off or damaged") from None
    if not isinstance(fields, dict) or not isinstance(fields.get("schema"), int):
        raise ValueError("not a record: it has no schema number")
    if fields["schema"] > SCHEMA:
        raise ValueError(f"schema {fields['schema']} is newer than this spectralbench knows ({SCHEMA}); upgrade it")
    if fields.get("kind") not in ("environment", "outcome"):
        raise ValueError(f"unknown kind {fields.get('kind')!r}; known: environment, outcome")
    return fields


def _record(fields: dict[str, Any], environment: Mapping[str, Any] | None) -> Record:
    known = ("schema", "kind", "pass", "measurements", "fft_size", "card")
    rest = {k: v for k, v in fields.items() if k not in known}
    card = environment.get("gpu_uuid") if environment else None
    measurements = tuple(
        Measurement(name, found["version"], found["unit"], _samples(name, found["samples"]))
        for name, found in fields.get("measurements", {}).items()
    )
    pass_, size = fields["pass"], tuple(fields["fft_size"])
    return Record(pass_=pass_, measurements=measurements, fft_size=size, card=card, **rest)


def _samples(metric: str, values: list[float]) -> tuple[float, ...]:
    if not values or not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        raise ValueError(f"the samples of {metric} must be finite numbers, at least one, got {values}")
    return tuple(map(float, values))


def _short(value: float) -> float | int:
    """Bytes and other whole numbers exactly, anything else to six digits, finer than any clock here."""
    return int(value) if float(value).is_integer() else float(f"{value:.6g}")


def _line(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, allow_nan=False, separators=(",", ":")) + "\n"
