"""The chain of launches behind `dft_triton`, forward and backward; what it allocates is outputs and spectra."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from spectralkernels.constants import planned
from spectralkernels.convolution.dft_triton.launches import products, transforms
from spectralkernels.convolution.dft_triton.layout import Layout, cells_of
from spectralkernels.convolution.dft_triton.matrices import Transform
from spectralkernels.convolution.dft_triton.precision import PRECISIONS, ChainPrecision
from spectralkernels.launch import Launch
from spectralkernels.target import target_capability


@dataclass(frozen=True, slots=True)
class ChainGeometry:
    """The modes, where the kernel's first tap lies, the groups and the accuracy class of a convolution."""

    layout: Layout
    starts: tuple[int, ...]
    groups: int
    precision: str

    @property
    def numbers(self) -> ChainPrecision:
        return PRECISIONS[self.precision]

    @property
    def modes(self) -> int:
        return self.layout.modes_v * self.layout.modes_u

    def map(self, size: tuple[int, ...], inverse: bool = False) -> Transform:
        """The transform of maps of this size that begin at the circle's origin."""
        return _transform(self.layout, (0,) * len(size), size, inverse, True)

    def taps(self, kernel: tuple[int, ...]) -> Transform:
        """The transform of a kernel."""
        return _transform(self.layout, self.starts, kernel, False, False)

    def mask(self, values: Tensor | None) -> products.Mask | None:
        """A mask with the places of the modes in it."""
        if values is None:
            return None
        return products.Mask(values, cells_of(self.layout, values.device))


_transform = planned(Transform)


