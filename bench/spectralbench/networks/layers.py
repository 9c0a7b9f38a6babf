"""The kinds of layers that the convolutions of a network can be turned to; the parameters stay, where they can.

    native             torch's convolutions, as built
    band_limited       ours, at a compression: `sk.nn.convert`
    band_limited_bits  the same, and ReLUs that save a bit per element
    torch_fft          the same function by torch.fft in every layer; a stride takes samples of the answer to stride 1
    exact              the same function in float64, by the references of the operations
    specnet            SpecNet's block at a beta, and back to maps: packed thresholded spectra are what is saved
    phc                kernels that are sums of n Kronecker products, with parameters of their own

Every kind leaves alone what it cannot turn: 1x1 kernels, groups where it has none, layers that `convert` keeps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

import spectralkernels as sk
from spectralkernels.convolution.geometry import conv_band, reach
from spectralkernels.errors import RangeError
from spectralkernels.ops import load_operation

CONVERTED = ("band_limited", "band_limited_bits", "torch_fft", "exact")
KINDS = ("native", *CONVERTED, "specnet", "phc")


def applied(model: nn.Module, kind: str, *, compression: float = 0.0, beta: float = 1.0, n: int = 1) -> nn.Module:
    """The model with its convolutions turned to `kind`, in place.

    compression: of the kinds that `convert` makes. beta: of "specnet". n: of "phc".
    Raises: RangeError on an unknown kind, and where the model has no layer that can be turned to it.
    """
    if kind not in KINDS:
        raise RangeError(f"unknown kind of layers {kind!r}; known: {', '.join(KINDS)}")
    if kind == "native":
        return model
    if kind in CONVERTED:
        turned = sk.nn.convert(model, compression=compression, relu_bits=kind == "band_limited_bits").swapped
        for name in turned if kind in _TWINS else ():
            layer = model.get_submodule(name)
            layer.__class__ = _TWINS[kind][type(layer)]
    elif kind == "specnet":
        turned = _replaced(model, _specnet_fits, lambda conv: SpecNetConv2d(conv, beta))
    else:
        turned = _replaced(model, lambda conv: _phc_fits(conv, n), lambda conv: _phc(conv, n))
    if not turned:
        raise RangeError(f"{type(model).__name__} has no convolution that can be turned to {kind!r}")
    return model


# --- the same function by other ways ---------------------------------------------------------------------------------


class _ByFft:
    def forward(self: Any, input: Tensor) -> Tensor:
        x, geometry = self._geometry(input)
        return self.operation(x, self.weight, self.bias, **geometry, **self._steps(), impl="torch_fft")


class _Exactly:
    def forward(self: Any, input: Tensor) -> Tensor:
        x, geometry = self._geometry(input)
        name = "strided_conv1d" if isinstance(self, nn.Conv1d) else "strided_conv2d"
        groups = geometry.pop("groups")
        band = conv_band(tuple(x.shape[2:]), reach(self.weight.shape[2:], self.dilation), **geometry)
        found: Tensor = load_operation(name).reference(x, self.weight, self.bias, band, groups, **self._steps())
        return found


class _Fft1d(_ByFft, sk.nn.BandLimitedConv1d): ...


class _Fft2d(_ByFft, sk.nn.BandLimitedConv2d): ...


class _Exact1d(_Exactly, sk.nn.BandLimitedConv1d): ...


class _Exact2d(_Exactly, sk.nn.BandLimitedConv2d): ...


_TWINS: dict[str, dict[type[nn.Module], type[nn.Module]]] = {
    "torch_fft": {sk.nn.BandLimitedConv1d: _Fft1d, sk.nn.BandLimitedConv2d: _Fft2d},
    "exact": {sk.nn.BandLimitedConv1d: _Exact1d, sk.nn.BandLimitedConv2d: _Exact2d},
}
"""Of the layers that `convert` makes."""


# --- SpecNet ---------------------------------------------------------------------------------------------------------


class SpecNetConv2d(nn.Module):
    """SpecNet's block in the place of a convolution, with its weight and bias, from maps to maps.

    The spectrum of the padded map times that of the kernel, thresholded at beta, tanh on either part, packed; then back
    to the samples that the convolution keeps. The bias is added to the maps, which is the same as at frequency 0.
    Input and output: Real, of the sizes of the convolution that it stands for.
    """

    def __init__(self, conv: nn.Conv2d, beta: float, impl: str = "auto") -> None:
        super().__init__()
        self.impl = impl
        self.weight, self.bias, self.stride, self.beta = conv.weight, conv.bias, conv.stride, beta
        assert not isinstance(conv.padding, str), "_specnet_fits takes no other"
        self.padding = conv.padding

    def forward(self, x: Tensor) -> Tensor:
        sides = [size + taps - 1 for size, taps in zip(x.shape[2:], self.weight.shape[2:], strict=True)]
        packed = sk.spec_block(x, self.weight, self.beta, impl=self.impl)
        circle = torch.fft.irfft2(packed.to_dense(), s=sides, norm="ortho").roll(self.padding, (2, 3))
        high, wide = (
            size + 2 * pad - taps + 1
            for size, pad, taps in zip(x.shape[2:], self.padding, self.weight.shape[2:], strict=True)
        )
        y = circle[..., : high : self.stride[0], : wide : self.stride[1]]
        return y if self.bias is None else y + self.bias.view(-1, 1, 1)

    def extra_repr(self) -> str:
        return f"{list(self.weight.shape)}, stride={self.stride}, padding={self.padding}, beta={self.beta}"


def _specnet_fits(conv: nn.Conv2d) -> bool:
    """More than one tap, no groups or dilation, and zeros that reach no further than the kernel."""
    return (
        max(conv.kernel_size) > 1
        and conv.groups == 1
        and conv.dilation == (1, 1)
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
        and all(pad < taps for pad, taps in zip(conv.padding, conv.kernel_size, strict=True))
    )


# --- Kronecker products ----------------------------------------------------------------------------------------------


def _phc_fits(conv: nn.Conv2d, n: int) -> bool:
    divides = conv.in_channels % n == 0 and conv.out_channels % n == 0
    return divides and conv.groups == 1 and conv.padding_mode == "zeros"


def _phc(conv: nn.Conv2d, n: int) -> nn.Module:
    """A layer of the same sizes with fresh parameters."""
    sizes: dict[str, Any] = {name: getattr(conv, name) for name in ("kernel_size", "stride", "padding", "dilation")}
    return sk.nn.PHConv2d(conv.in_channels, conv.out_channels, n=n, bias=conv.bias is not None, **sizes)


def _replaced(
    model: nn.Module, fits: Callable[[nn.Conv2d], bool], make: Callable[[nn.Conv2d], nn.Module]
) -> tuple[str, ...]:
    """The names of the plain convolutions that were replaced; one that has several names is left alone."""
    names: dict[_ConvNd, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if type(module) is nn.Conv2d:
            names.setdefault(module, []).append(name)
    turned = []
    for conv, (name, *others) in names.items():
        if name and not others and fits(conv):  # type: ignore[arg-type]
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, make(conv))  # type: ignore[arg-type]
            turned.append(name)
    return tuple(turned)
