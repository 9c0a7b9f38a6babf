"""One stored outcome: one JSON line in an append-only file whose first line is the environment (standard library only).

    results/records/<machine>/<date>-<commit8>[-dirty-<hash8>][-<k>].jsonl

    {"schema": 1, "kind": "environment", "machine": "cpu-epyc-2c", "commit": "...", "dirty": null, "torch": ...}
    {"schema": 1, "kind": "outcome", "status": "measured", "operation": "masked_multiply", "case": {...}, ...}

The lines of one case (all its implementations, timed interleaved) are written by one write and synced, so that a kill
at any moment loses at most the case in flight. Nothing is ever rewritten. A damaged or newer line is reported with its
file and number, and the rest is still read. Every field is checked where it is read (see `fields`).

Schema history: 1 (2026-11) first.
"""

from __future__ import annotations

import codecs
import json
import reprlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from spectralbench import fields as stored
from spectralbench.fields import Field
from spectralbench.identity import Identity
from spectralbench.outcome import Failed, Measured, Measurement, Outcome, Skipped

SCHEMA = 1
Scalar = int | float | str | bool


@dataclass(frozen=True, slots=True)
class Record:
    """An outcome with its identity; `measurements` is empty unless status is "measured".

    The first line holds the fields of its `identity`; case: parameters in declared order.
    replicate: index of the process; with `card`, the GPU's identifier, the unit of replication; `card` is read off the
    file's environment and not written again. profile: the sweep it came from.
    cost: floor of the forward pass {"bytes_read", "bytes_written", "flops"}.
    tiles: what the kernels ran with, label -> fields of the tile and its "source" (pin, table, rule).
    during: what the machine did while it was timed: "rounds", those "slowed" by heat or power and "thrown" away,
    "reasons", the range of its clocks, and the share of time that a hypervisor took ("steal").
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
    during: Mapping[str, int | float | str] | None = None
    card: str | None = None

    @property
    def case_id(self) -> str:
        return ",".join([f"{name}={value}" for name, value in self.case.items()])

    @property
    def identity(self) -> Identity:
        """What was measured, whatever came of it."""
        return Identity(
            self.operation, self.operation_version, self.implementation, self.case_id, self.dtype, self.pass_,
            self.fft_size, self.cache, self.launch, self.seed,
        )  # fmt: skip

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
        case Measured(measurements, unavailable, tiles, during):
            return Record(
                status="measured",
                measurements=measurements,
                unavailable=dict(unavailable) or None,
                tiles=dict(tiles) or None,
                during=dict(during) or None,
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


RECORD: Mapping[str, Field] = {
    "status": stored.one_of("measured", "skipped", "failed"),
    "operation": stored.NAME,
    "operation_version": stored.COUNT,
    "implementation": stored.NAME,
    "role": stored.one_of("kernel", "baseline", "rival"),
    "case": stored.CASE,
    "dtype": stored.NAME,
    "pass": stored.one_of("forward", "backward", "both"),
    "fft_size": stored.SIZES,
    "cache": stored.NAME,
    "launch": stored.NAME,
    "seed": stored.INTEGER,
    "replicate": stored.COUNT,
    "profile": stored.NAME,
    "recorded_at": stored.MOMENT,
    "measurements": stored.mapping("an object of metrics", lambda found: type(found) is dict),
    "unavailable": stored.mapping("an object of reasons", stored.is_text),
    "reason": Field("text", stored.is_text, required=False),
    "failure": replace(stored.NAME, required=False),
    "requested_bytes": replace(stored.COUNT, required=False),
    "cost": stored.mapping("an object of integers", stored.is_count),
    "tiles": Field("an object of tiles", stored.is_tiles, required=False),
    "during": stored.mapping("an object of numbers and words", stored.is_scalar),
}
"""Every field of an outcome's line besides `schema` and `kind`."""

MEASUREMENT: Mapping[str, Field] = {
    "version": stored.COUNT,
    "unit": stored.NAME,
    "samples": stored.SAMPLES,
}

ENVIRONMENT: Mapping[str, Field] = {
    "machine": stored.NAME,
    "commit": replace(stored.NAME, required=False),
    "dirty": replace(stored.NAME, required=False),
    "source": replace(stored.NAME, required=False),
    "gpu_uuid": replace(stored.NAME, required=False),
}
"""The fields of a file's first line that are used for more than to be shown."""


