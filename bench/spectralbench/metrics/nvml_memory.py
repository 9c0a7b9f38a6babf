"""Peak device memory in use as the driver sees it (NVML), over what was in use before the calls.

It contains what the allocator does not know: cuFFT plans, library handles, other processes that come and go.
"""

from __future__ import annotations

from spectralbench import nvml
from spectralbench.metrics import Metric, Trial
from spectralkernels.errors import Unsupported


def _sample(trial: Trial) -> list[float]:
    if trial.device != "cuda":
        raise Unsupported("no NVML: it counts GPU memory, and this ran on a CPU")
    return [nvml.peak_over_baseline(trial.run, nvml.Device.current().used_bytes)]


METRIC = Metric(name="nvml_memory", unit="byte", version=1, sample=_sample, devices=("cuda",))
