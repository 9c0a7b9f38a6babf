"""Peak bytes of tensors that one call allocates on the GPU, over what was allocated before it."""

from __future__ import annotations

import torch

from spectralbench.metrics import Metric, Trial
from spectralkernels.errors import Unsupported


def _sample(trial: Trial) -> list[float]:
    if trial.device != "cuda":
        raise Unsupported("CUDA only; on a CPU see host_peak")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    trial.run()
    torch.cuda.synchronize()
    return [float(torch.cuda.max_memory_allocated() - before)]


METRIC = Metric(name="peak_allocated", unit="byte", version=1, sample=_sample, devices=("cuda",))
