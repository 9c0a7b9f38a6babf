"""Turn the convolutions of a model into band-limited ones, and say of each what was done and why.

A layer is given the class of its twin and keeps everything else: it is the same object, with the same parameters, hooks
and name, so that optimisers, `state_dict` and every other reference to it stay good. Nothing is changed before every
layer has been judged.
"""

from __future__ import annotations

import copy as copying
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.conv import _ConvNd

from spectralkernels.checks import as_flag, check_module
from spectralkernels.convolution.geometry import GridChoice
from spectralkernels.errors import DtypeError, RangeError
from spectralkernels.nn.convolution import (
    BandLimitedConv1d,
    BandLimitedConv2d,
    _BandLimited,
    _Spectral,
    check_call,
)
from spectralkernels.nn.relu import BitReLU
from spectralkernels.nn.table import table

TWINS: dict[type[nn.Module], type[_BandLimited]] = {nn.Conv1d: BandLimitedConv1d, nn.Conv2d: BandLimitedConv2d}

Where = str | type[nn.Module] | tuple[type[nn.Module], ...] | Callable[[str, nn.Module], bool] | None
"""Which layers: a pattern of names such as "layer1.*", a type or several, a predicate of (name, module), or all."""


@dataclass(frozen=True, slots=True)
class LayerDecision:
    """What was done with one convolution. name: of the module in the model. layer: its type before."""

    name: str
    layer: str
    swapped: bool
    because: str


@dataclass(frozen=True, slots=True)
class Conversion:
    """What `convert` did: the model (the same object unless it was copied), and a decision for every convolution.

    relus: names of the ReLUs that save bits now.
    """

    model: nn.Module
    decisions: tuple[LayerDecision, ...]
    relus: tuple[str, ...] = ()

    @property
    def swapped(self) -> tuple[str, ...]:
        """Names of the layers that are band-limited now."""
        return tuple(decision.name for decision in self.decisions if decision.swapped)

    def __str__(self) -> str:
        rows = [
            (d.name or "(the model)", d.layer, "swapped" if d.swapped else "kept", d.because) for d in self.decisions
        ]
        rows += [(name, "ReLU", "swapped", "saves a bit per element") for name in self.relus]
        return table(("layer", "type", "", "because"), rows)


def convert(
    model: nn.Module,
    *,
    compression: float,
    where: Where = None,
    copy: bool = False,
    pointwise: bool = False,
    relu_bits: bool = False,
    grid: GridChoice = "tight",
    impl: str = "auto",
) -> Conversion:
    """Give the convolutions of a model a band limit.

        print(sk.nn.convert(model, compression=0.5, where="layer*"))

    compression: fraction of half-spectrum coefficients to drop, 0 <= c < 1, in every layer that is swapped.
    where: which layers, by name pattern (as in a shell), type, or predicate of (name, module); default is all.
    copy: leave `model` as it is and convert a deep copy, `.model` of the answer. pointwise: 1x1 kernels too, which have
        nothing to gain from a spectrum. grid, impl: as in `band_limited_conv2d`.
    relu_bits: make a `BitReLU` of every torch.nn.ReLU, so that a map is not saved by the ReLU that makes it beside the
        spectrum that the convolution behind it saves; whatever `where` says, because none knows what comes behind it.
    Kept, with the reason: what `where` leaves out, subclasses of torch's layers, parametrised or pruned weights, layers
    used under several names, replaced `forward`s.
    Returns: the decisions, to be printed. Weights, buffers and hooks stay as they are.
    Raises: RangeError on a bad compression, grid or impl, a `where` that matches no convolution, or a model without
        one; DtypeError on a model or a `where` of no such kind. Nothing is converted then.
    """
    check_module(model)
    copy, pointwise = as_flag("copy", copy), as_flag("pointwise", pointwise)
    relu_bits = as_flag("relu_bits", relu_bits)
    for twin in TWINS.values():
        check_call(twin, compression, grid, impl)
    names = _names(model)
    picked = chooser(where)
    judged: list[tuple[str, nn.Module, str | None]] = []
    matched = False
    for name, module in model.named_modules():
        if not isinstance(module, _ConvNd):
            continue
        chosen = picked(name, module)
        matched = matched or chosen
        reason = _why_not(module, names[id(module)], pointwise) if chosen else "`where` leaves it out"
        judged.append((name, module, reason))
    if not judged:
        raise RangeError(
            f"{type(model).__name__} has no convolution: no torch.nn.Conv1d or Conv2d, so nothing to convert"
        )
    if not matched:
        raise RangeError(f"where={where!r} matches none of the convolutions {', '.join(name for name, *_ in judged)}")
    target = copying.deepcopy(model) if copy else model
    decisions = []
    for name, module, reason in judged:
        decisions.append(
            LayerDecision(name, type(module).__name__, reason is None, reason or f"compression {compression:g}")
        )
        if reason is None:
            layer = target.get_submodule(name)
            layer.__dict__.update(compression=compression, grid=grid, impl=impl)
            layer.__class__ = TWINS[type(layer)]
    relus = tuple(name for name, module in target.named_modules() if relu_bits and _plain_relu(module))
    for name in relus:
        target.get_submodule(name).__class__ = BitReLU
    return Conversion(target, tuple(decisions), relus)


