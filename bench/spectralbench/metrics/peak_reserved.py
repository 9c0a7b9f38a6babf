"""Peak bytes that PyTorch's caching allocator takes from the driver for one call, over what it held before.

The cache is emptied first; segments that also hold inputs stay, so the value may be up to one segment (20 MiB) short.
"""

from __future__ import annotations

from spectralbench.identity import SOFTWARE
from spectralbench.metrics import Axis, Metric, Rule, Trial, Unavailable


def _sample(trial: Trial) -> list[float]:
    import torch

    if trial.device != "cuda":
        raise Unavailable("CUDA only; on a CPU see host_peak")
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_reserved()
    trial.run()
    torch.cuda.synchronize()
    return [float(torch.cuda.max_memory_reserved() - before)]


METRIC = Metric(
    name="peak_reserved",
    unit="byte",
    version=1,
    sample=_sample,
    rule=Rule(0.05),
    moved_by=SOFTWARE,
    axis=Axis("peak of reserved memory", "log"),
    devices=("cuda",),
    rented="allocator",
)
