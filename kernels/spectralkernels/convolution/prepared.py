"""A convolution that was called before: a key, a look-up and the body.

What a call is checked for, its geometry and who computes it follow from its signature: sizes, strides, dtypes, devices,
options, which gradients are wanted, the dtype of an autocast region, and whether `dft_native` is built. The second call
of a signature asks for none of that again. Where no gradient is wanted and nobody looks on (see `operators`), it passes
the operators by, too: the implementation has planned a body for the signature.

What traces, counts or transforms calls, and arguments that are no plain tensors, numbers or words, have no signature:
such a call goes the whole way each time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from spectralkernels.autocast import DEVICES, cast
from spectralkernels.constants import Held, Plans
from spectralkernels.convolution.dft_native import build
from spectralkernels.convolution.geometry import WeightSpectrum
from spectralkernels.declare import Implementation
from spectralkernels.launch import forgotten_with_plans
from spectralkernels.layouts import as_given, is_channels_last
from spectralkernels.modes import ModeList
from spectralkernels.operators import PLAIN, nothing_traces, nothing_watches
from spectralkernels.target import named_capability
from spectralkernels.tuning import watched


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a signature decides.

    implementation: who computes it. options: its inputs that are no tensors. autocast: whether tensors are cast first.
    one: whether x is one sample. formed: whether the answer is brought into the form of the call.
    body: given x, weight, a mask where there is one, and bias, what computes it where nobody looks; None where a
        gradient is wanted or none is planned.
    of_mask: what the implementation takes for the mask of the call; the body takes that itself. every: the index of
        the samples that a stride leaves of those that are computed; None: all of them.
    """

    implementation: Implementation
    options: dict[str, Any]
    autocast: bool
    one: bool
    formed: bool
    body: Any
    of_mask: Callable[..., Tensor] | None = None
    every: tuple[Any, ...] | None = None

    def __call__(
        self, x: Tensor, weight: Tensor | WeightSpectrum, bias: Tensor | None, mask: Tensor | None = None
    ) -> Tensor:
        given = x
        if self.one:
            x = x.unsqueeze(0)
        if self.autocast:
            device = x.device.type
            x, weight, bias = cast(x, device), cast(weight, device), cast(bias, device)
        masks = () if mask is None else (mask,)
        if self.body is not None and nothing_watches() and not watched() and _in_memory(x, weight, bias, *masks):
            y: Tensor = self.body(x, weight, *masks, bias)
        else:
            named = self.options if self.of_mask is None else {"mask": self.of_mask(mask), **self.options}
            y = self.implementation.call(x=x, weight=weight, bias=bias, **named)
        if self.every is not None:
            y = y[self.every].contiguous()
        return as_given(y, given, x, weight) if self.formed else y


MOST_MASKS = 8
"""Masks of one signature whose numbers are held."""


class ByNumbers:
    """The calls of a signature that follow from the numbers of a mask, too: from those it was last called with.

    A mask is compared with copies, because nothing else tells of every way to change one: a version counter knows
    nothing of `mask.data`, NumPy or another process, and a tensor of inference mode has none.
    """

    def __init__(self) -> None:
        self._known: tuple[tuple[Held, Prepared], ...] = ()

    def find(self, mask: Tensor) -> Prepared | None:
        """The call of a mask with the same numbers, or None. A CUDA device is waited for."""
        numbers = mask if mask.is_cpu else mask.cpu()
        for place, (held, call) in enumerate(self._known):
            if held.holds(numbers):
                if place:
                    # Another thread may do the same: what is lost is made again.
                    self._known = ((held, call), *self._known[:place], *self._known[place + 1 :])
                return call
        return None

    def keep(self, mask: Tensor, call: Prepared) -> None:
        """Find the call from now on."""
        self._known = ((Held(mask), call), *self._known[: MOST_MASKS - 1])


PREPARED: Plans[Prepared | ByNumbers] = Plans()
forgotten_with_plans(PREPARED.forget)


def keep_by_numbers(key: tuple[Any, ...], mask: Tensor, call: Prepared) -> None:
    """Find a call again by its signature and the numbers of its mask."""
    known = PREPARED.get(key)
    if type(known) is not ByNumbers:
        known = ByNumbers()
        PREPARED.keep(key, known)
    known.keep(mask, call)


