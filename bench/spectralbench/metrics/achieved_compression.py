"""Fraction of half-spectrum coefficients that is really dropped; rounding makes it differ from the nominal one."""

from __future__ import annotations

from spectralbench.metrics import Axis, Column, Metric, Rule, observed

METRIC = Metric(
    name="achieved_compression",
    unit="1",
    version=1,
    sample=observed("achieved_compression"),
    rule=Rule(0.001, exact=True, fact=True),
    moved_by=(),
    axis=Axis("achieved compression", "percent"),
    column=Column("achieved c", 5),
    rented="timed",
)
