"""Bytes of the answer as it is stored: values, indices and bitmaps together."""

from __future__ import annotations

from spectralbench.metrics import Metric, Trial
from spectralkernels.errors import Unsupported


def _sample(trial: Trial) -> list[float]:
    if trial.implementation in trial.operation.rivals:
        raise Unsupported("a rival computes another answer")
    facts = trial.operation.observe(trial.case, trial.output)
    if "stored_bytes" not in facts:
        raise Unsupported(f"{trial.operation.name} does not report it")
    return [float(facts["stored_bytes"])]


METRIC = Metric(name="stored_bytes", unit="byte", version=1, sample=_sample)