def known_call(key: tuple[Any, ...] | None, mask: Tensor | None = None) -> Prepared | None:
    """The call of a `signature` that was made before, with such a mask, or None."""
    known = None if key is None else PREPARED.get(key)
    if type(known) is ByNumbers:
        assert mask is not None
        return known.find(mask)
    return known  # type: ignore[return-value]


def signature(
    operation: str,
    impl: str,
    x: Tensor,
    weight: Tensor | WeightSpectrum,
    bias: Tensor | None,
    options: tuple[Any, ...],
    mask: Tensor | None = None,
) -> tuple[Any, ...] | None:
    """The key of a call, or None for one that must go the whole way.

    1, 1.0 and True are one key of a dictionary, so that types come with the options. Who may serve a mask follows from
    its derivative, too, of which a gradient is a fact of the tensor and a tangent is none.
    """
    if not nothing_traces() or type(impl) is not str or named_capability.get() is not None:
        return None
    if mask is not None and forward_ad._current_level >= 0:
        return None
    of_x, of_bias = _facts(x), None if bias is None else _facts(bias)
    of_mask = None if mask is None else _facts(mask)
    of_weight = _facts_of_spectrum(weight) if type(weight) is WeightSpectrum else _facts(weight)
    types = tuple(map(type, options))
    plain = _NUMBERS_OR_WORDS.issuperset(types) or all(map(_is_plain, options))
    if not plain or of_x is None or of_weight is None or (of_bias is None and bias is not None):
        return None
    if of_mask is None and mask is not None:
        return None
    autocast = torch._C._is_any_autocast_enabled() and _autocast(x.device.type)
    facts = (of_x, of_weight, of_bias, options, types, of_mask)
    return (operation, impl, facts, torch.is_grad_enabled(), autocast, build.READY)


def _facts(tensor: Any) -> tuple[Any, ...] | None:
    if type(tensor) not in PLAIN or tensor.layout is not torch.strided or tensor.is_nested:
        return None
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad


def _facts_of_spectrum(weight: WeightSpectrum) -> tuple[Any, ...] | None:
    facts = _facts(weight.modes)
    if facts is None:
        return None
    return (*facts, weight.band, weight.out_channels, weight.in_channels_per_group, weight.groups, weight.mode_list)


_NUMBERS_OR_WORDS = frozenset((type(None), float, int, str))


def _is_plain(option: Any) -> bool:
    whole = type(option) is tuple and all(type(each) is int for each in option)
    return whole or type(option) is ModeList or type(option) in _NUMBERS_OR_WORDS


def _autocast(device: str) -> tuple[bool, torch.dtype] | None:
    """Of a device that `cast` knows: torch refuses to say of others, such as meta."""
    return (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)) if device in DEVICES else None


_TENSORS = ("x", "weight", "bias", "mask")


def prepared(
    implementation: Implementation,
    given: Tensor,
    inputs: dict[str, Any],
    of_mask: Callable[..., Tensor] | None = None,
    every: tuple[Any, ...] | None = None,
) -> Prepared:
    """What is kept of a call that went the whole way. given: its x. inputs: of the implementation."""
    x, weight, autocast = inputs["x"], inputs["weight"], torch._C._is_any_autocast_enabled()
    numbers = weight.modes if isinstance(weight, WeightSpectrum) else weight
    tensors = [each for each in (x, numbers, inputs["bias"], inputs.get("mask")) if each is not None]
    wanted = torch.is_grad_enabled() and any(each.requires_grad for each in tensors)
    one = given.dim() < x.dim()
    return Prepared(
        implementation,
        {name: option for name, option in inputs.items() if name not in _TENSORS},
        autocast,
        one,
        one or any(is_channels_last(each) for each in tensors[:2]),
        implementation.plan(**inputs) if implementation.plan and not (wanted or autocast) else None,
        of_mask,
        every,
    )


def _in_memory(x: Tensor, weight: Tensor | WeightSpectrum, *others: Tensor | None) -> bool:
    """Whether the numbers of these real tensors are there as they count, see `operators._as_in_memory`."""
    weight = weight if isinstance(weight, Tensor) else weight.modes
    marked = x.is_neg() or weight.is_neg() or x._is_zerotensor() or weight._is_zerotensor()
    for each in others:
        marked = marked or (each is not None and (each.is_neg() or each._is_zerotensor()))
    return not marked
