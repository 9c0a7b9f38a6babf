"""Threshold a half spectrum by magnitude, activate what is kept in the frequency domain, and store it sparse (SpecNet).

    Z = tanh(Re Y) + i tanh(Im Y)  where |Y| > beta,  0 elsewhere

Source: Guan et al., "SpecNet: Spectral Domain Convolutional Neural Network", 2021, equations 3 and 4, Algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from spectralkernels.aims import aimed, checked_aim
from spectralkernels.checks import as_flag, as_integer, check_tensor, checked_beta, is_batched
from spectralkernels.constants import traced
from spectralkernels.declare import Aim, Block, Case, Cost, Decision, Implementation, Operation, Tolerance
from spectralkernels.dispatch import dispatch
from spectralkernels.errors import DtypeError, RangeError, ShapeError
from spectralkernels.launch import triton_unavailable
from spectralkernels.operators import on_host, operator
from spectralkernels.ops.threshold_spectrum import baselines
from spectralkernels.sparse import SparseSpectrum, too_large
from spectralkernels.sparse.inputs import convolved_spectrum, grid
from spectralkernels.spectra import half, hermitian_weights

ACTIVATIONS = ("tanh", "none")
LARGEST_MAP = 2**30  # the kernel finds the partner's row by 2 u in int32


def threshold_spectrum(
    y_hat: Tensor,
    beta: float | Tensor,
    *,
    activation: str | None = "tanh",
    relative: bool = False,
    n: int | None = None,
    optimise: Aim = "memory",
    impl: str = "auto",
) -> SparseSpectrum:
    """Keep the coefficients of a half spectrum whose magnitude exceeds beta, activate them, and store them sparse.

    Z = tanh(Re Y) + i tanh(Im Y) where |Y| > beta (strictly; NaN is kept), 0 elsewhere. The columns v = 0 and, for even
    n, v = n / 2 hold both coefficients of a conjugate pair (rows u and -u mod U); a pair is kept if either exceeds
    beta, so that the inverse transform stays real. beta makes sense for maps transformed with norm="ortho".

    y_hat: Complex64 or Complex128 [..., U, V], the rfft2 of real maps, any strides.
    beta: >= 0, a number or a tensor of one, rounded to y_hat's precision; `relative` multiplies it by the root mean
        square of each map [U, V]; a map with an infinite one keeps everything. `torch.func.vmap` may be over it.
    activation: "tanh", or None (also "none") to store Y itself.
    n: signal length of the last axis, 2 (V - 1) or 2 (V - 1) + 1; default 2 (V - 1), like torch.fft.irfft2. The result
        carries what was passed, so that a `spec_block` need not be told again.
    optimise: what auto looks for. "memory" takes a bitmap: on a CPU without gaps, so that what is held and what is
        saved for backward shrink with what is kept; on CUDA, and while tracing, in slots for all coefficients, which
        wait for nothing and which `compact()` trims. "time" takes what is computed soonest: on a CPU "dense".
    impl: names the format too (dense, coo, csr, index, bitmap, bitmap_compact); "triton" writes a bitmap. coo, csr,
        index and bitmap_compact have a size that depends on the data, so they wait for the device.
    Returns: SparseSpectrum of y_hat's shape, device and dtype. Derivatives in either mode reach the kept coefficients
        only. A magnitude within rounding of beta may fall on either side of it in different implementations, never in
        different runs; forward mode and torch.func decide as the implementations in torch do.
    Raises: DtypeError if y_hat is not complex64 or complex128; ShapeError on fewer than two axes, an empty axis U or V,
        or an n that does not fit V; RangeError on a NaN or negative beta or an unknown activation, aim or
        implementation; Unsupported if the named implementation cannot run here.
    Source: SpecNet (2021), Algorithm 1, lines "where" and "tanh".
    """
    if not isinstance(y_hat, Tensor) or y_hat.dtype not in (torch.complex64, torch.complex128):
        got = y_hat.dtype if isinstance(y_hat, Tensor) else type(y_hat).__name__
        raise DtypeError(
            f"y_hat must be a complex64 or complex128 tensor, got {got}; "
            "transform a real map first: torch.fft.rfft2(y, norm='ortho')"
        )
    check_tensor("y_hat", y_hat)
    if y_hat.dim() < 2 or 0 in y_hat.shape[-2:]:
        raise ShapeError(f"y_hat must have shape [..., U, V] with U, V >= 1, got {list(y_hat.shape)}; add the axes")
    columns, asked = y_hat.shape[-1], n
    n = None if n is None else as_integer("n", n)
    if n is None:
        n = max(1, 2 * (columns - 1))
    if n < 1 or half(n) != columns:
        raise ShapeError(
            f"n must be a signal length with {columns} half-spectrum columns "
            f"({max(1, 2 * columns - 2)} or {2 * columns - 1}), got {n}; pass the last axis of the map"
        )
    beta = checked_beta(beta)
    if not isinstance(beta, Tensor):
        limit: float | Tensor = _rounded(beta, y_hat.dtype)
    else:
        limit = beta if is_batched(beta) else _checked_later(beta)
    name = "none" if activation is None else activation
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise RangeError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
    inputs = {
        "y_hat": y_hat,
        "beta": limit,
        "activation": name,
        "relative": as_flag("relative", relative),
        "n": n,
    }
    output: SparseSpectrum = dispatch(_AIMED[checked_aim(optimise)], impl, y_hat.device.type, inputs)
    return replace(output, n=asked)


@operator("checked_beta")
def _checked_later(beta: Tensor) -> Tensor:
    """A threshold that is not known before the graph runs, in float64. RangeError on what is none."""
    return torch.full((), float(checked_beta(beta)), dtype=torch.float64, device=beta.device)


@_checked_later.register_fake
def _(beta: Tensor) -> Tensor:
    return beta.new_empty((), dtype=torch.float64)


def make_inputs(case: Case, device: str) -> dict[str, Any]:
    """The ortho-normalised spectrum of feature maps after a fresh 3x3 layer (full convolution), and its threshold.

    Magnitudes within 1e-5 of the threshold are scaled by 1 + 3e-5, so that no two correct implementations disagree on
    what is kept: one coefficient on the other side would outweigh every rounding error. They are about 1e-5 of all.
    """
    batch, channels, height, width = (case[name] for name in ("batch", "channels", "height", "width"))
    real = torch.float64 if case.dtype == "float64" else torch.float32
    y_hat = convolved_spectrum(case["input"], (batch, channels, height, width), case.seed).to(device)
    y_hat = y_hat.to(real.to_complex())
    n = grid(height, width)[1]
    beta = _rounded(case["beta"], y_hat.dtype)
    y_hat = away_from_threshold(y_hat, beta, case["relative"], n)
    return {"y_hat": y_hat, "beta": beta, "activation": "tanh", "relative": case["relative"], "n": n}


def away_from_threshold(y_hat: Tensor, beta: float, relative: bool, n: int) -> Tensor:
    """`y_hat` with the magnitudes that lie within 1e-5 of the threshold scaled by 1 + 3e-5."""
    limit = torch.full((), beta, dtype=torch.float64, device=y_hat.device)
    if relative:
        limit = (beta * baselines.map_rms(y_hat, n).double()).reshape(*y_hat.shape[:-2], 1, 1)
    near = (y_hat.abs().double() - limit).abs() < 1e-5 * limit
    return torch.where(near, y_hat * (1.0 + 3e-5), y_hat)


def reference(y_hat: Tensor, beta: float, activation: str, relative: bool, n: int) -> Tensor:
    """The dense answer in float64, pairs found by index arithmetic on the given numbers. Returns: Complex128."""
    y = y_hat.to(torch.complex128)
    power = y.real**2 + y.imag**2
    rows, columns = y.shape[-2:]
    limit = torch.full((), beta, dtype=torch.float64, device=y.device)
    if relative:
        weights = hermitian_weights(n, columns).to(y.device)
        limit = beta * ((power * weights).sum((-2, -1), keepdim=True) / (rows * n)).sqrt()
    partner_row = (-torch.arange(rows, device=y.device)) % rows
    pair = torch.maximum(power, power[..., partner_row, :])
    decisive = torch.where(_self_conjugate_columns(n, y.device), pair, power)
    z = torch.complex(y.real.tanh(), y.imag.tanh()) if activation == "tanh" else y
    return torch.where(decisive > limit**2, z, 0.0)


def ideal(y_hat: Tensor, beta: float, activation: str, relative: bool, n: int) -> Tensor:
    """Every coefficient kept, same activation: the distance to it is what the threshold alone costs."""
    return reference(y_hat, 0.0, activation, False, n)


def cost(case: Case) -> Cost:
    """Every coefficient is read once (8 bytes) and one bit written; values written, 8 r, depend on the data.

    With n = batch * channels * U * V coefficients: bytes >= n (8 + 1/8), flops >= 4 n (two squares, sum, comparison).
    The tanh of the r n kept ones is not counted: r is not known before the data are.
    """
    scale = 2 if case.dtype == "float64" else 1
    rows, n = fft_size(case)
    coefficients = case["batch"] * case["channels"] * rows * half(n)
    return Cost(8 * scale * coefficients, coefficients // 8, 4 * coefficients)


def fft_size(case: Case) -> tuple[int, ...]:
    return grid(case["height"], case["width"])


def observe(case: Case, output: SparseSpectrum) -> Mapping[str, float]:
    return {"kept_fraction": output.density, "stored_bytes": float(output.nbytes)}


def auto(y_hat: Tensor, beta: float | Tensor, optimise: Aim = "memory", **_: Any) -> Decision:
    """On CUDA the Triton kernel for complex64; elsewhere a bitmap without gaps, or for time the dense map."""
    if not is_batched(beta) and y_hat.is_cuda and y_hat.dtype == torch.complex64 and triton_unavailable("cuda") is None:
        return Decision("triton", "one launch on CUDA writes bits and packed values; compact() trims the slots")
    if optimise == "time":
        return Decision("dense", "of torch's formats it takes the least time: nothing is packed")
    if y_hat.is_cuda or traced(y_hat) or is_batched(y_hat) or is_batched(beta):
        return Decision("bitmap", "a bit per coefficient, in slots that wait for no count; compact() trims them")
    return Decision("bitmap_compact", "a bit per coefficient and the kept values without gaps take the least memory")


def _triton(y_hat: Tensor, beta: float, activation: str, relative: bool, n: int) -> SparseSpectrum:
    from spectralkernels.ops.threshold_spectrum.kernels import threshold_bitmap
    from spectralkernels.ops.threshold_spectrum.rms import map_rms

    rms = map_rms(y_hat.detach(), n) if relative else None
    values, words = threshold_bitmap(y_hat, on_host(beta), rms, activation == "tanh", n)
    return SparseSpectrum(tuple(y_hat.shape), "bitmap", values, (words,))


def _triton_supports(y_hat: Tensor, beta: float | Tensor, **_: Any) -> str | None:
    if is_batched(beta):
        return "the kernel takes one threshold, got those of a vmap; use impl='bitmap' or impl='dense'"
    if y_hat.dtype != torch.complex64:
        return f"the kernel takes complex64, got {y_hat.dtype}; use impl='bitmap'"
    if math.prod(y_hat.shape[-2:]) >= LARGEST_MAP:
        return f"the kernel takes maps of fewer than 2^30 coefficients, got {list(y_hat.shape[-2:])}; use impl='bitmap'"
    return too_large(y_hat, "bitmap")


def _int32_supports(format: Any, y_hat: Tensor, **_: Any) -> str | None:
    return too_large(y_hat, format)


def _compact_supports(y_hat: Tensor, **_: Any) -> str | None:
    if traced(y_hat):
        return "its size depends on the data, which a trace does not know; use impl='bitmap'"
    return too_large(y_hat, "bitmap")


def _rounded(beta: float, dtype: torch.dtype) -> float:
    """beta in the precision of the magnitudes, so that a coefficient written as beta is not greater than beta."""
    if dtype == torch.complex128 or torch.compiler.is_compiling() or beta == math.inf:
        return beta  # a traced number has no digits yet: `baselines.decide` and the kernel round it again
    # on the host: a tensor of one number would be a copy to the device, which a CUDA graph refuses
    fraction, exponent = math.frexp(beta)
    digits = min(24, exponent + 149)
    rounded = math.ldexp(round(math.ldexp(fraction, digits)), exponent - digits)
    return rounded if rounded < 2.0**128 else math.inf


def _self_conjugate_columns(n: int, device: torch.device) -> Tensor:
    columns = torch.arange(half(n), device=device)
    return (columns == 0) | (2 * columns == n)


def _axes(beta: tuple[float, ...], kinds: tuple[str, ...], **others: Any) -> dict[str, tuple[Any, ...]]:
    """Axes in declared order, of the middle-sized case unless given."""
    axes = {"batch": 8, "channels": 16, "height": 32, "width": 32, "beta": beta, "relative": False, "input": kinds}
    return {name: value if isinstance(value, tuple) else (value,) for name, value in (axes | others).items()}


def _square(case: Case) -> bool:
    return bool(case["height"] == case["width"])


_SPECNET = "SpecNet (2021), Algorithm 1"

OPERATION = Operation(
    name="threshold_spectrum",
    summary="keep |Y| > beta of a half spectrum, tanh on real and imaginary parts, store sparse",
    version=1,
    source=_SPECNET,
    profiles={
        "smoke": (
            Block(
                _axes((0.5,), ("white",), batch=2, channels=3, height=(6, 9), width=(7, 8), relative=(False, True)),
                passes=("forward", "both"),
            ),
        ),
        "quick": (
            Block(_axes((0.5, 1.0, 1.5), ("pink", "photo"))),
            Block(_axes((1.0,), ("pink",)), passes=("both",)),
        ),
        "study": (
            Block(_axes((0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0), ("pink", "photo"))),
            Block(_axes((0.5, 1.0, 1.5), ("pink", "photo", "white"), relative=True)),
            Block(_axes((0.5, 1.0, 1.5), ("pink",), channels=(4, 64))),
            Block(_axes((0.5, 1.0, 1.5), ("pink",), height=(8, 16, 56), width=(8, 16, 56)), where=_square),
            Block(_axes((0.5, 1.0, 1.5), ("pink",), height=(16, 56), width=(16, 56)), passes=("both",), where=_square),
        ),
        "gpu": (
            # The row that targets are set for, timed first.
            Block(_axes((1.0,), ("pink",), batch=128, channels=64), passes=("forward", "both")),
            Block(
                _axes(
                    (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0),
                    ("pink", "photo"),
                    batch=128,
                    channels=64,
                    relative=(False, True),
                )
            ),
            Block(
                _axes((1.0,), ("pink",), batch=(32, 128), channels=(64, 256), height=(8, 16, 56), width=(8, 16, 56)),
                where=_square,
            ),
        ),
        "asv": (Block(_axes((0.5, 1.0, 1.5, 2.0), ("pink",))),),
    },
    make_inputs=make_inputs,
    reference=reference,
    ideal=ideal,
    cost=cost,
    fft_size=fft_size,
    tolerance=Tolerance(
        {"float32": 2e-6, "float64": 1e-14},
        "tanh and one rounding per kept coefficient: about 1e-7 is seen in float32, and a wrong decision costs 1e-3",
    ),
    implementations=(
        Implementation("dense", "baseline", baselines.dense, f"{_SPECNET}, as written"),
        Implementation("coo", "baseline", baselines.coo, "torch.sparse_coo's layout"),
        Implementation("csr", "baseline", baselines.csr, "CSR", supports=partial(_int32_supports, "csr")),
        Implementation(
            "index", "baseline", baselines.index, "values and flat index", supports=partial(_int32_supports, "index")
        ),
        Implementation(
            "bitmap",
            "baseline",
            baselines.bitmap,
            "zero-value compression (cDMA, arXiv 1705.01626)",
            supports=partial(_int32_supports, "bitmap"),
        ),
        Implementation(
            "bitmap_compact",
            "baseline",
            baselines.bitmap_compact,
            "the same without gaps between the blocks",
            supports=_compact_supports,
        ),
        Implementation(
            "triton",
            "kernel",
            _triton,
            "ours: threshold, tanh, bitmap and packing in one launch, and one before it for a relative beta",
            engine="triton",
            available=triton_unavailable,
            supports=_triton_supports,
        ),
    ),
    auto=auto,
    dense=SparseSpectrum.to_dense,
    observe=observe,
    gradients=("y_hat",),
    aims=("memory", "time"),
)
_AIMED = aimed(OPERATION)
