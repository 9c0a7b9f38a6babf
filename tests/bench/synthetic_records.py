"""Synthetic record files, written with the real writer, so that readers are tested on what the sweep would write."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import random
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from spectralbench.outcome import Measurement
from spectralbench.record import Record, environment_line, record_line

START = datetime(2026, 1, 5, 8, tzinfo=UTC)
UNITS = {"device_time": "second", "energy": "joule", "saved_bytes": "byte", "stored_bytes": "byte", "host_peak": "byte"}


def commit_hash(index: int) -> str:
    """A stable 40-digit hash for the commit of that number."""
    return hashlib.sha1(f"commit {index}".encode()).hexdigest()


def environment(machine: str = "cpu-test-2c", commit: int | None = 0, **changes: Any) -> dict[str, Any]:
    """What the first line of a file holds."""
    known = {"machine": machine, "commit": None if commit is None else commit_hash(commit), "dirty": None,
             "python": "3.11.9", "torch": "2.13.0", "triton": "3.7.1", "cpu": "Test CPU", "gpu": None}  # fmt: skip
    return {**known, **changes}


def record(
    metrics: Mapping[str, float | Sequence[float]] | None,
    *,
    operation: str = "masked_multiply",
    implementation: str = "triton",
    role: str = "kernel",
    case: Mapping[str, Any] | None = None,
    day: float = 0.0,
    replicate: int = 0,
    **changes: Any,
) -> Record:
    """A measured record of `metrics` (name -> sample or samples), or with None whatever `changes` say."""
    found = tuple(
        Measurement(name, 1, UNITS.get(name, "1"), tuple(value) if isinstance(value, Sequence) else (value,))
        for name, value in (metrics or {}).items()
    )
    fields: dict[str, Any] = {
        "status": "measured", "operation": operation, "operation_version": 1, "implementation": implementation,
        "role": role, "case": dict(case or {"batch": 2, "compression": 0.5}), "dtype": "float32", "pass_": "forward",
        "fft_size": (32, 32), "cache": "warm", "launch": "eager", "seed": 0, "replicate": replicate,
        "profile": "study", "recorded_at": (START + timedelta(days=day)).isoformat(), "measurements": found,
    }  # fmt: skip
    return Record(**{**fields, **changes})


def write(results: Path, name: str, facts: Mapping[str, Any], records: Sequence[Record]) -> Path:
    """One record file below `results/records/<machine>`."""
    path = results / "records" / str(facts["machine"]) / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(environment_line(facts) + "".join(record_line(found) for found in records), encoding="utf-8")
    return path


def history(
    results: Path, commits: int, rng: random.Random, *, noise: float = 0.01, processes: int = 3, slower: float = 1.0
) -> Path:
    """`commits` files of two implementations; the newest commit's kernel time is multiplied by `slower`."""
    path = results
    for index in range(commits):
        factor = slower if index == commits - 1 else 1.0
        records = []
        for replicate in range(processes):
            for name, role, base in (("triton", "kernel", 1e-3 * factor), ("einsum", "baseline", 3e-3)):
                level = base * (1 + noise * rng.gauss(0, 1))
                samples = [level * (1 + 0.002 * abs(rng.gauss(0, 1))) for _ in range(9)]
                metrics = {"device_time": samples, "saved_bytes": 4096.0, "rounding_error": 1e-7}
                records.append(record(metrics, implementation=name, role=role, day=index, replicate=replicate))
        path = write(results, f"2026-01-{index:02d}-{commit_hash(index)[:8]}", environment(commit=index), records)
    return path


CONV_TIMES = {
    "dft_gemm": ("kernel", 1.0),
    "cufft_triton": ("kernel", 2.4),
    "direct": ("baseline", 0.0),
    "torch_fft": ("baseline", 5.0),
    "direct_lowpass": ("baseline", 9.0),
    "torch_fft_compiled": ("baseline", 4.0),
}


def study(results: Path, rng: random.Random, machine: str = "cpu-test-2c", processes: int = 5) -> None:
    """A realistic study of every operation that a figure shows, with skips and a failure."""
    records = [found for replicate in range(processes) for found in _study(rng, replicate)]
    write(results, f"2026-02-01-{commit_hash(0)[:8]}", environment(machine), records)


def _study(rng: random.Random, replicate: int) -> list[Record]:
    found = _conv(rng, replicate)
    found += _selection(replicate)
    found += _sparse(rng, replicate)
    return found


def _achieved(size: int, compression: float) -> tuple[float, int]:
    columns = size // 2 + 1
    kept = max(1, math.floor(columns * math.sqrt(1 - compression)))
    rows = min(size, 2 * kept - 1)
    return 1 - kept * rows / (columns * size) if compression else 0.0, kept


