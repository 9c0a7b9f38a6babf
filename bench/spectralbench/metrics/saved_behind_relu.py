"""Bytes that a ReLU and the operation behind it keep for their backward passes: what is saved in a network.

    y = operation(relu(x))

`saved_bytes` counts the operation alone. A ReLU keeps its answer, which a direct convolution keeps as well and so costs
nothing more; a spectral one keeps the spectrum of the same map beside it. Storages count as in `saved_bytes`.
"""

from __future__ import annotations

from typing import Any

import torch

from spectralbench.metrics import Metric, Trial
from spectralbench.metrics.saved_bytes import saved_by
from spectralkernels.declare import fitting
from spectralkernels.errors import Unsupported


def _sample(trial: Trial) -> list[float]:
    own = trial.implementation.gradients
    names = fitting(trial.inputs, trial.operation.gradients if own is None else own)
    x = trial.inputs.get("x")
    if "x" not in names or not isinstance(x, torch.Tensor) or not x.is_floating_point():
        raise Unsupported(f"{trial.implementation.name} differentiates no map x that a ReLU could make")
    leaves = {name: trial.inputs[name].detach().requires_grad_() for name in names if _trained(trial.inputs[name])}

    def forward() -> Any:
        with torch.enable_grad():
            inputs = {**trial.inputs, **leaves, "x": torch.relu(leaves["x"])}
            prepare = trial.implementation.prepare
            return trial.implementation.call(**(inputs if prepare is None else prepare(**inputs)))

    return [saved_by(forward)]


def _trained(value: object) -> bool:
    return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())


METRIC = Metric(name="saved_behind_relu", unit="byte", version=1, sample=_sample)
