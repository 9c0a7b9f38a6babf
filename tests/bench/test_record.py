"""Records survive the file and back, and nothing that is damaged passes unnoticed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from spectralbench.outcome import Failed, Measured, Measurement, Outcome, Skipped
from spectralbench.record import SCHEMA, Record, environment_line, from_outcome, read_file, read_tree, record_line

ENVIRONMENT = {"machine": "cpu-test-2c", "commit": "1234567890", "dirty": None, "torch": "2.13.0"}


def record(outcome: Outcome, **changes: object) -> Record:
    identity = {
        "operation": "masked_multiply",
        "operation_version": 2,
        "implementation": "einsum",
        "role": "baseline",
        "case": {"size": 7, "compression": 0.5, "grid": "tight", "exact": True},
        "dtype": "float32",
        "pass_": "forward",
        "fft_size": (7, 9),
        "cache": "warm",
        "launch": "eager",
        "seed": 3,
        "replicate": 1,
        "profile": "smoke",
        "recorded_at": "2026-11-20T10:00:00.000+00:00",
        "cost": {"bytes_read": 8, "bytes_written": 8, "flops": 2},
    }
    return from_outcome(outcome, **{**identity, **changes})


MEASURED = Measured((Measurement("device_time", 1, "second", (1e-3, 2e-3)),), (("nvml_memory", "no NVML"),))
OUTCOMES = [MEASURED, Skipped("needs CUDA"), Failed("oom", "too big", 4096), Failed("crash", "SIGSEGV")]


@pytest.mark.parametrize("outcome", OUTCOMES, ids=["measured", "skipped", "oom", "crash"])
def test_a_record_reads_back_as_it_was_written(tmp_path: Path, outcome: Outcome) -> None:
    written = record(outcome)
    path = tmp_path / "a.jsonl"
    path.write_text(environment_line(ENVIRONMENT) + record_line(written))
    file = read_file(path)
    assert file.damage == ()
    assert file.environment == ENVIRONMENT
    assert file.records == (written,)
    assert file.records[0].case_id == "size=7,compression=0.5,grid=tight,exact=True"


def test_a_metric_that_was_not_taken_is_none() -> None:
    assert record(MEASURED).metric("saved_bytes") is None
    assert record(MEASURED).metric("device_time") == MEASURED.measurements[0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_not_a_number_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        record_line(record(Measured((Measurement("device_time", 1, "second", (value,)),))))


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('{"schema":1,"kind":"outcome","stat', "cut off or damaged"),
        ("[1, 2]", "no schema number"),
        (json.dumps({"schema": SCHEMA + 1, "kind": "outcome"}), "newer than this spectralbench knows"),
        (json.dumps({"schema": SCHEMA, "kind": "poem"}), "unknown kind 'poem'"),
        (json.dumps({"schema": SCHEMA, "kind": "outcome", "status": "measured"}), "missing field 'pass'"),
        ("\x00\x00\x00", "cut off or damaged"),
        (json.dumps({"schema": "1", "kind": "outcome"}), "no schema number"),
    ],
    ids=["cut", "list", "newer", "kind", "field", "zeros", "text-schema"],
)
def test_a_damaged_line_is_named_and_the_rest_is_read(tmp_path: Path, line: str, why: str) -> None:
    path = tmp_path / "a.jsonl"
    good = record_line(record(MEASURED))
    path.write_text(environment_line(ENVIRONMENT) + good + line + "\n" + good)
    file = read_file(path)
    assert len(file.records) == 2
    (damage,) = file.damage
    assert damage.line == 3
    assert str(damage).startswith(f"{path}:3: ")
    assert why in damage.why


def test_a_file_without_an_environment_says_so(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(record_line(record(MEASURED)))
    file = read_file(path)
    assert file.environment is None
    assert len(file.records) == 1
    assert "no environment line" in file.damage[0].why


def test_an_empty_line_is_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(environment_line(ENVIRONMENT) + "\n" + record_line(record(MEASURED)))
    assert read_file(path).damage == ()


def test_a_tree_is_read_machine_by_machine(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "a/1.jsonl", "b/1.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(environment_line(ENVIRONMENT))
    assert [str(file.path.relative_to(tmp_path)) for file in read_tree(tmp_path)] == [
        "a/1.jsonl",
        "b/1.jsonl",
        "b/2.jsonl",
    ]
