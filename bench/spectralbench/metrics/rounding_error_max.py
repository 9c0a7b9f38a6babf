"""Largest absolute error of the last timed answer, over the largest absolute value of the float64 reference."""

from __future__ import annotations

from spectralbench.identity import ARITHMETIC
from spectralbench.metrics import Axis, Metric, Rule, Trial


def _sample(trial: Trial) -> list[float]:
    from spectralbench.gate import largest_error

    return [largest_error(trial.dense, trial.expected)]


METRIC = Metric(
    name="rounding_error_max",
    unit="1",
    version=1,
    sample=_sample,
    rule=Rule(0.05),
    moved_by=ARITHMETIC,
    axis=Axis("largest rounding error", "log"),
)
