"""Half spectra of zero-padded real planes, and the gradient back to the planes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from spectralkernels.spectra import half
from spectralkernels.stages import staged

Norm = Literal["backward", "ortho"]


@staged("transform")
def half_spectrum(planes: Tensor, shape: Sequence[int], n: int, norm: Norm) -> Tensor:
    """Complex [..., U, V] of planes padded to [U, n], where [U, V] ends `shape`; a spectrum is given back as it is.

    norm: "ortho" for maps, "backward" (no factor) for kernels.
    """
    if planes.is_complex():
        return planes
    rows = shape[-2]
    if planes.numel() == 0:
        # FFT libraries refuse an empty batch
        padded = torch.nn.functional.pad(planes, (0, n - planes.shape[-1], 0, rows - planes.shape[-2]))
        return torch.complex(padded, padded)[..., : half(n)]
    return torch.fft.rfft2(planes, s=(rows, n), norm=norm)


@staged("inverse")
def half_spectrum_adjoint(grad: Tensor, size: Sequence[int], n: int, norm: Norm) -> Tensor:
    """The gradient of planes of `size` from that of their half spectrum.

    A sum over the stored half, not an inverse transform: columns are neither doubled nor made Hermitian.
    """
    if grad.numel() == 0:
        return grad.new_zeros(*grad.shape[:-2], *size, dtype=grad.real.dtype)
    # "forward" puts the factor on the forward transform: the inverse one has none
    inverse: Literal["forward", "ortho"] = "forward" if norm == "backward" else "ortho"
    rows = torch.fft.ifft(grad, dim=-2, norm=inverse)[..., : size[0], :]
    return torch.fft.ifft(rows, n=n, dim=-1, norm=inverse)[..., : size[1]].real.contiguous()
