"""Fraction of coefficients that survive the threshold beta."""

from __future__ import annotations

from spectralbench.metrics import Axis, Column, Metric, Rule, observed, of_a_threshold

METRIC = Metric(
    name="kept_fraction",
    unit="1",
    version=1,
    sample=observed("kept_fraction"),
    rule=Rule(0.001, exact=True, fact=True),
    moved_by=(),
    axis=Axis("kept coefficients", "percent"),
    column=Column("kept", 6),
    asv=of_a_threshold,
    rented="timed",
)
