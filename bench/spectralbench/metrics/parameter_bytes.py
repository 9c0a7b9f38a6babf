"""Bytes of the parameters of a model, in the dtype of its kind of layers; only where a workload reports them."""

from __future__ import annotations

from spectralbench.metrics import Metric, Trial
from spectralkernels.errors import Unsupported


def _sample(trial: Trial) -> list[float]:
    facts = trial.operation.observe(trial.case, trial.output)
    if "parameter_bytes" not in facts:
        raise Unsupported(f"{trial.operation.name} does not report it")
    return [float(facts["parameter_bytes"])]


METRIC = Metric(name="parameter_bytes", unit="byte", version=1, sample=_sample, devices=())
