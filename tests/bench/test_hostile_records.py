"""Mutated record files: whatever a line says, the readers end, do not crash, and write nothing outside the results."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import synthetic_records as synthetic
from effort import EFFORT, draws

from spectralbench import alert, choices, history, report
from spectralkernels.ops import load_operations

SECONDS = 60
HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, 10**400, -(10**400), 0.0, -0.5, 1e-320, 1e308, float("inf"),
    float("nan"), "", "x", "../../outside", "/tmp/outside", "a/b", ".", "..", "-rf", "\x00", "\x1b[2J", "\u202e",
    "\ud800", "a|b", "$x_{", "<script>", "`", "%s", "{0}", "\n", "é" * 300, "a" * 100_000, "1e5", "NaN", [], [[]], {},
    {"": {}}, {"../x": 1}, [1, "a"], [0.1] * 3, {"a": {"b": {"c": {"d": {"e": 1}}}}}, "2026-13-01",
    "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59",
)  # fmt: skip
_OUTSIDE: list[tuple[Path, list[str]]] = []


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook cannot be taken away again; it looks only while `confined` says where writing is allowed."""
    if not _OUTSIDE:
        return
    allowed, broken = _OUTSIDE[-1]
    writes = event in ("os.remove", "os.mkdir", "os.rmdir", "os.rename", "os.link", "os.symlink", "os.truncate")
    if event == "open" and isinstance(arguments[2], int):
        writes = bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    if writes and isinstance(arguments[0], str | Path) and not Path(arguments[0]).resolve().is_relative_to(allowed):
        broken.append(f"{event} {arguments[0]}")


sys.addaudithook(_watch)


@contextmanager
def confined(allowed: Path) -> Iterator[None]:
    """Fails on a write outside `allowed`, and on a body that does not end."""

    def late(signum: int, frame: object) -> None:
        raise TimeoutError(f"did not end in {SECONDS} s")

    broken: list[str] = []
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    _OUTSIDE.append((allowed.resolve(), broken))
    try:
        yield
    finally:
        _OUTSIDE.pop()
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    assert not broken, f"written outside {allowed}: {broken}"


def lines() -> list[str]:
    """A small history of what the figures, the alert and the choices look at: an environment and its records."""
    records = []
    for kernel in (3, 5):
        for compression in (0.0, 0.5):
            case = {"batch": 1, "in_channels": 2, "out_channels": 2, "height": 8, "width": 8, "groups": 1,
                    "kernel_size": kernel, "compression": compression, "grid": "tight", "input": "pink"}  # fmt: skip
            for name, role in (("dft_gemm", "kernel"), ("torch_fft", "baseline")):
                metrics = {"device_time": [1e-3, 2e-3], "saved_bytes": 64.0, "approximation_error": compression,
                           "achieved_compression": compression}  # fmt: skip
                shared = {"operation": "band_limited_conv2d", "fft_size": (9, 9), "case": case}
                records.append(synthetic.record(metrics, implementation=name, role=role, **shared))
    for beta in (0.1, 0.5):
        for name in ("dense", "bitmap"):
            case = {"batch": 1, "in_channels": 2, "out_channels": 2, "height": 8, "width": 8, "beta": beta}
            metrics = {"device_time": 1e-3, "stored_bytes": 100.0, "kept_fraction": beta}
            records.append(synthetic.record(metrics, operation="sparse_multiply", implementation=name, case=case))
    records.append(synthetic.record(None, status="skipped", reason="needs CUDA", unavailable={"energy": "no NVML"}))
    records.append(synthetic.record(None, status="failed", failure="wrong", reason="0.3 over 1e-5", implementation="x"))
    facts = synthetic.environment(ram_bytes=1 << 34, flags={"tf32": False})
    return [synthetic.environment_line(facts), *map(synthetic.record_line, records)]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for name, item in items for found in ((*path, name), *places(item, (*path, name)))]


def another_field(line: str, rng: random.Random) -> bytes:
    """One value replaced, removed or kept under another name."""
    fields = json.loads(line)
    *path, name = rng.choice(places(fields))
    inner = fields
    for step in path:
        inner = inner[step]
    match rng.randrange(4):
        case 0 if isinstance(inner, dict):
            del inner[name]
        case 1 if isinstance(inner, dict):
            inner[rng.choice(["", "../../up", "subject", "device_time", "\ud800", "a=b", "input"])] = inner.pop(name)
        case _:
            inner[name] = rng.choice(HOSTILE)
    return json.dumps(fields).encode()


def another_text(line: str, rng: random.Random) -> bytes:
    """Bytes cut off, exchanged or put in between."""
    content = bytearray(line.rstrip("\n").encode())
    at = rng.randrange(len(content))
    match rng.randrange(4):
        case 0:
            del content[at:]
        case 1:
            content[at] = rng.randrange(256)
        case 2:
            content[at:at] = rng.choice([b"[" * 5000, b"9" * 5000, b"\n", b"\x00", b"\xef\xbb\xbf", b'"', b"}"])
        case _:
            del content[at : at + rng.randrange(1, 20)]
    return bytes(content)


