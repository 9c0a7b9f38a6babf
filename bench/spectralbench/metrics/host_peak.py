"""Peak host memory of one call over what the process held before it: the kernel's resident-set high-water mark.

The mark (VmHWM) is reset through /proc/self/clear_refs after glibc has returned its free memory (`malloc_trim`), so
that every byte the call needs must be fetched as fresh pages. Unlike torch's own accounting this sees the scratch of
oneDNN and MKL too, which is where implementations differ. It resolves pages (4 KiB), and pages that the allocator could
not return hide as much: a call that needs some MiB is exact to a few percent in a fresh worker process, and too low in
one whose heap is in pieces. Buffers that libraries allocate once and keep were allocated when the
answer was checked, and are not counted.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

from spectralbench.metrics import Metric, Trial
from spectralkernels.errors import Unsupported

REPEATS = 3


def _sample(trial: Trial) -> list[float]:
    if trial.device != "cpu":
        raise Unsupported("CPU only; on a GPU see peak_allocated")
    return [peak_growth(trial.run) for _ in range(REPEATS)]


def peak_growth(run: Callable[[], object]) -> float:
    """Bytes by which the resident memory grows at most during a call. Unsupported where that cannot be asked."""
    gc.collect()
    _return_free_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError as error:
        raise Unsupported(f"the peak of host memory cannot be reset here ({error}); it needs Linux") from error
    before = _status("VmRSS")
    run()
    return float(max(0, _status("VmHWM") - before))


def _return_free_memory() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        raise Unsupported("host_peak needs glibc's malloc_trim, else memory kept by the allocator would hide the peak")
    trim(0)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise Unsupported(f"/proc/self/status has no {field} here")


METRIC = Metric(name="host_peak", unit="byte", version=1, sample=_sample, devices=("cpu",))
