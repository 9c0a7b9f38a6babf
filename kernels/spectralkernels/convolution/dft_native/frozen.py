"""The modes of a frozen weight in the order that the library reads, made once per `WeightSpectrum`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from spectralkernels.convolution.dft_native import library
from spectralkernels.convolution.dft_native.folding import to_the_centre
from spectralkernels.convolution.dft_native.library import Kept, Sizes

# Packed modes live as long as the spectrum that they were made of: as many bytes again, twice that for training.
_PACKED: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def packed_modes(
    modes: Tensor, band: Kept, sizes: Sizes, centre_doubled: tuple[int, ...], in_lanes: bool, *, transposed: bool
) -> Tensor:
    """Modes [F, 2, O * C / groups] of `dft` -> those of the kernel about its centre, in lanes.

    in_lanes: groups are, [block of groups, F, 2, out * in, lanes]; else channels are,
        [group, block of out, F, 2, in, lanes] or, transposed, [group, block of in, F, 2, out, lanes] of the conjugate.
    """
    key = (modes._version, band, sizes.groups, sizes.outputs, centre_doubled, in_lanes, transposed and not in_lanes)
    found = _PACKED.setdefault(modes, {})
    if key not in found:
        found[key] = _pack(modes, band, sizes, centre_doubled, in_lanes, transposed)
    packed: Tensor = found[key]
    return packed


def _pack(
    modes: Tensor, band: Kept, sizes: Sizes, centre_doubled: tuple[int, ...], in_lanes: bool, transposed: bool
) -> Tensor:
    factor = to_the_centre(band.n, band.kept, centre_doubled, modes.dtype.to_complex()).unsqueeze(1)
    centred = torch.complex(modes[:, 0], modes[:, 1]) * factor
    # The sign by hand: `conj` only marks a tensor, and torch.compile's runtime was seen to lose the mark in here.
    imaginary = -centred.imag if transposed and not in_lanes else centred.imag
    shape = (len(modes), 2, sizes.groups, sizes.outputs, sizes.inputs)
    parts = torch.stack([centred.real, imaginary], dim=1).view(shape)
    if in_lanes:
        parts = _in_lanes(parts.flatten(3), 2)  # [F, 2, block, lanes, out * in]
        return parts.permute(2, 0, 1, 4, 3).contiguous()
    if transposed:
        parts = parts.transpose(3, 4)
    return _in_lanes(parts, 3).permute(2, 3, 0, 1, 5, 4).contiguous()


def _in_lanes(parts: Tensor, axis: int) -> Tensor:
    """An axis as [block, lanes], filled up with zeros."""
    lanes = library.lanes(parts.dtype)
    missing = -parts.shape[axis] % lanes
    padded = F.pad(parts, [0, 0] * (parts.dim() - 1 - axis) + [0, missing])
    return padded.unflatten(axis, (-1, lanes))