def _conv(rng: random.Random, replicate: int) -> list[Record]:
    found = []
    for (batch, channels, size, groups), kernel in [
        (shape, k) for shape in ((8, 64, 32, 1), (2, 128, 56, 128)) for k in (1, 3, 5, 7, 11, 15, 21, 31)
    ]:
        for compression in (0.0, 0.25, 0.5, 0.75, 0.9, 0.95):
            for pass_ in ("forward", "both"):
                for name, (role, weight) in CONV_TIMES.items():
                    case = {"batch": batch, "in_channels": channels, "out_channels": channels, "height": size,
                            "width": size, "kernel_size": kernel, "groups": groups, "compression": compression,
                            "grid": "tight", "input": "photo"}  # fmt: skip
                    grid = size + kernel // 2
                    achieved, kept = _achieved(grid, compression)
                    identity: dict[str, Any] = {
                        "operation": "band_limited_conv2d",
                        "implementation": name,
                        "role": role,
                        "case": case,
                        "replicate": replicate,
                        "pass_": pass_,
                        "fft_size": (grid, grid),
                    }
                    if name == "direct" and compression > 0:
                        reason = "direct convolution keeps every coefficient: only legal at compression = 0"
                        found.append(record(None, **identity, status="skipped", reason=reason))
                        continue
                    if name == "cufft_triton":
                        reason = "Triton kernels need a CUDA device here: under the interpreter they are not timed"
                        found.append(record(None, **identity, status="skipped", reason=reason))
                        continue
                    work = kernel**2 * size**2 / 30 if name == "direct" else weight * grid**2 * (1.1 - achieved)
                    level = (
                        2e-8 * batch * channels * work * (2.7 if pass_ == "both" else 1) * rng.lognormvariate(0, 0.03)
                    )
                    metrics: dict[str, Any] = {
                        "device_time": [level * (1 + 0.01 * abs(rng.gauss(0, 1))) for _ in range(5)],
                        "saved_bytes": float(batch * channels * grid * kept * 8 + channels * kernel**2 * 4)
                        * (1 if role == "kernel" else 2.5),
                        "host_peak": 3e8,
                        "rounding_error": 2e-7,
                        "approximation_error": 0.35 * achieved**2 / (1 + kernel / 8),
                        "approximation_error_sym": 0.17 * achieved**2 / (1 + kernel / 8),
                        "achieved_compression": achieved,
                    }
                    found.append(record(metrics, **identity))
    wrong = dataclasses.replace(found[0], implementation="fft_conv_pytorch", role="baseline", status="failed",
                                measurements=(), failure="wrong", reason="rounding error 0.3 over 1e-05")  # fmt: skip
    return [*found, wrong]


def _selection(replicate: int) -> list[Record]:
    found = []
    for source, scale in (("photo", 0.6), ("pink", 0.8), ("white", 1.0)):
        for selection, better in (("lead", 1.0), ("top", 0.5)):
            for step in range(1, 20):
                compression = step / 20
                error = scale * better * compression**1.5
                case = {"height": 32, "width": 32, "selection": selection, "compression": compression, "input": source}
                metrics = {"approximation_error": error, "approximation_error_sym": error / (1 + error),
                           "achieved_compression": compression}  # fmt: skip
                found.append(record(metrics, operation="spectrum_selection", implementation="torch", role="baseline",
                                    case=case, replicate=replicate))  # fmt: skip
    return found


def _sparse(rng: random.Random, replicate: int) -> list[Record]:
    found = []
    cost = {"dense": lambda d: 8.0, "coo": lambda d: 24 * d, "csr": lambda d: 16 * d + 0.3, "index": lambda d: 12 * d,
            "bitmap": lambda d: 8 * d + 0.125}  # fmt: skip
    speed = {"dense": lambda d: 1.0, "coo": lambda d: 0.2 + 6 * d, "csr": lambda d: 0.3 + 4 * d,
             "index": lambda d: 0.15 + 3 * d, "bitmap": lambda d: 0.1 + 1.6 * d}  # fmt: skip
    for source, width in (("photo", 0.35), ("pink", 0.5), ("white", 0.9)):
        for step in range(11):
            beta = 0.5 + step / 10
            density = math.exp(-((beta / width) ** 2) / 2) + 0.004
            cells = 16 * 32 * 32 * 17
            for name in cost:
                role = "kernel" if name == "bitmap" else "baseline"
                shared: dict[str, Any] = {"batch": 1, "channels": 16, "height": 32, "width": 32, "beta": beta}
                case = {**shared, "relative": True, "input": source}
                stored = cells * cost[name](density)
                metrics: dict[str, Any] = {"kept_fraction": density, "stored_bytes": stored, "device_time": 1e-4}
                found.append(record(metrics, operation="threshold_spectrum", implementation=name, role=role,
                                    case=case, replicate=replicate))  # fmt: skip
                case = {"batch": 1, "in_channels": 16, "out_channels": 32, "height": 32, "width": 32, "beta": beta,
                        "input": source}  # fmt: skip
                level = 2e-4 * speed[name](density) * rng.lognormvariate(0, 0.03)
                metrics = {"kept_fraction": density, "stored_bytes": stored, "device_time": level}
                found.append(record(metrics, operation="sparse_multiply", implementation=name, role=role,
                                    case=case, replicate=replicate))  # fmt: skip
    return found
