"""The heap of this process: how much a call makes it grow, and freed memory kept, so that times do not depend on it.

glibc returns free memory at the top of the heap to the system, and the next call faults every page in again. Whether
the buffers of a call lie at the top is chance, settled when a process starts. Seen on two cores: one convolution takes
1.9 ms in some processes and 3.9 ms in others, with 1652 page faults a call; torch.fft 13.2 or 17.8 ms, with 4720.
A training process, whose heap holds more than one layer, rarely gives memory back.
"""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from functools import cache
from pathlib import Path

from spectralbench.metrics import Unavailable

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of <malloc.h>
LARGEST_KEPT = 32 << 20
"""Bytes; glibc maps what is larger anew at every allocation, whatever it is told."""


@cache
def keep_freed_memory() -> str:
    """Tell the C library to keep what is freed, for the rest of the process.

    Returns: "kept", or "default" where the C library is another than glibc and keeps its own rule.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return "default"
    done = [library.mallopt(_TRIM_THRESHOLD, 2**31 - 1), library.mallopt(_MMAP_THRESHOLD, LARGEST_KEPT)]
    return "kept" if all(done) else "default"


def peak_growth(run: Callable[[], object]) -> float:
    """Bytes by which the resident memory grows at most during a call. Unavailable where that cannot be asked."""
    gc.collect()
    _return_free_memory()
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError as error:
        raise Unavailable(f"the peak of host memory cannot be reset here ({error}); it needs Linux") from error
    before = _status("VmRSS")
    run()
    return float(max(0, _status("VmHWM") - before))


def _return_free_memory() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None:
        raise Unavailable("host_peak needs glibc's malloc_trim, else memory kept by the allocator would hide the peak")
    trim(0)


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise Unavailable(f"/proc/self/status has no {field} here")
