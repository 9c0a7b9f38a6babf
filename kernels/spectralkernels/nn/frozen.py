"""A cache for the spectrum of a weight that nobody trains: when it may be used, and when it is dropped.

The transform of a weight costs as much as its share of the product at small batches, and a frozen weight has the same
one for every batch. A layer may keep it while it is in eval() and no gradient of the weight is wanted. What is kept is
dropped as soon as the weight is another tensor, lies elsewhere, or was written in place: torch counts those writes.
Where a weight lay another may come to lie, as unwritten as it was: a parametrised weight is a new tensor at every look.

It does not count what is written behind its back, through `weight.data`, numpy or a raw pointer: then call `train()`
or `eval()` on the layer or the model, either of which forgets the spectrum.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from spectralkernels.autocast import DEVICES
from spectralkernels.convolution.geometry import WeightSpectrum
from spectralkernels.dispatch import Explanation
from spectralkernels.ops import load_operation

Kept = tuple["weakref.ref[Tensor]", Hashable, WeightSpectrum | None]
"""The weight, its state and geometry when a spectrum was made, and that; None where the call has no use for one."""


def may_keep(weight: Tensor, x: Tensor, training: bool) -> bool:
    """Whether a spectrum of this weight may be used in place of it for this call."""
    if training or torch.compiler.is_compiling() or weight.is_inference():  # an inference tensor counts no writes
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
    kept: Kept | None, weight: Tensor, geometry: Hashable, make: Callable[[], WeightSpectrum | None]
) -> Kept:
    """`kept` if it still holds for this weight and geometry, else what `make` returns, with what it was made from."""
    key = (weight.data_ptr(), weight._version, weight.dtype, weight.device, geometry)
    if kept is not None and kept[0]() is weight and kept[1] == key:
        return kept
    return weakref.ref(weight), key, make()
