"""Bytes of the answer as it is stored: values, indices and bitmaps together."""

from __future__ import annotations

from spectralbench.metrics import Axis, Metric, Rule, observed, of_a_threshold

METRIC = Metric(
    name="stored_bytes",
    unit="byte",
    version=1,
    sample=observed("stored_bytes"),
    rule=Rule(0.001, exact=True),
    moved_by=(),
    axis=Axis("stored bytes", "log"),
    asv=of_a_threshold,
    rented="timed",
)
