"""Seconds per call of the measured pass, by the clock of the device.

The core takes these samples, because implementations are timed interleaved; this file names them.
"""

from __future__ import annotations

from spectralbench.metrics import Metric, Trial
from spectralkernels.errors import Unsupported


def _sample(trial: Trial) -> tuple[float, ...]:
    if not trial.times:
        raise Unsupported("it was not timed")
    return trial.times


METRIC = Metric(name="device_time", unit="second", version=1, sample=_sample)
