"""Relative L2 error of the last timed answer against the float64 reference of the same operation."""

from __future__ import annotations

from spectralbench.gate import relative_error
from spectralbench.metrics import Metric, Trial


def _sample(trial: Trial) -> list[float]:
    return [relative_error(trial.dense, trial.expected)]


METRIC = Metric(name="rounding_error", unit="1", version=1, sample=_sample)
