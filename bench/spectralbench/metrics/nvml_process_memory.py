"""Peak device memory of this process as the driver sees it (NVML), over what it used before the calls."""

from __future__ import annotations

from spectralbench.identity import SOFTWARE
from spectralbench.metrics import Axis, Metric, Rule, Trial, Unavailable


def _sample(trial: Trial) -> list[float]:
    from spectralbench import nvml

    if trial.device != "cuda":
        raise Unavailable("no NVML: it counts GPU memory, and this ran on a CPU")
    return [nvml.peak_over_baseline(trial.run, nvml.Device.current().process_bytes)]


METRIC = Metric(
    name="nvml_process_memory",
    unit="byte",
    version=1,
    sample=_sample,
    rule=Rule(0.05),
    moved_by=(*SOFTWARE, "driver", "gpu_class"),
    axis=Axis("peak of device memory of the process", "log"),
    devices=("cuda",),
    rented="driver",
)
