"""The modes of a frozen weight in the order that the library reads.

Made anew by every call: what is remembered by a tensor's identity and version is wrong where its numbers are changed
beneath both, which the gate of the harness does.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from spectralkernels.convolution.dft_native import library
from spectralkernels.convolution.dft_native.folding import to_the_centre
from spectralkernels.convolution.dft_native.library import Kept, Sizes


def packed_modes(
    modes: Tensor, band: Kept, sizes: Sizes, centre_doubled: tuple[int, ...], in_lanes: bool, *, transposed: bool
) -> Tensor:
    """Modes [F, 2, O * C / groups] of `dft` -> those of the kernel about its centre, in lanes.

    in_lanes: groups are, [block of groups, F, 2, out * in, lanes]; else channels are,
        [group, block of out, F, 2, in, lanes] or, transposed, [group, block of in, F, 2, out, lanes] of the conjugate.
    """
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
