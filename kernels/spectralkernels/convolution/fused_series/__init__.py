"""Depthwise band-limited 1-D convolution of series up to 4096 long, fused into one Triton launch (exact backward).

    y = E (D x . conj(D_w w)) + b      one load of x, one store of y; the kernel's own transform is part of the launch

Two forms, the cheaper of which a call gets (`geometry.form`):

one stage   D is one matrix [2 F, L]: any N, also a prime one. 8 L F operations per series there and back. In `dense`.
two stages  N = N1 N2 after Cooley and Tukey: a product of radix N1 over rows, twiddle factors, a product of radix N2
            over columns, of which the band drops its share and the sign of a frequency costs nothing:
            4 L (N1 / 2 + 1) + 4 N2 F' operations each way, F' = F up to the tiles. In `two_level`.

Prediction for 8 series in each of 768 channels, bf16, half of the spectrum dropped, on an H200 (4.3 TB/s, 790 TFLOP/s,
132 multiprocessors that issue 4 instructions a cycle at 1.75 GHz), microseconds, padding included:

    L     N               bytes   operations     warp instructions   slowest: share of the floor in bytes
    1024  1029 = 21 x 49    5.9    3.2 G   4.1    1604 a series 10.7   55 %
    1024  1088 = 17 x 64    5.9    2.4 G   3.1    1212           8.1   73 %
    2048  2112 = 33 x 64   11.7    6.4 G   8.2    1928          12.8   91 %
    4096  4116 = 42 x 98   23.4   25.8 G  32.6    3372          22.4   72 %
    4096  4160 = 65 x 64   23.4   19.3 G  24.5    3112          20.7   96 %

Products of 64 rows and 32 to 128 columns seldom pass half of a tensor core's peak: at 400 TFLOP/s the last row takes
48 us, 49 % of the floor. What overlaps is not known without a GPU. A circle that is no multiple of 64 pays for padding
and narrow loads; `grid` may be any size that fits, so a layer that is free to choose takes 64 ceil((L + K / 2) / 64).

A backward pass is two launches and a small sum: dx by the same kernel with series and output exchanged, dw by one that
sums over the batch in registers and writes partial sums, added in a fixed order (no atomics). Saved for it are the
weight and the smaller of x (nothing is written) and its kept spectrum (written by the same launch).

Registers, shared memory and instructions per architecture are kept in tests/ops/test_fused_depthwise_1d_aot.py.
"""

from __future__ import annotations

from torch import Tensor

from spectralkernels.constants import planned
from spectralkernels.convolution.depthwise import not_depthwise
from spectralkernels.convolution.fused.operators import fused, plan
from spectralkernels.convolution.fused.precision import UNSCALED, Precision, declared, in_every_class, precision
from spectralkernels.convolution.fused_series.geometry import LARGEST_DENSE, Digits, Form, SeriesGeometry, form
from spectralkernels.convolution.geometry import WeightSpectrum
from spectralkernels.spectra import Band
from spectralkernels.target import tensor_core

LONGEST = 4096
"""Series, output and kernel that a program can hold."""


def fused_series(
    x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, groups: int, *, accuracy: str = "tf32x3"
) -> Tensor:
    """Convolve each series with its own kernel under a band limit.

    x: Real [B, C, length]. weight: Real [C, 1, kernel]. bias: Real [C] or None. accuracy: a name of `UNSCALED`.
    Returns: Real [B, C, out], dtype of x.
    Raises: Unsupported (through `dispatch`) where `supports` has a reason; RangeError on an unknown class.
    """
    return fused(x, weight, bias, band, declared(accuracy, UNSCALED).name, 2 * band.kept[0])


def supports(
    x: Tensor,
    weight: Tensor | WeightSpectrum,
    bias: Tensor | None,
    band: Band,
    groups: int,
    *,
    accuracy: str = "tf32x3",
) -> str | None:
    """Why the fused kernel cannot serve a call, or None."""
    reason = not_depthwise(x, weight, band, groups, axes=1)
    if reason is not None:
        return reason
    return _refusal(band, accuracy, x.is_cuda and tensor_core(x.device) == "tcgen05")


@planned
def _refusal(band: Band, accuracy: str, tensor_memory: bool) -> str | None:
    """The reason that sizes are. tensor_memory: whether the maps are on a GPU whose tensor cores have their own."""
    longest = max(*band.size, *band.out, *band.kernel)
    if longest > LONGEST:
        return f"series, output and kernel must not be longer than {LONGEST}, got {longest}; take dft_triton"
    chosen = precision(accuracy)
    found = form(geometry_of(band), chosen)
    if found is None:
        aligned = -(-max(band.n[0], 64) // 64) * 64
        return (
            f"N = {band.n[0]} splits into no two factors that fit a program of class {accuracy}, and series above "
            f"{LARGEST_DENSE} need that; pass grid='fast', or grid={aligned} for the widest loads"
        )
    return tcgen05_refuses(found, chosen) if tensor_memory else None


def tcgen05_refuses(found: Form, chosen: Precision) -> str | None:
    """Why tensor cores with a memory of their own, of 512 columns, cannot serve a class, or None: a kernel that needs
    more compiles to nothing."""
    if chosen.mode == "ieee":
        return "on this GPU Triton gives float32 products to tensor cores, which round them; take tf32x3"
    if chosen.pieces > 1 and isinstance(found, Digits) and found.j > 32:
        return f"N1 = {found.n1} needs more tensor memory for {chosen.name} operands than this GPU has; take tf32"
    return None


def geometry_of(band: Band) -> SeriesGeometry:
    """The geometry of a 1-D band."""
    return SeriesGeometry(band.size[0], band.out[0], band.kernel[0], -band.pad[0][0], band.n[0], band.kept[0])


# --- declaration ----------------------------------------------------------------------------------------------------


IMPLEMENTATIONS = in_every_class(
    "fused_series",
    fused_series,
    supports,
    "depthwise truncated DFT of series, product and inverse in one Triton launch",
    UNSCALED,
    plan,
)
