"""Peak device memory in use as the driver sees it (NVML), over what was in use before the calls.

It contains what the allocator does not know: cuFFT plans, library handles, other processes that come and go.
"""

from __future__ import annotations

from spectralbench.identity import SOFTWARE
from spectralbench.metrics import Axis, Metric, Rule, Trial, Unavailable


def _sample(trial: Trial) -> list[float]:
    from spectralbench import nvml

    if trial.device != "cuda":
        raise Unavailable("no NVML: it counts GPU memory, and this ran on a CPU")
    return [nvml.peak_over_baseline(trial.run, nvml.Device.current().used_bytes)]


METRIC = Metric(
    name="nvml_memory",
    unit="byte",
    version=1,
    sample=_sample,
    rule=Rule(0.05),
    moved_by=(*SOFTWARE, "driver", "gpu_class"),
    axis=Axis("peak of device memory in use", "log"),
    devices=("cuda",),
    rented="driver",
)
