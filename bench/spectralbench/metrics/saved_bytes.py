"""Bytes that a forward pass keeps alive for its backward pass; see `held.saved_by` for what counts."""

from __future__ import annotations

from spectralbench.identity import SOFTWARE
from spectralbench.metrics import Axis, Column, Metric, Rule, Trial, Unavailable


def _sample(trial: Trial) -> list[float]:
    if trial.forward is None:
        raise Unavailable(f"{trial.implementation.name} has nothing to differentiate")
    from spectralbench.held import saved_by

    return [saved_by(trial.forward)]


METRIC = Metric(
    name="saved_bytes",
    unit="byte",
    version=1,
    sample=_sample,
    rule=Rule(0.001, exact=True),
    moved_by=SOFTWARE,
    axis=Axis("bytes saved for backward", "log"),
    column=Column("saved", 0),
    asv=lambda operation: True,
    rented="allocator",
)
