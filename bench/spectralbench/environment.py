"""The machine and the software under a measurement: a stable slug, and the facts that mark segments of a history.

Nothing here is part of a series' key except `machine_name`; which facts bound a segment is said in `identity`. Works
without a GPU and without git: what cannot be found is None, with the reason where it is not obvious.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import torch

from spectralbench import checkout, nvml
from spectralbench.heap import keep_freed_memory
from spectralkernels.errors import RangeError, Unsupported

_MODEL = ("vendor_id", "cpu family", "model", "stepping", "CPU implementer", "CPU part", "CPU variant")
_VECTOR = re.compile(r"sse|avx|fma|amx|f16c|bmi|asimd|sve|sme(\d|_|$)|fp(hp)?$|bf16|i8mm")
_SLUG = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_NOISE = re.compile(r"\((r|tm|c)\)|@.*|\b(amd|intel|processor|cpu|core|with radeon.*|\d+-core)\b", re.IGNORECASE)


def device_kind() -> str:
    """ "cuda" where torch finds a usable device, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def machine_name() -> str:
    """A stable slug of this machine, as `nvidia-h200` or `cpu-epyc-2c-3f0a`; SPECTRALBENCH_MACHINE overrides it.

    Raises: RangeError if that variable is not a slug of lower-case letters, digits and single hyphens.
    """
    named = os.environ.get("SPECTRALBENCH_MACHINE")
    if named:
        if not _SLUG.fullmatch(named):
            raise RangeError(
                f"SPECTRALBENCH_MACHINE must be lower-case letters, digits and single hyphens, "
                f"for example {_slug(named) or 'lab-a100'!r}, got {named!r}"
            )
        return named
    if torch.cuda.is_available():
        return _slug(torch.cuda.get_device_name())
    return cpu_machine()


def names_here() -> tuple[str, ...]:
    """The names under which results of this machine are kept: its own, and its CPU's where a GPU gave it its name.

    Raises: RangeError as `machine_name`.
    """
    own = machine_name()
    return (own,) if os.environ.get("SPECTRALBENCH_MACHINE") else tuple(dict.fromkeys((own, cpu_machine())))


def cpu_machine() -> str:
    """The slug of this machine's CPU, whatever part of its cores this process may use."""
    facts = _cpu_facts()
    return cpu_slug(str(facts["cpu"]), os.cpu_count() or 1, f"{facts['cpu_model']} {facts['cpu_flags']}")


def cpu_slug(name: str, cores: int, traits: str) -> str:
    """`cpu-<model>-<cores>c-<hash4>` from a model name, without vendor, marks and clock rate.

    traits: what tells models of one name apart, as virtual machines name only the vendor's line; it becomes the hash.
    """
    digest = hashlib.sha256(traits.encode()).hexdigest()[:4]
    return "-".join(part for part in ("cpu", _slug(_NOISE.sub(" ", name)), f"{cores}c", digest) if part)


@contextmanager
def measuring_flags() -> Iterator[None]:
    """The process-wide switches under which everything is measured, restored afterwards but for the heap.

    TF32 off, so that float32 means float32 in cuDNN and in matrix products; cudnn.benchmark on, so that the baseline
    uses the fastest algorithm it has; nothing forced to be deterministic; freed memory stays (see `heap`).
    """
    keep_freed_memory()
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def capture(code: Path | None = None) -> dict[str, object]:
    """Everything about machine and software that may explain a number, as JSON-ready values.

    code: a file or folder of the git checkout whose commit is recorded (default: the working directory). `commit` is
    None where there is none, and `no_commit` says why; `dirty` is None or eight hex digits of what differs from the
    commit; `shallow` is there where the clone lacks older commits.
    """
    state = checkout.state(code or Path.cwd())
    facts: dict[str, object] = {
        "machine": machine_name(),
        "os": f"{platform.system()} {platform.release()}",
        **_cpu_facts(),
        "cores": usable_cores(),
        "ram_bytes": _ram_bytes(),
        "cpu_clock_hz": _cpu_clock_hz(),
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "triton": _version("triton"),
        "numpy": _version("numpy"),
        **_torch_facts(),
        **_gpu_facts(),
        "commit": state.commit,
        "dirty": state.dirty,
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if state.why is not None:
        facts["no_commit"] = state.why
    if state.shallow:
        facts["shallow"] = True
    return facts


def _torch_facts() -> dict[str, object]:
    build = torch.__config__.show()
    with measuring_flags():
        flags = {
            "matmul_precision": torch.get_float32_matmul_precision(),
            "cudnn_tf32": torch.backends.cudnn.allow_tf32,
            "cudnn_benchmark": torch.backends.cudnn.benchmark,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
        }
    return {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.version.cuda else None,
        "threads": torch.get_num_threads(),
        "heap": keep_freed_memory(),
        "blas": _found(r"BLAS_INFO=(\w+)", build),
        "mkl": _found(r"Math Kernel Library Version (\S+?)-", build),
        "onednn": _found(r"MKL-DNN v(\S+)", build),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "flags": flags,
    }


def _gpu_facts() -> dict[str, object]:
    empty: dict[str, object] = {"gpu": None, "gpu_uuid": None, "driver": None}
    if not torch.cuda.is_available():
        return empty
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    facts: dict[str, object] = {
        "gpu": properties.name,
        # A slice of a card says so in its name; NVML, where there is one, knows.
        "gpu_uuid": f"{'MIG' if ' MIG ' in properties.name else 'GPU'}-{properties.uuid}"
        if hasattr(properties, "uuid")
        else None,
        "gpu_capability": f"{properties.major}.{properties.minor}",
        "gpu_memory_bytes": properties.total_memory,
        "gpu_l2_bytes": properties.L2_cache_size,
    }
    try:
        device = nvml.Device.current()
        return {**empty, **facts, **device.facts(), "gpu_uuid": device.name}
    except Unsupported as error:
        return {**empty, **facts, "no_driver_facts": str(error)}


def usable_cores() -> int:
    """The cores that this process may run on, which `taskset` and containers make fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_facts() -> dict[str, object]:
    """The name, and what tells CPUs of one name apart: the numbers of its model, and its vector instructions."""
    text = _cpuinfo()
    numbers = [_found(rf"(?m)^{name}\s*:\s*(\S+)$", text) for name in _MODEL]
    flags = (_found(r"(?m)^(?:flags|Features)\s*:\s*(.+)$", text) or "").split()
    return {
        "cpu": _found(r"(?m)^model name\s*:\s*(.+)$", text) or platform.processor() or platform.machine(),
        "cpu_model": " ".join(number for number in numbers if number) or None,
        "cpu_flags": " ".join(sorted(flag for flag in flags if _VECTOR.match(flag))) or None,
    }


def _cpu_clock_hz() -> float | None:
    megahertz = _found(r"(?m)^cpu MHz\s*:\s*([\d.]+)$", _cpuinfo())
    return float(megahertz) * 1e6 if megahertz else None


def _cpuinfo() -> str:
    """The kernel's description of the CPUs; empty where there is none."""
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _ram_bytes() -> int | None:
    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _found(pattern: str, text: str) -> str | None:
    match = re.search(pattern, text)
    return match[1].strip() if match else None


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
