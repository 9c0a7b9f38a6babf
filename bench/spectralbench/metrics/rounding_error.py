"""Relative L2 error of the last timed answer against the float64 reference of the same operation."""

from __future__ import annotations

from spectralbench.identity import ARITHMETIC
from spectralbench.metrics import Axis, Column, Metric, Rule, Trial


def _sample(trial: Trial) -> list[float]:
    from spectralbench.gate import relative_error

    return [relative_error(trial.dense, trial.expected)]


METRIC = Metric(
    name="rounding_error",
    unit="1",
    version=1,
    sample=_sample,
    rule=Rule(0.20, error=True),
    moved_by=ARITHMETIC,
    axis=Axis("rounding error", "log"),
    column=Column("rounding error", 3),
    asv=lambda operation: True,
    rented="timed",
)
