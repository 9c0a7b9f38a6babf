"""Seconds of Python in one eager forward call of an implementation: the call less its torch operations alone.

What a small layer pays. See `spectralbench.host`, which also prints the whole public call: arguments, geometry and the
choice of an implementation come on top. C++ of ours that is no torch operation (dft_native) counts as the host's.
Only asked for by name.
"""

from __future__ import annotations

import statistics

from spectralbench.identity import NAMES
from spectralbench.metrics import Axis, Metric, Rule, Trial, Unavailable

LONGEST = 1e-3
"""Seconds of torch operations beside which Python can still be told from their noise."""


def _sample(trial: Trial) -> tuple[float, ...]:
    from spectralbench.host import host_time

    if trial.pass_ != "forward":
        raise Unavailable("Python is told from torch's operations in a forward pass only")
    if trial.implementation.compiled:
        raise Unavailable("torch.compile makes operations of its own")
    found = host_time(trial.run, samples=1)
    if statistics.median(found.operations) > LONGEST:
        raise Unavailable(f"its torch operations take longer than {LONGEST} s, which hides Python; take a smaller case")
    return host_time(trial.run).samples


METRIC = Metric(
    name="host_time",
    unit="second",
    version=1,
    sample=_sample,
    rule=Rule(0.10, host=True),
    moved_by=NAMES,
    axis=Axis("Python per call", "log"),
    per_process=True,
    devices=(),
)
