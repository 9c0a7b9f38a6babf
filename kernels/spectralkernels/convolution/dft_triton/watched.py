"""The launches of the three-launch convolution whose machine code is kept: layers of networks, half the band dropped.

Two stages of ResNet-18, a large kernel and a series, forward in four classes; of the first layer and the default class
also backward, and what a mask, a frozen weight, a spectrum saved in bfloat16 and groups of one channel change.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from spectralkernels.convolution.dft_triton import chain
from spectralkernels.convolution.dft_triton.launches import products, transforms
from spectralkernels.convolution.dft_triton.layout import Layout
from spectralkernels.convolution.geometry import conv_band
from spectralkernels.launch import NamedLaunch
from spectralkernels.tuning import pinned


@dataclass(frozen=True, slots=True)
class _Layer:
    """Sizes of a layer; `make` builds meta tensors, so that nothing is computed."""

    batch: int
    channels: int
    outputs: int
    size: tuple[int, ...]
    kernel: int
    groups: int = 1

    def name(self, precision: str, what: str = "") -> str:
        size = "x".join(map(str, self.size))
        groups = f" G{self.groups}" if self.groups > 1 else ""
        sizes = f"B{self.batch} C{self.channels} O{self.outputs}{groups} {size} K{self.kernel}"
        return f"{sizes} {precision} {what}".strip()

    def geometry(self, precision: str) -> chain.ChainGeometry:
        band = conv_band(self.size, (self.kernel,) * len(self.size), compression=0.5)
        starts = tuple(-before for before, _ in band.pad)
        return chain.ChainGeometry(Layout(band.n, band.kept), starts, self.groups, precision)

    def maps(self, channels: int) -> Tensor:
        return _empty(self.batch, channels, *self.size)

    def weight(self) -> Tensor:
        return _empty(self.outputs, self.channels // self.groups, *(self.kernel,) * len(self.size))

    def spectrum(self, planes: int, geometry: chain.ChainGeometry, dtype: torch.dtype | None = None) -> Tensor:
        layout = geometry.layout
        return _empty(layout.modes_v, layout.modes_u, 2, planes, dtype=dtype or geometry.numbers.storage)

    def mask(self, per_sample: bool) -> Tensor:
        n = self.geometry("fp32").layout.n
        return _empty(*((self.batch, 1) if per_sample else ()), n[0], n[1] // 2 + 1)


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _weight(layer: _Layer, precision: str) -> NamedLaunch:
    def call() -> None:
        weight, geometry = layer.weight(), layer.geometry(precision)
        planes = transforms.Planes(weight.shape[:2].numel())
        w, taps = layer.spectrum(planes.count, geometry), geometry.taps(tuple(weight.shape[2:]))
        transforms.analyse_launch(weight, None, w, taps, planes, geometry.numbers).run()

    return NamedLaunch(layer.name(precision, "weight"), call)


def _forward(layer: _Layer, precision: str) -> NamedLaunch:
    def call() -> None:
        geometry = layer.geometry(precision)
        w = layer.spectrum(layer.weight().shape[:2].numel(), geometry)
        x, bias = layer.maps(layer.channels), _empty(layer.outputs)
        chain.forward(x, None, bias, None, layer.outputs, geometry, layer.size, w=w)

    return NamedLaunch(layer.name(precision), call)


def _saving_bf16(layer: _Layer, precision: str) -> NamedLaunch:
    def call() -> None:
        geometry = layer.geometry(precision)
        planes = transforms.Planes(layer.batch * layer.channels)
        z, kept = layer.spectrum(planes.count, geometry), layer.spectrum(planes.count, geometry, torch.bfloat16)
        where = (geometry.map(layer.size), planes, geometry.numbers)
        transforms.analyse_launch(layer.maps(layer.channels), None, z, *where, kept).run()

    return NamedLaunch(layer.name(precision, "saving bf16"), call)


def _backward(layer: _Layer, precision: str, what: str, needs: chain.Needs) -> NamedLaunch:
    def call() -> None:
        geometry = layer.geometry(precision)
        z = layer.spectrum(layer.batch * layer.channels, geometry)
        chain.backward(layer.maps(layer.outputs), None, z, layer.weight(), None, None, geometry, layer.size, needs)

    return NamedLaunch(layer.name(precision, what), call)


def _product(
    layer: _Layer,
    precision: str,
    product: products.Product,
    what: str = "",
    *,
    per_sample: bool | None = None,
    frozen: bool = False,
    saved: torch.dtype | None = None,
    shares: int = 1,
) -> NamedLaunch:
    """One product: with a mask (per_sample None: without), a frozen weight, or a spectrum saved in another dtype.

    shares: that of its tile.
    """

    def call() -> None:
        geometry, per_group = layer.geometry(precision), layer.channels // layer.groups
        z = layer.spectrum(layer.batch * layer.channels, geometry, saved)
        y = layer.spectrum(layer.batch * layer.outputs, geometry)
        w = layer.spectrum(layer.outputs * per_group, geometry, torch.float32 if frozen else None)
        a, b, out = {"forward": (z, w, y), "input_gradient": (y, w, z), "weight_gradient": (y, z, w)}[product]
        sizes = products.ProductSizes(
            layer.batch, per_group, layer.outputs // layer.groups, layer.groups, geometry.modes, frozen
        )
        mask = None if per_sample is None else geometry.mask(layer.mask(per_sample))
        with pinned({} if shares == 1 else {products.CONTRACT.name: {"shares": shares}}):
            products.contract(a, b, out, product, sizes, mask, geometry.numbers)

    return NamedLaunch(layer.name(precision, f"{product} {what}"), call)


def _mask_gradient(layer: _Layer, precision: str) -> NamedLaunch:
    def call() -> None:
        geometry, values = layer.geometry(precision), layer.mask(per_sample=True)
        z = layer.spectrum(layer.batch * layer.channels, geometry)
        mask = geometry.mask(values)
        sizes = products.ProductSizes(layer.batch, layer.channels, layer.outputs, 1, geometry.modes)
        assert mask is not None
        products.mask_gradient_launch(z, z, mask, values, sizes, geometry.numbers).run()

    return NamedLaunch(layer.name(precision, "one mask per sample"), call)


_STAGE_1 = _Layer(128, 64, 64, (32, 32), 3)
_STAGE_3 = _Layer(128, 256, 256, (8, 8), 3)
_STAGE_4 = _Layer(128, 512, 512, (4, 4), 3)
_LARGE = _Layer(32, 64, 64, (56, 56), 7)
_SERIES = _Layer(64, 128, 256, (270,), 5)
_DEPTHWISE = _Layer(8, 128, 128, (96, 96), 7, groups=128)
_LAYERS = (_STAGE_1, _STAGE_3, _LARGE, _SERIES)
_PER_SAMPLE = "one mask per sample"

FINGERPRINTS = (
    *(_forward(layer, precision) for layer in _LAYERS for precision in ("tf32x3", "tf32", "bf16", "fp32")),
    *(_weight(layer, "tf32x3") for layer in _LAYERS),
    _backward(_STAGE_1, "tf32x3", "dx", chain.Needs(True, False, False, False)),
    _backward(_STAGE_1, "tf32x3", "dw", chain.Needs(False, True, False, False)),
    _saving_bf16(_STAGE_1, "tf32x3"),
    _product(_STAGE_1, "tf32x3", "weight_gradient", "saved bf16", saved=torch.bfloat16),
    _product(_STAGE_1, "tf32x3", "forward", "shared mask", per_sample=False),
    _product(_STAGE_1, "tf32x3", "input_gradient", _PER_SAMPLE, per_sample=True),
    _product(_STAGE_1, "tf32x3", "weight_gradient", _PER_SAMPLE, per_sample=True),
    _mask_gradient(_STAGE_1, "tf32x3"),
    _product(_STAGE_1, "tf32x3", "input_gradient", "frozen", frozen=True),
    _product(_STAGE_1, "tf32", "forward", "frozen", frozen=True),
    _product(_STAGE_1, "bf16", "forward", "frozen", frozen=True),
    _product(_STAGE_4, "tf32x3", "forward"),
    _product(_STAGE_4, "tf32x3", "forward", "2 shares", shares=2),
    _product(_DEPTHWISE, "tf32x3", "forward"),
    _product(_DEPTHWISE, "tf32x3", "input_gradient"),
    _product(_DEPTHWISE, "tf32x3", "weight_gradient"),
)
