"""The functions of the compiled library on tensors; see `dft_native.cpp`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spectralkernels.convolution.dft_native.build import library
from spectralkernels.convolution.dft_native.folding import Fold

_Long = ctypes.c_int64
LARGEST_BLOCK = 8
"""Rows of a batch whose spectra lie together: as many as one product takes at most."""


class _Modes(ctypes.Structure):
    _fields_ = [*((name, _Long) for name in ("axes", "ku", "rows", "kv")), ("reach", ctypes.POINTER(_Long))]


class _Side(ctypes.Structure):
    _fields_ = [
        *((name, _Long) for name in ("height", "width", "front_height", "front_width")),
        ("matrices", ctypes.c_void_p),
    ]


class _Sizes(ctypes.Structure):
    _fields_ = [(name, _Long) for name in ("batch", "groups", "inputs", "outputs", "block")]


class _Mask(ctypes.Structure):
    _fields_ = [("weights", ctypes.c_void_p), ("of_row", _Long)]


class _Taps(ctypes.Structure):
    _fields_ = [(name, _Long) for name in ("of_out", "of_in", "of_group")]


class _Frozen(ctypes.Structure):
    _fields_ = [("turn", ctypes.c_void_p), ("places", ctypes.c_void_p), ("of_part", _Long), ("conjugate", _Long)]


@dataclass(frozen=True, slots=True)
class NativeSizes:
    """batch: of the maps. inputs: channels per group that are analysed or reduced. outputs: those that are made."""

    batch: int
    groups: int
    inputs: int
    outputs: int

    @property
    def block(self) -> int:
        """Rows of the batch whose spectra lie together."""
        return -(-self.batch // -(-self.batch // LARGEST_BLOCK))


def lanes(dtype: torch.dtype) -> int:
    """Planes that one register holds."""
    return int(library().dft_native_vector_bytes()) // dtype.itemsize


def panel() -> int:
    """Columns of a matrix that lie together; see `folding`."""
    return int(library().dft_native_panel())


def spectrum_numbers(modes: int, sizes: NativeSizes, dtype: torch.dtype) -> int:
    """Numbers of the spectrum that `analyse` makes, with lanes that hold nothing."""
    blocks = -(-sizes.batch // sizes.block) * sizes.groups * -(-sizes.inputs // lanes(dtype))
    return blocks * modes * 2 * sizes.block * lanes(dtype)


@dataclass(frozen=True, slots=True)
class KeptModes:
    """The modes of a band: the axes of its grid n, and |u| < kept on each.

    reach: of a staircase, the rows |u| < reach[v] that its column v has; the other modes of the band are holes, which
        have a place in memory and no value. Empty without holes.
    """

    n: tuple[int, ...]
    kept: tuple[int, ...]
    reach: tuple[int, ...] = ()

    @property
    def rows(self) -> int:
        return min(2 * self.kept[0] - 1, self.n[0]) if len(self.n) == 2 else 1

    @property
    def count(self) -> int:
        """F, with holes."""
        return self.rows * self.kept[-1]


@dataclass(frozen=True, slots=True)
class Frozen:
    """What moves the modes of a frozen weight, which are given for the weight, to the centre of its kernels.

    turn: Complex [F], see `folding.to_the_centre`. places: Int64 [F], where each mode is among those given, -1 for one
        that is not and counts as zero; None: in order. of_part: numbers from real to imaginary parts. conjugate: the
        turned modes.
    """

    turn: Tensor
    places: Tensor | None
    of_part: int
    conjugate: bool


def analyse(kept: KeptModes, side: Fold, sizes: NativeSizes, maps: Tensor, mask: Tensor | None = None) -> Tensor:
    """Maps [batch, groups * inputs, *size] -> their spectrum, opaque, zero in holes; times mask [batch or 1, F]."""
    numbers = spectrum_numbers(kept.count, sizes, maps.dtype)
    z = maps.new_zeros(numbers) if kept.reach else maps.new_empty(numbers)
    _call("analyse", maps, _modes(kept), _side(side), _sizes(sizes), _mask(mask), maps, z)
    return z


def convolve(
    kept: KeptModes,
    side: Fold,
    output: Fold,
    sizes: NativeSizes,
    taps: Sequence[int],
    z: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    mask: Tensor | None = None,
    frozen: Frozen | None = None,
) -> None:
    """y = E (m Z conj(D w)) + bias into y, w, or the modes of a frozen one, by its strides (out, in, group)."""
    arguments = _modes(kept), _side(side), _side(output), _sizes(sizes), _Taps(*taps), _frozen(frozen), _mask(mask)
    _call("convolve", y, *arguments, z, weight, bias, y)


def weight_gradient(kept: KeptModes, side: Fold, sizes: NativeSizes, g: Tensor, z: Tensor, dw: Tensor) -> None:
    """D^T (conj(G) Z) into dw."""
    _call("weight_gradient", dw, _modes(kept), _side(side), _sizes(sizes), g, z, dw)


def convolve_lanes(
    kept: KeptModes,
    input_: Fold,
    side: Fold,
    output: Fold,
    sizes: NativeSizes,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    mask: Tensor | None = None,
    frozen: Frozen | None = None,
) -> None:
    """The whole convolution into y, groups in lanes."""
    sides = _side(input_), _side(side), _side(output)
    where = _modes(kept), *sides, _sizes(sizes), _frozen(frozen), _mask(mask)
    _call("convolve_lanes", y, *where, x, weight, bias, y)


def convolve_lanes_backward(
    kept: KeptModes,
    sides: Sequence[Fold],
    sizes: NativeSizes,
    dy: Tensor,
    x: Tensor | None,
    weight: Tensor,
    dx: Tensor | None,
    dw: Tensor | None,
    mask: Tensor | None = None,
    frozen: Frozen | None = None,
) -> None:
    """Its gradients into dx and dw, where given. sides: analysis of dy, x and w, synthesis of dx and dw."""
    folds = [_side(side) for side in sides]
    where = _modes(kept), *folds, _sizes(sizes), _frozen(frozen), _mask(mask)
    _call("convolve_lanes_backward", dy, *where, dy, x, weight, dx, dw)


def _call(name: str, like: Tensor, *arguments: ctypes.Structure | Tensor | None) -> None:
    function = getattr(library(), f"dft_native_{name}_{str(like.dtype).removeprefix('torch.')}")
    converted = [
        ctypes.byref(argument)
        if isinstance(argument, ctypes.Structure)
        else ctypes.c_void_p(None if argument is None else _address(argument))
        for argument in arguments
    ]
    if function(*converted) != 0:
        raise MemoryError("dft_native found no memory for the planes that a thread holds")


def _address(tensor: Tensor) -> int:
    address = tensor.data_ptr()
    if address == tensor.storage_offset() * tensor.itemsize and tensor.numel() > 0:  # counted from no memory
        raise RuntimeError("dft_native was given a tensor whose memory was freed, or that never had any")
    return address


def _modes(kept: KeptModes) -> _Modes:
    series = len(kept.n) == 1
    reach = (_Long * len(kept.reach))(*kept.reach) if kept.reach else None
    return _Modes(len(kept.n), 1 if series else kept.kept[0], kept.rows, kept.kept[-1], reach)


def _mask(weights: Tensor | None) -> _Mask:
    """weights: contiguous [batch or 1, F]."""
    if weights is None:
        return _Mask(None, 0)
    return _Mask(_address(weights), weights.shape[1] if len(weights) > 1 else 0)


def _frozen(frozen: Frozen | None) -> _Frozen:
    if frozen is None:
        return _Frozen(None, None, 0, 0)
    places = None if frozen.places is None else frozen.places.data_ptr()
    return _Frozen(frozen.turn.data_ptr(), places, frozen.of_part, frozen.conjugate)


def _side(side: Fold) -> _Side:
    return _Side(*side.lengths, *side.front, side.matrices.data_ptr())


def _sizes(sizes: NativeSizes) -> _Sizes:
    return _Sizes(sizes.batch, sizes.groups, sizes.inputs, sizes.outputs, sizes.block)
