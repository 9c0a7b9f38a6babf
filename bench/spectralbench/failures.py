"""What an exception of an implementation is recorded as."""

from __future__ import annotations

import re

import torch

from spectralbench.outcome import Failed


def failure(error: Exception) -> Failed:
    """The typed failure of an exception: out of memory, with the bytes asked for where it tells, or an error."""
    text = str(error).strip()
    message = f"{type(error).__name__}: {text}" if text else type(error).__name__
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in text:
        return Failed("oom", message, requested_bytes(text))
    return Failed("error", message)


def requested_bytes(message: str) -> int | None:
    """The size in "Tried to allocate 20.00 GiB", "you tried to allocate 40000 bytes" and their like, or None."""
    found = re.search(r"(?:tried|unable) to allocate ([\d.]+) ?(bytes|[KMGTP]iB)", message, re.IGNORECASE)
    if found is None:
        return None
    return round(float(found[1]) * 1024 ** "BKMGTP".index(found[2][0].upper()))
