"""Largest absolute error of the last timed answer, over the largest absolute value of the float64 reference."""

from __future__ import annotations

from spectralbench.gate import largest_error
from spectralbench.metrics import Metric, Trial


def _sample(trial: Trial) -> list[float]:
    return [largest_error(trial.dense, trial.expected)]


METRIC = Metric(name="rounding_error_max", unit="1", version=1, sample=_sample)
