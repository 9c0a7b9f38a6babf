"""Relative L2 error of the exact operation (its float64 reference) against the uncompressed answer.

    ||reference - ideal|| / ||ideal||

It is a property of the case, equal for all implementations, and never a failure. For a rival it is that of its own
answer: 0 where that is the uncompressed one.
"""

from __future__ import annotations

import math

from spectralbench.metrics import Axis, Column, Metric, Rule, Trial, Unavailable


def _sample(trial: Trial) -> list[float]:
    from spectralbench.gate import relative_error

    ideal = trial.ideal()
    if ideal is None:
        raise Unavailable(f"{trial.operation.name} loses nothing, so it has no uncompressed answer")
    error = relative_error(trial.expected, ideal)
    if math.isinf(error):
        raise Unavailable("the uncompressed answer is zero, so a relative error has no meaning")
    return [error]


METRIC = Metric(
    name="approximation_error",
    unit="1",
    version=1,
    sample=_sample,
    rule=Rule(0.01, exact=True, error=True),
    moved_by=(),
    axis=Axis("approximation error against\nthe uncompressed answer", "percent"),
    column=Column("approx. error", 4),
    asv=lambda operation: operation.ideal is not None,
)