def read_file(path: Path) -> RecordFile:
    """Read one record file; damaged or newer lines become `damage`, the rest is kept.

    What is not a regular file, or cannot be read, is one damage. Nothing after a second environment line is used,
    because two files that were joined do not say where the second one's records begin.
    """
    try:
        content = stored.regular_file(path).removeprefix(codecs.BOM_UTF8)
    except OSError as error:
        return RecordFile(path, None, (), (Damage(path, 1, f"not read: {error.strerror or error}"),))
    environment: Mapping[str, Any] | None = None
    records: list[Record] = []
    damage: list[Damage] = []
    for number, line in enumerate(content.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            fields = _parse(line)
            if fields["kind"] != "environment":
                records.append(_record(fields, environment))
            elif environment is None:
                environment = _environment(fields)
            else:
                damage.append(Damage(path, number, "a second environment: this line and all below are not used"))
                break
        except (ValueError, KeyError) as error:
            why = f"missing field {error}" if isinstance(error, KeyError) else str(error)
            damage.append(Damage(path, number, why))
    if environment is None:
        damage.insert(0, Damage(path, 1, "no environment line, so its records have no machine or commit"))
    return RecordFile(path, environment, tuple(records), tuple(damage))


def read_environment(path: Path) -> Mapping[str, Any] | None:
    """The first line of a file, without reading the rest; None where `read_file` would find damage in it.

    Raises: OSError (see `fields.regular_file`).
    """
    try:
        fields = _parse(stored.first_line(path).removeprefix(codecs.BOM_UTF8))
        return _environment(fields) if fields["kind"] == "environment" else None
    except (ValueError, KeyError):
        return None


def read_tree(root: Path) -> Iterator[RecordFile]:
    """Every record file below `root` (results/records), in the order of their names."""
    for path in sorted(root.glob("*/*.jsonl")):
        yield read_file(path)


def _parse(line: bytes) -> dict[str, Any]:
    try:
        fields = stored.parsed(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text (byte {error.start + 1}): damaged") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not a whole JSON line ({error.msg} at column {error.colno}): cut off or damaged") from None
    if not isinstance(fields, dict) or type(fields.get("schema")) is not int or fields["schema"] < 1:
        raise ValueError("not a record: it has no schema number")
    if fields["schema"] > SCHEMA:
        raise ValueError(f"schema {fields['schema']} is newer than this spectralbench knows ({SCHEMA}); upgrade it")
    if fields.get("kind") not in ("environment", "outcome"):
        raise ValueError(f"unknown kind {reprlib.repr(fields.get('kind'))}; known: environment, outcome")
    return fields


def _environment(fields: Mapping[str, Any]) -> dict[str, Any]:
    environment = {name: value for name, value in fields.items() if name not in ("schema", "kind")}
    stored.checked(environment, ENVIRONMENT)
    for name, value in environment.items():
        holds = value is None or stored.is_number(value) if name.endswith("_bytes") else stored.is_facts(value)
        if not holds:
            raise ValueError(f"the environment's {reprlib.repr(name)} cannot be {reprlib.repr(value)}")
    return environment


def _record(fields: dict[str, Any], environment: Mapping[str, Any] | None) -> Record:
    stored.checked(fields, RECORD)
    unknown = fields.keys() - RECORD.keys() - {"schema", "kind"}
    if unknown:
        raise ValueError(f"unknown field {reprlib.repr(min(unknown))}")
    found = fields.get("measurements") or {}
    if found and fields["status"] != "measured":
        raise ValueError(f"a {fields['status']} record cannot have measurements")
    for name, measurement in found.items():
        try:
            stored.checked(measurement, MEASUREMENT)
        except (ValueError, KeyError) as error:
            raise ValueError(f"in the metric {name}: {error}") from None
    rest = {
        name: fields[name] for name in RECORD if name in fields and name not in ("pass", "measurements", "fft_size")
    }
    return Record(
        pass_=fields["pass"],
        measurements=tuple(
            Measurement(name, one["version"], one["unit"], tuple(map(float, one["samples"])))
            for name, one in found.items()
        ),
        fft_size=tuple(fields["fft_size"]),
        card=environment.get("gpu_uuid") if environment else None,
        **rest,
    )


def _short(value: float) -> float | int:
    """Bytes and other whole numbers exactly, anything else to six digits, finer than any clock here."""
    return int(value) if float(value).is_integer() else float(f"{value:.6g}")


def _line(fields: Mapping[str, Any]) -> str:
    return json.dumps(fields, allow_nan=False, separators=(",", ":")) + "\n"
