"""Peak bytes of tensors that one call allocates on the GPU, over what was allocated before it."""

from __future__ import annotations

from spectralbench.identity import SOFTWARE
from spectralbench.metrics import Axis, Column, Metric, Rule, Trial, Unavailable


def _sample(trial: Trial) -> list[float]:
    import torch

    if trial.device != "cuda":
        raise Unavailable("CUDA only; on a CPU see host_peak")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    trial.run()
    torch.cuda.synchronize()
    return [float(torch.cuda.max_memory_allocated() - before)]


METRIC = Metric(
    name="peak_allocated",
    unit="byte",
    version=1,
    sample=_sample,
    rule=Rule(0.001, exact=True),
    moved_by=SOFTWARE,
    axis=Axis("peak of allocated memory", "log"),
    column=Column("peak memory", 1),
    devices=("cuda",),
    rented="allocator",
)
