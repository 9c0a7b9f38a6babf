"""Bytes of the parameters of a model, in the dtype of its kind of layers; only where a workload reports them."""

from __future__ import annotations

from spectralbench.metrics import Axis, Metric, Rule, observed

METRIC = Metric(
    name="parameter_bytes",
    unit="byte",
    version=1,
    sample=observed("parameter_bytes", rivals=True),
    rule=Rule(0.05),
    moved_by=(),
    axis=Axis("bytes of the parameters", "log"),
    devices=(),
    models=True,
)