def chooser(where: Where) -> Callable[[str, nn.Module], bool]:
    """`where` as a predicate of (name, module); DtypeError if it is of no kind that says which."""
    if where is None:
        return lambda name, module: True
    if isinstance(where, str):
        return lambda name, module: fnmatchcase(name, where)
    if isinstance(where, type) or (isinstance(where, tuple) and all(isinstance(kind, type) for kind in where)):
        return lambda name, module: isinstance(module, where)
    if callable(where):
        return where
    raise DtypeError(
        f"where must be a pattern of names, a module type or several, or a function of (name, module), got {where!r}"
    )


def band_limited(model: nn.Module, where: Where = None) -> Iterator[tuple[str, _BandLimited]]:
    """The band-limited layers of a model that `where` picks, by name.

    Raises: RangeError if there is none.
    """
    check_module(model)
    picked = chooser(where)
    found = [(name, each) for name, each in model.named_modules() if isinstance(each, _BandLimited)]
    if not found:
        raise RangeError(f"{type(model).__name__} has no band-limited layer; make some with sk.nn.convert(model, ...)")
    chosen = [(name, layer) for name, layer in found if picked(name, layer)]
    if not chosen:
        raise RangeError(f"where={where!r} matches none of the band-limited layers {', '.join(n for n, _ in found)}")
    yield from chosen


def _plain_relu(module: nn.Module) -> bool:
    return type(module) is nn.ReLU and "forward" not in module.__dict__


def _names(model: nn.Module) -> dict[int, list[str]]:
    """Every name of every module."""
    names: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(id(module), []).append(name)
    return names


def _why_not(module: _ConvNd, names: list[str], pointwise: bool) -> str | None:
    """The reason to keep a convolution as it is, or None."""
    if isinstance(module, _Spectral):
        return "it is spectral already; `set_compression` changes its rate"
    if "parametrizations" in dict(module.named_children()) or "weight" not in dict(
        module.named_parameters(recurse=False)
    ):
        return "its weight is parametrised or pruned, made anew from other tensors"
    if type(module) not in TWINS:
        return f"{type(module).__name__} has no band-limited twin; those are of " + " and ".join(
            kind.__name__ for kind in TWINS
        )
    if "forward" in module.__dict__:
        return "its forward has been replaced"
    if len(names) > 1:
        return f"it is used in several places ({', '.join(names)}), and one rate would serve them all"
    if all(side == 1 for side in module.kernel_size) and not pointwise:
        return "its kernel has one tap, which needs no spectrum"
    return None
