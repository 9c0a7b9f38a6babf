"""A cache for the spectrum of a weight that nobody trains: when it may be used, and when it is dropped.

The transform of a weight costs as much as its share of the product at small batches, and a frozen weight has the same
one for every batch. A layer may keep it while it is in eval() and no gradient of the weight is wanted. What is kept is
dropped as soon as the weight is another tensor, lies elsewhere, or was written in place: torch counts those writes. A
weight that is trained is transformed again after a step of any optimiser.
Where a weight lay another may come to lie, as unwritten as it was: a parametrised weight is a new tensor at every look,
and `half()`, then `float()` give a parameter new memory each, the latter perhaps where it was.

It does not count what is written behind its back, through `weight.data`, numpy or a raw pointer: then call `train()`
or `eval()` on the layer or the model, either of which forgets the spectrum.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.optimizer import register_optimizer_step_post_hook

from spectralkernels.autocast import DEVICES
from spectralkernels.constants import traced
from spectralkernels.convolution.geometry import WeightSpectrum
from spectralkernels.dispatch import Explanation
from spectralkernels.ops import load_operation

_steps = 0
"""Of all optimisers. torch counts no writes of a fused one."""


def _count(*step: object) -> None:
    global _steps
    _steps += 1


register_optimizer_step_post_hook(_count)


class KeptSpectrum(NamedTuple):
    """A weight, its state and geometry when a spectrum was made, and that; None where the call has no use for one.

    memory: of the weight, held weakly: as long as it is, no other memory takes its name.
    steps: of all optimisers until then; None where the weight is not trained.
    """

    weight: weakref.ref[Tensor]
    state: Hashable
    spectrum: WeightSpectrum | None
    memory: StorageWeakRef
    steps: int | None


def may_keep(weight: Tensor, x: Tensor, training: bool) -> bool:
    """Whether a spectrum of this weight may be used in place of it for this call."""
    if training or traced(x, weight) or weight.is_inference():  # an inference tensor counts no writes
        return False
    if torch._C._are_functorch_transforms_active():  # a weight may be several, or have a tangent, and no memory
        return False
    if torch.is_grad_enabled() and weight.requires_grad:
        return False
    device = x.device.type
    lowered = device in DEVICES and torch.is_autocast_enabled(device)
    return not lowered and (x.dtype, x.device) == (weight.dtype, weight.device)


def has_use(call: Explanation) -> bool:
    """Whether a kept spectrum saves the call work: what is chosen is ours and transforms the weight."""
    return load_operation(call.operation).implementation(call.chosen).role == "kernel"


def kept_or_made(
    kept: KeptSpectrum | None, weight: Tensor, geometry: Hashable, make: Callable[[], WeightSpectrum | None]
) -> KeptSpectrum:
    """`kept` if it still holds for this weight and geometry, else what `make` returns, with what it was made from."""
    memory = weight.untyped_storage()
    place = (memory._cdata, weight.data_ptr(), weight.stride())
    state = (place, weight._version, weight.dtype, weight.device, geometry)
    trained = weight.requires_grad or (weight.is_leaf and weight.grad is not None)
    steps = _steps if trained else None
    if kept is None or kept.weight() is not weight or kept.state != state or kept.steps not in (steps, _steps):
        return KeptSpectrum(weakref.ref(weight), state, make(), StorageWeakRef(memory), steps)
    return kept if kept.steps == steps else kept._replace(steps=steps)
