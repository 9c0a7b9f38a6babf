"""Seconds per call of the measured pass, by the clock of the device.

The core takes these samples, because implementations are timed interleaved; this file names them.
"""

from __future__ import annotations

from spectralbench.identity import NAMES
from spectralbench.metrics import Axis, Metric, Rule, Trial, Unavailable


def _sample(trial: Trial) -> tuple[float, ...]:
    if not trial.times:
        raise Unavailable("it was not timed")
    return trial.times


METRIC = Metric(
    name="device_time",
    unit="second",
    version=1,
    sample=_sample,
    rule=Rule(0.03, host=True),
    moved_by=NAMES,
    axis=Axis("time per call", "log"),
    per_process=True,
    asv=lambda operation: True,
    rented="timed",
)
