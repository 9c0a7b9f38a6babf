"""The chain of launches behind `dft_triton`, forward and backward; what it allocates is outputs and spectra."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spectralkernels.convolution.dft_triton import plans
from spectralkernels.convolution.dft_triton.matrices import Transform
from spectralkernels.convolution.dft_triton.precision import PRECISIONS, Precision


@dataclass(frozen=True, slots=True)
class Geometry:
    """The circle, the band, where the kernel's first tap lies, the groups and the accuracy class of a convolution."""

    n: tuple[int, ...]
    kept: tuple[int, ...]
    starts: tuple[int, ...]
    groups: int
    precision: str

    @property
    def numbers(self) -> Precision:
        return PRECISIONS[self.precision]

    def map(self, size: tuple[int, ...], inverse: bool = False) -> Transform:
        """The transform of maps of this size that begin at the circle's origin."""
        return Transform(self.n, self.kept, (0,) * len(self.n), size, inverse, scaled=True)

    def taps(self, kernel: tuple[int, ...]) -> Transform:
        """The transform of a kernel."""
        return Transform(self.n, self.kept, self.starts, kernel, inverse=False, scaled=False)


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, out: tuple[int, ...], relu: bool
) -> tuple[Tensor, Tensor]:
    """(y [B, O, *out], Z [V, U, 2, B C]); x and weight are contiguous."""
    batch, out_channels = x.shape[0], weight.shape[0]
    z = _analyse(x, None, geometry.map(tuple(x.shape[2:])), geometry)
    w = _analyse(weight, None, geometry.taps(tuple(weight.shape[2:])), geometry)
    modes = _spectrum(z, batch * out_channels)
    sizes = (batch, weight.shape[1], out_channels // geometry.groups, geometry.groups)
    _contract(z, w, modes, "forward", sizes, geometry)
    y = torch.empty((batch, out_channels, *out), dtype=x.dtype, device=x.device)
    _synthesise(modes, bias, y, geometry.map(out, inverse=True), relu, geometry)
    return y, z


def backward(
    dy: Tensor,
    gate: Tensor | None,
    z: Tensor,
    weight: Tensor,
    geometry: Geometry,
    size: tuple[int, ...],
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dw, db), those not needed empty. gate: y where a relu followed, else None."""
    need_x, need_weight, need_bias = needs
    batch, out_channels = dy.shape[:2]
    per_group, groups = weight.shape[1], geometry.groups
    sizes = (batch, per_group, out_channels // groups, groups)
    g = _analyse(dy, gate, geometry.map(tuple(dy.shape[2:]), inverse=True), geometry)
    taps = geometry.taps(tuple(weight.shape[2:]))
    dx, dw, db = dy.new_empty(0), weight.new_empty(0), weight.new_empty(0)
    if need_x:
        order = plans.transposed_weight(out_channels, per_group, groups)
        w = _analyse(weight, None, taps, geometry, order)
        dz = _spectrum(g, batch * per_group * groups)
        _contract(g, w, dz, "input_gradient", sizes, geometry)
        dx = torch.empty((batch, per_group * groups, *size), dtype=dy.dtype, device=dy.device)
        _synthesise(dz, None, dx, geometry.map(size), False, geometry)
    if need_weight:
        modes = _spectrum(g, out_channels * per_group)
        _contract(g, z, modes, "weight_gradient", sizes, geometry)
        dw = torch.empty_like(weight)
        _synthesise(modes, None, dw, taps, False, geometry)
    if need_bias:
        # The mean's mode already holds the sum over each plane, divided by sqrt(N).
        sums = g[0, 0, 0].view(batch, out_channels).sum(0, dtype=torch.float32)
        db = (sums * math.sqrt(math.prod(geometry.n))).to(weight.dtype)
    return dx, dw, db


def _spectrum(like: Tensor, planes: int) -> Tensor:
    """A spectrum of as many modes as `like`, not yet filled."""
    return torch.empty((*like.shape[:3], planes), dtype=like.dtype, device=like.device)


def _analyse(
    maps: Tensor, gate: Tensor | None, transform: Transform, geometry: Geometry, order: plans.Planes | None = None
) -> Tensor:
    """Maps [A, B, *lengths] -> spectrum [V, U, 2, A B], planes in the given order."""
    order = order or plans.Planes(maps.shape[0] * maps.shape[1])
    numbers = geometry.numbers
    shape = (transform.modes_v, transform.modes_u, 2, order.count)
    z = torch.empty(shape, dtype=numbers.storage, device=maps.device)
    plans.analyse_launch(maps, gate, z, transform, order, numbers).run()
    return z


def _contract(
    a: Tensor, b: Tensor, out: Tensor, product: plans.Product, sizes: tuple[int, int, int, int], geometry: Geometry
) -> None:
    plans.contract_launch(a, b, out, product, sizes, out.shape[0] * out.shape[1], geometry.numbers).run()


def _synthesise(
    modes: Tensor, bias: Tensor | None, y: Tensor, transform: Transform, relu: bool, geometry: Geometry
) -> None:
    planes = y.shape[0] * y.shape[1]
    plans.synthesise_launch(modes, bias, y, transform, planes, relu, geometry.numbers).run()