def mutated(results: Path, rng: random.Random) -> str:
    """Write the history with one to three mutated lines, sometimes beside what is no file; return what was done."""
    folder = results / "records" / "cpu-test-2c"
    shutil.rmtree(results, ignore_errors=True)
    folder.mkdir(parents=True)
    content = [line.rstrip("\n").encode() for line in lines()]
    done = []
    for _ in range(rng.randrange(1, 4)):
        # One mutation in four goes to the environment, which all records depend on.
        index = 0 if rng.random() < 0.25 else rng.randrange(len(content))
        mutate: Callable[[str, random.Random], bytes] = rng.choice([another_field, another_field, another_text])
        try:
            content[index] = mutate(content[index].decode(), rng)
        except (ValueError, IndexError, RecursionError):
            continue  # it was mutated beyond reading before
        done.append(content[index][:2000].decode(errors="replace"))
    (folder / "a.jsonl").write_bytes(rng.choice([b"", b"", b"", b"\xef\xbb\xbf"]) + b"\n".join(content) + b"\n")
    match rng.randrange(8):
        case 0:
            os.mkfifo(folder / "b.jsonl")
        case 1:
            (folder / "b.jsonl").symlink_to("b.jsonl")
        case 2:
            (results / "records" / "up").symlink_to("..")
        case 3:
            shutil.copy(folder / "a.jsonl", folder / "\x1b[31m`b.jsonl")
    return "\n".join(done)


def read_everything(results: Path, *, figures: bool, auto: bool) -> None:
    """What the reading verbs do, but for the drawing of a page."""
    loaded = history.load(results)
    page = report.write(loaded, results).read_text()
    findings = alert.judge(loaded)
    json.loads(alert.to_json(findings))
    assert not set("\x1b\x00\x9b") & set(page + alert.to_markdown(findings))
    if figures:
        from spectralbench.plot.figures import error_vs_compression as error
        from spectralbench.plot.figures import kept_vs_beta, kernel_size_sweep, nominal_vs_achieved, pareto
        from spectralbench.plot.frame import CONVOLUTIONS, measurements, operation, settings

        now = history.current(loaded)
        for machine in now.machines:
            frame = measurements(history.only_machine(now, machine))
            needed = ("device_time", "kernel_size", "compression")
            settings(operation(frame, CONVOLUTIONS, needed), kernel_size_sweep.ALONG, ("kernel_size",))
            settings(operation(frame, CONVOLUTIONS, needed), pareto.ALONG, ("implementation",))
            settings(operation(frame, CONVOLUTIONS, (*error.NEEDED, "kernel_size")), error.ALONG, ("compression",))
            settings(operation(frame, ("sparse_multiply",), ("kept_fraction", "beta")), kept_vs_beta.ALONG, ("beta",))
            operation(frame, nominal_vs_achieved.OPERATIONS, ("achieved_compression", "compression"))
    if auto:
        operations = {name: load_operations()[name] for name in ("band_limited_conv2d", "sparse_multiply")}
        choices.as_markdown({"m": list(choices.judged_choices(loaded, "cpu-test-2c", operations, "cpu"))}, "m")


def test_mutated_files_crash_hang_and_escape_nothing(tmp_path: Path, seed: int) -> None:
    pytest.importorskip("seaborn", reason="figures are an optional extra")
    synthetic.write(tmp_path, "a", synthetic.environment(), [synthetic.record({"device_time": 1.0})])
    read_everything(tmp_path, figures=True, auto=True)  # whatever is imported, and cached on disk, is now
    for draw in draws(1250 if EFFORT > 1 else 200 if EFFORT else 40):
        rng = random.Random(f"{seed} {draw}")
        results = tmp_path / "deep" / "down" / "results"
        done = mutated(results, rng)
        try:
            with confined(results):
                read_everything(results, figures=draw % 10 == 0, auto=draw % 10 == 5)
        except Exception as error:
            raise AssertionError(f"draw {draw} of SPECTRAL_SEED={seed}: {error!r} after\n{done}") from error


@pytest.mark.parametrize("name", ["../../../outside", "/tmp/outside"])
def test_the_watch_sees_a_write_outside(tmp_path: Path, name: str) -> None:
    """The planted fault: a page that takes its name from a record."""
    results = tmp_path / "a" / "b" / "results"
    results.mkdir(parents=True)
    with pytest.raises(AssertionError, match="written outside"), confined(results):
        target = results / f"{name}-{tmp_path.name}.md" if name.startswith("..") else tmp_path / "absolute.md"
        target.write_text("x")
