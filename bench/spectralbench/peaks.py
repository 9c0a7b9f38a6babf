"""What a machine reaches at most, stored beside its records for those who rate its times (no torch).

results/ceilings/<machine>.json     {"bytes_per_second", "flops_per_second", "threads", "measured_at"}
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Peak:
    """Of a large copy, reads plus writes, and of a large float32 matrix product, with so many threads."""

    bytes_per_second: float
    flops_per_second: float
    threads: int
    measured_at: str


def write(results: Path, machine: str, peak: Peak) -> Path:
    """Store the peak of a machine and return the file."""
    path = _path(results, machine)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(peak), indent=1) + "\n", encoding="utf-8")
    return path


def read(results: Path, machine: str) -> Peak | None:
    """None where it was never measured. Raises: ValueError naming the file if it is not what `write` writes."""
    path = _path(results, machine)
    if not path.is_file():
        return None
    try:
        found = Peak(**json.loads(path.read_text(encoding="utf-8")))
        if not all(0 < float(rate) < math.inf for rate in (found.bytes_per_second, found.flops_per_second)):
            raise ValueError("a rate is a number above 0")
    except (ValueError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged ({error}); write it again: `spectralbench machine --ceilings`") from None
    return found


def _path(results: Path, machine: str) -> Path:
    return results / "ceilings" / f"{machine}.json"
