"""Symmetric relative error of the exact operation against the uncompressed answer, as Dziedzic et al. (2019) plot it.

    sum |reference - ideal| / sum (|reference| + |ideal|)

It lies in [0, 1]: 0 for equal answers, 1 where one of the two is zero. Theirs is 100 times this.
"""

from __future__ import annotations

from spectralbench.metrics import Axis, Metric, Rule, Trial, Unavailable


def _sample(trial: Trial) -> list[float]:
    ideal = trial.ideal()
    if ideal is None:
        raise Unavailable(f"{trial.operation.name} loses nothing, so it has no uncompressed answer")
    difference = (trial.expected - ideal).abs().sum().item()
    scale = (trial.expected.abs().sum() + ideal.abs().sum()).item()
    return [difference / scale if scale else 0.0]


METRIC = Metric(
    name="approximation_error_sym",
    unit="1",
    version=1,
    sample=_sample,
    rule=Rule(0.01, exact=True, error=True),
    moved_by=(),
    axis=Axis("symmetric error against\nthe uncompressed answer", "percent"),
)
