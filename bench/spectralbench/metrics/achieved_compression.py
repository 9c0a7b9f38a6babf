"""Fraction of half-spectrum coefficients that is really dropped; rounding makes it differ from the nominal one."""

from __future__ import annotations

from spectralbench.metrics import Metric, Trial
from spectralkernels.errors import Unsupported


def _sample(trial: Trial) -> list[float]:
    if trial.implementation in trial.operation.rivals:
        raise Unsupported("a rival computes another answer")
    facts = trial.operation.observe(trial.case, trial.output)
    if "achieved_compression" not in facts:
        raise Unsupported(f"{trial.operation.name} does not report it")
    return [float(facts["achieved_compression"])]


METRIC = Metric(name="achieved_compression", unit="1", version=1, sample=_sample)
