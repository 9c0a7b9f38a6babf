"""Records survive the file and back, and nothing that is damaged passes unnoticed."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from pathlib import Path
from typing import Any

import pytest

from spectralbench.outcome import Failed, Measured, Measurement, Outcome, Skipped
from spectralbench.record import (
    RECORD,
    SCHEMA,
    Record,
    environment_line,
    from_outcome,
    read_file,
    read_tree,
    record_line,
)

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
        (json.dumps({"schema": SCHEMA, "kind": "outcome", "status": "measured"}), "missing field 'operation'"),
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


def changed(line: str, path: tuple[str, ...], value: Any) -> str:
    """The line with another value at one place."""
    fields = json.loads(line)
    inner = fields
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    return json.dumps(fields) + "\n"


BAD_FIELDS: list[tuple[tuple[str, ...], Any]] = [
    (("operation",), "../../outside"), (("operation",), ".hidden"), (("operation",), ["masked_multiply"]),
    (("operation",), ""), (("operation",), "a" * 101), (("operation",), "a\nb"), (("implementation",), {}),
    (("implementation",), "\x1b[31mred"), (("operation_version",), "2"), (("operation_version",), True),
    (("operation_version",), 10**400), (("status",), "won"), (("status",), ["measured"]), (("role",), None),
    (("case",), [1]), (("case",), {"size": [1]}), (("case",), {"size": 10**400}), (("case",), {"../": 1}),
    (("case",), {"size": math.inf}), (("case",), {"input": "a,size=1"}), (("case",), {"input": "\x1b]0;title\x07"}),
    (("dtype",), "float/32"), (("pass",), "sideways"), (("fft_size",), 7), (("fft_size",), [0]), (("seed",), 0.5),
    (("replicate",), -1), (("recorded_at",), "yesterday"), (("recorded_at",), "0001-01-01T00:00:00+14:00"),
    (("recorded_at",), 7), (("reason",), 7), (("failure",), "<script>"), (("unavailable",), {"nvml_memory": 1}),
    (("tiles",), {"a": 1}), (("cost",), {"flops": 1e999}), (("surprise",), 1), (("measurements",), [1]),
    (("measurements", "device_time"), 1), (("measurements", "device_time", "version"), None),
    (("measurements", "device_time", "unit"), "s|econd"), (("measurements", "device_time", "samples"), []),
    (("measurements", "device_time", "samples"), ["1"]), (("measurements", "device_time", "samples"), [True]),
    (("measurements", "device_time", "samples"), [1e-320]), (("measurements", "device_time", "samples"), [10**400]),
]  # fmt: skip


@pytest.mark.parametrize(("place", "value"), BAD_FIELDS, ids=lambda value: str(value)[:30])
def test_a_field_of_another_kind_is_damage_that_names_it(tmp_path: Path, place: tuple[str, ...], value: Any) -> None:
    path = tmp_path / "a.jsonl"
    good = record_line(record(MEASURED))
    path.write_text(environment_line(ENVIRONMENT) + changed(good, place, value) + good)
    file = read_file(path)
    assert len(file.records) == 1
    (damage,) = file.damage
    assert damage.line == 2
    assert place[-1] in damage.why or "Infinity is not a number" in damage.why
    assert len(damage.why) < 300, "a hostile value does not flood the message"


@pytest.mark.parametrize(
    ("name", "value"),
    [("machine", "../.."), ("machine", None), ("commit", 7), ("dirty", "a/b"), ("ram_bytes", "many"),
     ("flags", {"a": {"b": {"c": {"d": 1}}}})],
)  # fmt: skip
def test_an_environment_of_another_kind_is_damage(tmp_path: Path, name: str, value: Any) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(environment_line({**ENVIRONMENT, name: value}) + record_line(record(MEASURED)))
    file = read_file(path)
    assert file.environment is None
    assert any(damage.line == 1 and name in damage.why for damage in file.damage)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"[" * 100_000, "nested too deeply"),
        (b'{"schema": ' + b"9" * 5000 + b"}", "limit"),
        (b'{"schema":1,"kind":"outcome","reason":"\\ud800"}', "surrogates not allowed"),
        (b"\xff\xfe\x00", "not UTF-8 text"),
        (b'{"schema":true,"kind":"outcome"}', "no schema number"),
        (b'{"schema":-1,"kind":"outcome"}', "no schema number"),
    ],
    ids=["deep", "digits", "surrogate", "utf-16", "bool", "negative"],
)
def test_text_that_no_record_has_is_damage(tmp_path: Path, line: bytes, why: str) -> None:
    path = tmp_path / "a.jsonl"
    good = record_line(record(MEASURED)).encode()
    path.write_bytes(environment_line(ENVIRONMENT).encode() + line + b"\n" + good)
    file = read_file(path)
    assert len(file.records) == 1
    assert [(damage.line, why in damage.why) for damage in file.damage] == [(2, True)]


def test_a_byte_order_mark_and_windows_line_ends_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    text = environment_line(ENVIRONMENT) + record_line(record(MEASURED))
    path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert (read_file(path).damage, len(read_file(path).records)) == ((), 1)


def test_two_files_that_were_joined_are_not_one(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    good = record_line(record(MEASURED))
    path.write_text(environment_line(ENVIRONMENT) + good + environment_line({**ENVIRONMENT, "commit": "fe"}) + good)
    file = read_file(path)
    assert (len(file.records), file.environment) == (1, ENVIRONMENT)
    assert [(damage.line, damage.why[:20]) for damage in file.damage] == [(3, "a second environment")]


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    os.mkfifo(folder / "fifo.jsonl")
    (folder / "folder.jsonl").mkdir()
    (folder / "loop.jsonl").symlink_to("loop.jsonl")
    (folder / "device.jsonl").symlink_to("/dev/zero")
    (folder / "sparse.jsonl").touch()
    os.truncate(folder / "sparse.jsonl", 1 << 40)
    (tmp_path / "loop").symlink_to("loop")
    files = list(read_tree(tmp_path))
    assert [file.path.stem for file in files] == ["device", "fifo", "folder", "loop", "sparse"]
    assert all(file.records == () and len(file.damage) == 1 for file in files)
    assert all("not read: " in str(file.damage[0]) for file in files)


def test_every_field_of_a_record_is_checked() -> None:
    written = {field.name for field in dataclasses.fields(Record)} - {"pass_", "card"} | {"pass"}
    assert written == RECORD.keys()
