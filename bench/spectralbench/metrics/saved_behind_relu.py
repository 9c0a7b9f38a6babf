"""Bytes that a ReLU and the operation behind it keep for their backward passes: what is saved in a network.

    y = operation(relu(x))

`saved_bytes` counts the operation alone. A ReLU keeps its answer, which a direct convolution keeps as well and so costs
nothing more; a spectral one keeps the spectrum of the same map beside it. Storages count as in `held.saved_by`.
"""

from __future__ import annotations

from typing import Any

from spectralbench.identity import SOFTWARE
from spectralbench.metrics import Axis, Metric, Rule, Trial, Unavailable


def _sample(trial: Trial) -> list[float]:
    import torch

    from spectralbench.held import saved_by
    from spectralkernels.declare import fitting

    own = trial.implementation.gradients
    names = fitting(trial.inputs, trial.operation.gradients if own is None else own)
    x = trial.inputs.get("x")
    if "x" not in names or not isinstance(x, torch.Tensor) or not x.is_floating_point():
        raise Unavailable(f"{trial.implementation.name} differentiates no map x that a ReLU could make")

    def trained(value: object) -> bool:
        return isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex())

    leaves = {name: trial.inputs[name].detach().requires_grad_() for name in names if trained(trial.inputs[name])}

    def forward() -> Any:
        with torch.enable_grad():
            inputs = {**trial.inputs, **leaves, "x": torch.relu(leaves["x"])}
            prepare = trial.implementation.prepare
            return trial.implementation.call(**(inputs if prepare is None else prepare(**inputs)))

    return [saved_by(forward)]


METRIC = Metric(
    name="saved_behind_relu",
    unit="byte",
    version=1,
    sample=_sample,
    rule=Rule(0.05),
    moved_by=SOFTWARE,
    axis=Axis("bytes saved behind a ReLU", "log"),
)
