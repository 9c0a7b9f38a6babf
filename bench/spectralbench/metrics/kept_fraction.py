"""Fraction of coefficients that survive the threshold beta."""

from __future__ import annotations

from spectralbench.metrics import Metric, Trial
from spectralkernels.errors import Unsupported


def _sample(trial: Trial) -> list[float]:
    if trial.implementation in trial.operation.rivals:
        raise Unsupported("a rival computes another answer")
    facts = trial.operation.observe(trial.case, trial.output)
    if "kept_fraction" not in facts:
        raise Unsupported(f"{trial.operation.name} does not report it")
    return [float(facts["kept_fraction"])]


METRIC = Metric(name="kept_fraction", unit="1", version=1, sample=_sample)