class Needs(NamedTuple):
    """Which gradients a backward pass must give."""

    x: bool
    weight: bool
    bias: bool
    mask: bool


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None,
    out_channels: int,
    geometry: ChainGeometry,
    out: tuple[int, ...],
    relu: bool = False,
    *,
    z: Tensor | None = None,
    kept: Tensor | None = None,
    w: Tensor | None = None,
    frozen: bool = False,
) -> Tensor:
    """y [B, O, *out] from x and a weight, or (weight None) from the spectrum w of one.

    z, w: spectra [V, U, 2, planes] of x and of the weight that are to be filled; None leaves them in the workspace.
    kept: a spectrum like z in another dtype, which is filled, too. frozen: see `products.ProductSizes`.
    """
    planes = {"y": x.shape[0] * out_channels}
    planes |= {"z": x.shape[0] * x.shape[1]} if z is None else {}
    planes |= {"w": out_channels * x.shape[1] // geometry.groups} if w is None else {}
    space = _workspace(planes, geometry, x.device)
    z, w = space.get("z", z), space.get("w", w)
    assert z is not None and w is not None
    _analyse(x, None, z, geometry.map(tuple(x.shape[2:])), geometry, kept=kept)
    if weight is not None:
        _analyse(weight, None, w, geometry.taps(tuple(weight.shape[2:])), geometry)
    sizes = _sizes(x.shape[0], x.shape[1], out_channels, geometry, frozen)
    products.contract(z, w, space["y"], "forward", sizes, geometry.mask(mask), geometry.numbers)
    y = torch.empty((x.shape[0], out_channels, *out), dtype=x.dtype, device=x.device)
    _synthesise(space["y"], bias, y, geometry.map(out, inverse=True), relu, geometry)
    return y


def planned_forward(
    shape: tuple[int, ...],
    out_channels: int,
    geometry: ChainGeometry,
    out: tuple[int, ...],
    relu: bool,
    dtype: torch.dtype,
    device: torch.device,
    *,
    kernel: tuple[int, ...] | None,
    biased: bool,
    mask: Tensor | None = None,
) -> Callable[..., Tensor]:
    """`forward` of contiguous maps of a shape, a dtype and a device, without what a backward pass needs.

    kernel: sides of the weight that it is called with; None where it is called with the spectrum of a frozen one.
    mask: one of the shape and dtype of those that it is called with behind x, weight and bias; None without one.
    """
    (batch, channels, *size), groups, numbers = shape, geometry.groups, geometry.numbers
    counts = (batch * out_channels, batch * channels, *(() if kernel is None else (out_channels * channels // groups,)))
    room, places = _places(geometry.layout, *counts)
    of_y, of_z, *of_w = (where for where, _ in places)
    capability, sizes = target_capability(device), _sizes(batch, channels, out_channels, geometry, kernel is None)

    def analysis(transform: Transform, planes: int) -> Callable[[dict[str, Tensor | None]], Launch]:
        return transforms.analysis(transform, transforms.Planes(planes), numbers, capability).on(device)

    analyse = analysis(geometry.map(tuple(size)), counts[1])
    analyse_weight = None if kernel is None else analysis(geometry.taps(kernel), counts[2])
    contract = products.contraction("forward", sizes, *products.weighted_by(geometry.mask(mask)), numbers, capability)
    inverse = geometry.map(out, inverse=True)
    synthesise = transforms.synthesis(inverse, counts[0], out_channels if biased else 1, relu, numbers, capability).on(
        device
    )
    storage, answer = numbers.storage, (batch, out_channels, *out)

    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor | None = None) -> Tensor:
        space = torch.empty((room,), dtype=storage, device=device)
        z, modes, w = space[of_z], space[of_y], weight
        analyse({"x_ptr": x, "gate_ptr": None, "z_ptr": z, "kept_ptr": None}).run()
        if analyse_weight is not None:
            w = space[of_w[0]]
            analyse_weight({"x_ptr": weight, "gate_ptr": None, "z_ptr": w, "kept_ptr": None}).run()
        contract.run(z, w, modes, geometry.mask(mask))
        y = torch.empty(answer, dtype=dtype, device=device)
        synthesise({"z_ptr": modes, "bias_ptr": bias, "y_ptr": y}).run()
        return y

    return forward


def backward(
    dy: Tensor,
    gate: Tensor | None,
    z: Tensor | None,
    weight: Tensor,
    w: Tensor | None,
    mask: Tensor | None,
    geometry: ChainGeometry,
    size: tuple[int, ...],
    needs: Needs,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dx, dw, db, dmask), those not needed empty.

    gate: y where a relu followed, else None. z: None where neither dw nor dmask is needed. w: the spectrum of the
    weight if it was kept, else it is made again.
    """
    batch, out_channels, per_group, groups = dy.shape[0], dy.shape[1], weight.shape[1], geometry.groups
    channels = per_group * groups
    sizes = _sizes(batch, channels, out_channels, geometry, frozen=w is not None)
    weights, numbers = geometry.mask(mask), geometry.numbers
    planes = {"g": batch * out_channels}
    planes |= {"dz": batch * channels} if needs.x or needs.mask else {}
    # The spectra of the weight and of its gradient do not live at the same time.
    planes |= {"w": out_channels * per_group} if needs.weight or ("dz" in planes and w is None) else {}
    space = _workspace(planes, geometry, dy.device)
    g, taps = space["g"], geometry.taps(tuple(weight.shape[2:]))
    _analyse(dy, gate, g, geometry.map(tuple(dy.shape[2:]), inverse=True), geometry)
    dx, dw, db, dmask = dy.new_empty(0), weight.new_empty(0), weight.new_empty(0), dy.new_empty(0)
    if needs.x or needs.mask:
        dz = space["dz"]
        if w is None:
            w, order = space["w"], transforms.transposed_weight(out_channels, per_group, groups)
            _analyse(weight, None, w, taps, geometry, order)
        later = weights if needs.mask else None
        now = None if needs.mask else weights
        products.contract(g, w, dz, "input_gradient", sizes, now, numbers)
        if later is not None and z is not None:
            dmask = torch.zeros(later.values.shape, dtype=torch.float32, device=dy.device)
            products.mask_gradient_launch(z, dz, later, dmask, sizes, numbers).run()
        if needs.x:
            dx = torch.empty((batch, channels, *size), dtype=dy.dtype, device=dy.device)
            _synthesise(dz, None, dx, geometry.map(size), False, geometry)
    if needs.weight and z is not None:
        products.contract(g, z, space["w"], "weight_gradient", sizes, weights, numbers)
        dw = torch.empty_like(weight)
        _synthesise(space["w"], None, dw, taps, False, geometry)
    if needs.bias:
        db = _bias_gradient(dy, gate, g, geometry).to(weight.dtype)
    return dx, dw, db, dmask


def frozen_backward(
    dy: Tensor,
    gate: Tensor | None,
    w: Tensor,
    channels: int,
    geometry: ChainGeometry,
    size: tuple[int, ...],
    needs: tuple[bool, bool],
) -> tuple[Tensor, Tensor]:
    """(dx, db), those not needed empty, with the spectrum of a frozen weight."""
    need_x, need_bias = needs
    batch, out_channels = dy.shape[:2]
    planes = {"g": batch * out_channels} | ({"dz": batch * channels} if need_x else {})
    space = _workspace(planes, geometry, dy.device)
    g = space["g"]
    _analyse(dy, gate, g, geometry.map(tuple(dy.shape[2:]), inverse=True), geometry)
    dx, db = dy.new_empty(0), dy.new_empty(0)
    if need_x:
        sizes = _sizes(batch, channels, out_channels, geometry, frozen=True)
        products.contract(g, w, space["dz"], "input_gradient", sizes, None, geometry.numbers)
        dx = torch.empty((batch, channels, *size), dtype=dy.dtype, device=dy.device)
        _synthesise(space["dz"], None, dx, geometry.map(size), False, geometry)
    if need_bias:
        db = _bias_gradient(dy, gate, g, geometry).to(dy.dtype)
    return dx, db


def spectrum(planes: int, geometry: ChainGeometry, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """A spectrum [V, U, 2, planes] that is not yet filled, by default in the dtype of the class."""
    layout = geometry.layout
    shape = (layout.modes_v, layout.modes_u, 2, planes)
    return torch.empty(shape, dtype=dtype or geometry.numbers.storage, device=device)


ALIGNED = 128
"""Numbers after which a spectrum may begin in a workspace: at least 256 bytes, as the allocator itself gives."""


def _workspace(planes: dict[str, int], geometry: ChainGeometry, device: torch.device) -> dict[str, Tensor]:
    """Named spectra of so many planes, not yet filled, in one allocation."""
    room, places = _places(geometry.layout, *planes.values())
    whole = torch.empty((room,), dtype=geometry.numbers.storage, device=device)
    return {name: whole[where].view(shape) for name, (where, shape) in zip(planes, places, strict=True)}


@planned
def _places(layout: Layout, *planes: int) -> tuple[int, tuple[tuple[slice, tuple[int, ...]], ...]]:
    """How many numbers a workspace of spectra of so many planes holds; where each lies, and its shape."""
    places, room = [], 0
    for count in planes:
        shape = (layout.modes_v, layout.modes_u, 2, count)
        places.append((slice(room, room + math.prod(shape)), shape))
        room += -(-math.prod(shape) // ALIGNED) * ALIGNED
    return room, tuple(places)


def _bias_gradient(dy: Tensor, gate: Tensor | None, g: Tensor, geometry: ChainGeometry) -> Tensor:
    if not geometry.layout.mean_first:
        gated = dy if gate is None else dy * (gate > 0)
        return gated.sum((0, *range(2, dy.dim())), dtype=torch.float32)
    # The mean's mode already holds the sum over each plane, divided by sqrt(N).
    sums = g[0, 0, 0].view(dy.shape[0], dy.shape[1]).sum(0, dtype=torch.float32)
    return sums * math.sqrt(math.prod(geometry.layout.n))


def _sizes(
    batch: int, channels: int, out_channels: int, geometry: ChainGeometry, frozen: bool
) -> products.ProductSizes:
    groups = geometry.groups
    return products.ProductSizes(batch, channels // groups, out_channels // groups, groups, geometry.modes, frozen)


def _analyse(
    maps: Tensor,
    gate: Tensor | None,
    z: Tensor,
    transform: Transform,
    geometry: ChainGeometry,
    order: transforms.Planes | None = None,
    kept: Tensor | None = None,
) -> None:
    """Fill the spectrum z [V, U, 2, A B] of maps [A, B, *lengths], planes in the given order."""
    order = order or transforms.Planes(maps.shape[0] * maps.shape[1])
    transforms.analyse_launch(maps, gate, z, transform, order, geometry.numbers, kept).run()


def _synthesise(
    modes: Tensor, bias: Tensor | None, y: Tensor, transform: Transform, relu: bool, geometry: ChainGeometry
) -> None:
    planes = y.shape[0] * y.shape[1]
    transforms.synthesise_launch(modes, bias, y, transform, planes, relu, geometry.numbers).run()
