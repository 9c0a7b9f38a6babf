"""Peak device memory of this process as the driver sees it (NVML), over what it used before the calls."""

from __future__ import annotations

from spectralbench import nvml
from spectralbench.metrics import Metric, Trial
from spectralkernels.errors import Unsupported


def _sample(trial: Trial) -> list[float]:
    if trial.device != "cuda":
        raise Unsupported("no NVML: it counts GPU memory, and this ran on a CPU")
    return [nvml.peak_over_baseline(trial.run, nvml.Device.current().process_bytes)]


METRIC = Metric(name="nvml_process_memory", unit="byte", version=1, sample=_sample, devices=("cuda",))
