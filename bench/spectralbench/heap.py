"""Keep freed memory in the process, so that no time depends on where its heap happens to end.

glibc returns free memory at the top of the heap to the system, and the next call faults every page in again. Whether
the buffers of a call lie at the top is chance, settled when a process starts. Seen on two cores: one convolution takes
1.9 ms in some processes and 3.9 ms in others, with 1652 page faults a call; torch.fft 13.2 or 17.8 ms, with 4720.
A training process, whose heap holds more than one layer, rarely gives memory back.
"""

from __future__ import annotations

import ctypes
from functools import cache

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
