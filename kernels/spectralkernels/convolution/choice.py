"""What `impl="auto"` takes for a band-limited convolution: on a CPU, the least estimated time.

Weighed are the implementations that serve the call and answer as exactly as any. None may need much more memory than
torch.fft does, so that a short call with long sides does not pay for matrices.

A long side goes to an FFT: as two products with twiddle factors between them (Cooley and Tukey), as the Triton kernels
transform series, a truncated DFT takes 1.2 to 12 times as long as rfft and a crop on one core of an AMD EPYC with
AVX-512, for 256 to 65,536 samples, 1 to 128 series and c = 0 to 0.9; 0.9 for one series of 16,384 at best.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from spectralkernels.constants import traced
from spectralkernels.convolution import estimates
from spectralkernels.convolution.cost import dft_gemm_flops, direct_flops
from spectralkernels.convolution.dft_native import build
from spectralkernels.convolution.geometry import WeightSpectrum, compute_dtype, fits_matrices
from spectralkernels.convolution.sizes import Sizes
from spectralkernels.declare import Decision
from spectralkernels.dft import too_large
from spectralkernels.spectra import Band

LONG_DEPTHWISE_SERIES = 1024
"""Samples from which an FFT per series beats a matrix, on a device that no estimate is for."""
MAP_FLOP_RATIO = 5.0
"""What a product of dft_gemm costs against one of oneDNN, K = 5 to 7 at 64 channels of 32 x 32 on a two-core CPU."""
TRACED_BATCH = 32
"""Samples that a traced call is taken to have, whatever it is traced with."""
LEAST_BYTES, MOST_RATIO = 16 << 20, 4
"""Matrices may take the former, and beyond it so many times the planes that torch.fft holds."""
BUILD_BYTES, FOLDED_BYTES = 8, 2
"""A matrix of float32 is made from indices, angles, sines and cosines in float64: bytes then, per byte kept; folded
ones have a fourth of the numbers, of which they keep all."""


def auto(x: Tensor, weight: Tensor | WeightSpectrum, bias: Tensor | None, band: Band, groups: int) -> Decision:
    """What `impl="auto"` takes. Without a band limit every way gives the same answer, and the faster runs.

    It never waits for a compiler: `dft_native` is taken where its library is there already, in the cache when this
    package was imported or loaded since. One call with `impl="dft_native"` builds it for good.
    """
    if isinstance(weight, WeightSpectrum):
        because = "the weight is frozen, so that its transform is already there"
        if (refusal := fits_matrices(x, band)) is not None:
            return Decision("torch_fft_frozen", f"{because}, and {refusal}")
        return Decision("dft_native_frozen" if library_serves(x) else "dft_gemm_frozen", because)
    if x.device.type != "cpu":
        return _unmeasured(weight, band, fits_matrices(x, band))
    if traced(x):
        return _traced(x, weight, band, groups, fits_matrices(x, band))
    training = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    return _estimated(_sizes(x, weight, band, groups), _is_plain(x, weight), build.READY, training)


def contenders(
    x: Tensor, weight: Tensor | WeightSpectrum, bias: Tensor | None, band: Band, groups: int
) -> tuple[str, ...] | None:
    """Whom `autotune` races: on a CPU those of whom `auto` estimates the time, `dft_native` built or not.

    The wrapped maps of `direct_lowpass` are at times the best where nothing is dropped, too.
    """
    if isinstance(weight, WeightSpectrum) or x.device.type != "cpu":
        return None
    found = candidates(_sizes(x, weight, band, groups), _is_plain(x, weight), built=True)
    return tuple(dict.fromkeys((*found, "direct_lowpass")))


def _sizes(x: Tensor, weight: Tensor, band: Band, groups: int) -> Sizes:
    return Sizes(len(x), x.shape[1], len(weight), groups, band, compute_dtype(x.dtype).itemsize)


def _is_plain(x: Tensor, weight: Tensor) -> bool:
    """What is not may be in channels_last, and the answer then has to be; other dtypes are slow in it."""
    return x.dtype == torch.float32 and x.is_contiguous() and weight.is_contiguous()


@lru_cache(maxsize=4096)
def _estimated(sizes: Sizes, plain: bool, built: bool, training: bool) -> Decision:
    return fastest(candidates(sizes, plain, built), sizes, training)


def candidates(sizes: Sizes, plain: bool, built: bool) -> tuple[str, ...]:
    """Who may be taken on a CPU. plain: float32, not in channels_last. built: whether the compiled library is there."""
    band = sizes.band
    names = ["torch_fft"]
    fits = too_large(band.n, band.kept, (band.size, band.kernel, band.out), sizes.itemsize) is None
    if fits and matrices_are_light(sizes):
        names.append("dft_gemm")
    if fits and built and matrices_are_light(sizes, FOLDED_BYTES):
        names.append("dft_native")
    if band.compression > 0.0:
        names.append("direct_lowpass")
    else:
        names += ["direct", "torch_fft_fast", *(("direct_converted",) if plain and len(band.n) == 2 else ())]
    return tuple(names)


def _traced(x: Tensor, weight: Tensor, band: Band, groups: int, refusal: str | None) -> Decision:
    """What torch.compile traces, by a rule of few guards: sizes may have no number, and a graph serves every batch."""
    if refusal is not None:
        return Decision("torch_fft", refusal)
    sizes = (TRACED_BATCH, x.shape[1], weight.shape[0], groups, band)
    if band.compression == 0.0 and direct_flops(*sizes) <= MAP_FLOP_RATIO * dft_gemm_flops(*sizes):
        return Decision("direct", "nothing is dropped, and the direct sum needs little arithmetic")
    return Decision(
        "dft_native" if library_serves(x) else "dft_gemm", "only kept modes are computed, by an opaque operator"
    )


def library_serves(x: Tensor) -> bool:
    """Whether the compiled library is there already. An exported graph goes to machines that may have no compiler."""
    return x.device.type == "cpu" and build.READY and not torch.compiler.is_exporting()


def _unmeasured(weight: Tensor, band: Band, refusal: str | None) -> Decision:
    if band.compression == 0.0:
        return Decision("direct", "nothing is dropped, and no GPU has been measured yet")
    if refusal is not None:
        return Decision("torch_fft", refusal)
    if weight.shape[1] == 1 and len(band.n) == 1 and band.size[0] >= LONG_DEPTHWISE_SERIES:
        return Decision("torch_fft", f"from {LONG_DEPTHWISE_SERIES} samples an FFT per series beats a matrix")
    return Decision("dft_gemm", "only kept modes are computed, as matrix products, and no GPU has been measured yet")


def matrices_are_light(sizes: Sizes, bytes_: int = BUILD_BYTES) -> bool:
    """Whether the DFT matrices of a call are small, or small beside the planes of torch.fft, while they are made.

    bytes_: held then, per byte of matrices that are not folded.
    """
    band, (of_x, of_weight, of_y) = sizes.band, sizes.planes
    planes = (of_x + of_weight + 2 * of_y) * math.prod(band.n)
    matrices = bytes_ * max(_matrix(side, sizes) for side in (band.size, band.out))
    return matrices * sizes.itemsize <= max(LEAST_BYTES, MOST_RATIO * planes * sizes.itemsize)


def _matrix(side: tuple[int, ...], sizes: Sizes) -> int:
    if sizes.cells:
        return 2 * sizes.modes * math.prod(side)
    columns = 2 * sizes.band.columns * side[-1]
    return columns if len(side) == 1 else columns + 4 * sizes.band.height * side[0]


def fastest(names: tuple[str, ...], sizes: Sizes, training: bool = False) -> Decision:
    """The implementation with the least estimated seconds, the first of equals, and who comes next."""
    seconds = {}
    for name in names:
        seconds[name] = estimates.seconds(name, sizes, training)
    first = second = names[0]
    for name in names[1:]:
        if seconds[name] < seconds[first]:
            first, second = name, first
        elif second == first or seconds[name] < seconds[second]:
            second = name
    because = "it has the least estimated time on a CPU"
    if first == second:
        return Decision(first, because)
    return Decision(first, f"{because}: {seconds[first]:.2g} s, {second} {seconds[second]:.2g} s")


remembered = lru_cache(maxsize=4096)(fastest)
