"""Peak host memory of one call over what the process held before it: the kernel's resident-set high-water mark.

The mark (VmHWM) is reset through /proc/self/clear_refs after glibc has returned its free memory (`malloc_trim`), so
that every byte the call needs must be fetched as fresh pages. Unlike torch's own accounting this sees the scratch of
oneDNN and MKL too, which is where implementations differ. It resolves pages (4 KiB), and pages that the allocator could
not return hide as much: a call that needs some MiB is exact to a few percent in a fresh worker process, and too low in
one whose heap is in pieces. Buffers that libraries allocate once and keep were allocated when the
answer was checked, and are not counted.
"""

from __future__ import annotations

from spectralbench.identity import ARITHMETIC
from spectralbench.metrics import Axis, Column, Metric, Rule, Trial, Unavailable

REPEATS = 3


def _sample(trial: Trial) -> list[float]:
    if trial.device != "cpu":
        raise Unavailable("CPU only; on a GPU see peak_allocated")
    from spectralbench.heap import peak_growth

    return [peak_growth(trial.run) for _ in range(REPEATS)]


METRIC = Metric(
    name="host_peak",
    unit="byte",
    version=1,
    sample=_sample,
    rule=Rule(0.10),
    moved_by=(*ARITHMETIC, "heap", "os", "python"),
    axis=Axis("peak of host memory", "log"),
    column=Column("peak memory", 2),
    devices=("cpu",),
    rented="allocator",
)
