"""The linear maps of a convolution by truncated DFT, for bands and mode lists alike: transforms, products, transposes.

The spectrum of a weight is larger than weight, maps and their spectra together (9 MB for 64 x 64 channels at 276 modes,
each number used 2 B times), so that on a CPU it is never whole: a few modes are transformed, multiplied and forgotten
while they are in cache, and the gradient of the weight is made the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spectralkernels.constants import Recalled
from spectralkernels.convolution.geometry import HALVES, compute_dtype
from spectralkernels.convolution.modal import correlate, multiply, multiply_transposed
from spectralkernels.dft import ListedDFT, SteppedDFT, stepped_dft
from spectralkernels.stages import staged

Ints = Sequence[int]
Transform = SteppedDFT | ListedDFT
Transforms = tuple[Transform, Transform, Transform]
"""Of x, of the kernel, and the transpose of the inverse onto y."""

# About how many bytes of the weight's spectrum to hold at a time on a CPU. Between 2.5 and 5 MB the times of K3 to K31
# differ by at most 7 %, either way; with all of it at once (9 MB) K3 takes 12 to 15 % longer.
PIECE_BYTES = 3 << 20


@staged("transform")
def analyse(maps: Tensor, transform: Transform) -> Tensor:
    """Maps [A, B, *size] -> modes [F, 2, A * B], in the dtype of the computation."""
    return transform.analyse(_planes(maps))


@staged("inverse")
def synthesise(modes: Tensor, transform: Transform, lengths: Sequence[int], bias: Tensor | None = None) -> Tensor:
    """Modes [F, 2, A, B] -> maps [A, B, *lengths] + bias [B], contiguous."""
    count, _, a, b = modes.shape
    maps = transform.synthesise(modes.view(count, 2, a * b)).view(a, b, *lengths)
    if bias is None:
        return maps.contiguous()
    # The sum brings the planes into order on its way, so that it costs no pass of its own.
    bias = (bias if bias.dtype == maps.dtype else bias.to(maps.dtype)).view(-1, *(1,) * len(lengths))
    return torch.add(maps, bias, out=maps.new_empty(maps.shape))


@staged("multiply")
def product(z: Tensor, w: Tensor, out_channels: int, batch: int, groups: int) -> Tensor:
    """Z [F, 2, B * C] conj(W [F, 2, O * C / groups]) -> [F, 2, B, O]."""
    y = z.new_empty(len(z), 2, batch, out_channels)
    channels = w.shape[2] // out_channels * groups
    multiply(z, channels, [(slice(0, len(w)), w)], groups, y)
    return y


@staged("transform weight, multiply")
def weight_product(z: Tensor, weight: Tensor, transform: Transform, batch: int, groups: int) -> Tensor:
    """Z [F, 2, B * C] conj(D weight [O, C / groups, *kernel]) -> [F, 2, B, O]."""
    out_channels, channels = weight.shape[:2]
    modes, planes = transform.modes, _planes(weight)
    y = z.new_empty(modes, 2, batch, out_channels)
    pieces = transform.stream(planes, _piece(transform, z, out_channels * channels))
    multiply(z, channels * groups, pieces, groups, y)
    return y


@staged("multiply")
def product_transposed(g: Tensor, w: Tensor, groups: int) -> Tensor:
    """dZ = G [F, 2, B, O] W [F, 2, O * C / groups]: [F, 2, B, C]."""
    dz = g.new_empty(*g.shape[:3], w.shape[2] // g.shape[3] * groups)
    multiply_transposed(g, [(slice(0, len(w)), w)], groups, dz)
    return dz


@staged("transform weight, multiply")
def weight_product_transposed(g: Tensor, weight: Tensor, transform: Transform, groups: int) -> Tensor:
    """dZ = G [F, 2, B, O] (D weight): [F, 2, B, C]."""
    dz = g.new_empty(*g.shape[:3], weight.shape[1] * groups)
    planes = _planes(weight)
    multiply_transposed(g, transform.stream(planes, _piece(transform, g, len(planes))), groups, dz)
    return dz


@staged("gradient of the weight")
def weight_gradient(g: Tensor, z: Tensor, like: Tensor, transform: Transform, groups: int) -> Tensor:
    """D^T (conj(G [F, 2, B, O]) Z [F, 2, B * C]), of the shape and dtype of the weight `like`."""
    z = z.unflatten(2, (g.shape[2], like.shape[1] * groups))
    planes = like.shape[0] * like.shape[1]
    buffer = g.new_empty(0)

    def part(where: slice) -> Tensor:
        nonlocal buffer
        shape = (where.stop - where.start, 2, *like.shape[:2])
        if len(buffer) < shape[0]:
            buffer = g.new_empty(shape)
        correlate(g[where], z[where], groups, buffer[: shape[0]])
        return buffer[: shape[0]].flatten(2)

    found = transform.gather(part, planes, _piece(transform, g, planes))
    return found.reshape(like.shape).to(like.dtype).contiguous()


def _planes(maps: Tensor) -> Tensor:
    """[A, B, *size] -> [A * B, height, width]; a series has height 1."""
    shape = maps.shape
    height = shape[2] if len(shape) == 4 else 1
    planes = maps.float() if maps.dtype in HALVES else maps
    return planes.reshape(shape[0] * shape[1], height, shape[-1])


def _piece(transform: Transform, modes: Tensor, planes: int) -> int:
    """How many modes of a weight to hold at a time."""
    if not modes.is_cpu:  # launches cost more than the memory
        return max(1, transform.modes)
    return max(1, PIECE_BYTES // max(1, 2 * modes.element_size() * planes))


def transforms_of(
    like: Tensor,
    size: Ints,
    starts: Ints,
    kernel: Ints,
    n: Ints,
    kept: Ints,
    out: Ints,
    stride: Ints | None = None,
    dilation: Ints | None = None,
) -> Transforms:
    """D of maps and of the kernel, and the transpose of E, in the dtype of the computation and on the device of `like`.

    A band is a staircase of one step. starts: where the kernel begins.
    """
    of_x, _, of_y = transforms_of_maps(like, size, n, kept, out, stride)
    return of_x, band_transform(like, starts, kernel, n, kept, False, dilation), of_y


def transforms_of_maps(
    like: Tensor, size: Ints, n: Ints, kept: Ints, out: Ints, stride: Ints | None = None
) -> tuple[Transform, None, Transform]:
    """The same where the modes of the kernel are given."""
    origin = (0,) * len(n)
    return band_transform(like, origin, size, n, kept), None, band_transform(like, origin, out, n, kept, True, stride)


def band_transform(
    like: Tensor, starts: Ints, lengths: Ints, n: Ints, kept: Ints, inverse: bool = False, steps: Ints | None = None
) -> Transform:
    """One of them; steps: a stride or a dilation."""
    return stepped_dft(*_arguments(like, starts, lengths, n, kept, inverse, steps))


def kept_transform(
    like: Tensor, starts: Ints, lengths: Ints, n: Ints, kept: Ints, inverse: bool = False, steps: Ints | None = None
) -> Recalled[Transform]:
    """The same for a plan, which holds no tensor."""
    return Recalled(stepped_dft, *_arguments(like, starts, lengths, n, kept, inverse, steps))


def _arguments(
    like: Tensor, starts: Ints, lengths: Ints, n: Ints, kept: Ints, inverse: bool, steps: Ints | None
) -> tuple[Any, ...]:
    dtype, spacing = compute_dtype(like.dtype), spacing_of(steps)
    return tuple(n), ((kept[-1], kept[0]),), tuple(starts), tuple(lengths), inverse, dtype, like.device, spacing


def spacing_of(steps: Ints | None) -> tuple[int, ...] | None:
    """A stride or a dilation as the transforms know it, which share their matrices where every step is 1."""
    return None if steps is None or all(step == 1 for step in steps) else tuple(steps)
