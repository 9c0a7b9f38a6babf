"""Multiply a sparse half spectrum by dense weights and sum over input channels.

    Z[b, o, u, v] = sum over c of Y[b, c, u, v] * conj(W[o, c, u, v])        (correlation, like conv2d)

Source: Guan et al., "SpecNet: Spectral Domain Convolutional Neural Network", 2021, Algorithm 1: the next block reads
the sparse map of the one before.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from spectralkernels.aims import aimed, checked_aim
from spectralkernels.checks import check_like, check_tensor
from spectralkernels.constants import traced
from spectralkernels.declare import Aim, Block, Case, Cost, Decision, Implementation, Operation, Tolerance
from spectralkernels.dispatch import dispatch
from spectralkernels.errors import DtypeError, ShapeError
from spectralkernels.inputs import he_kernel
from spectralkernels.launch import triton_unavailable
from spectralkernels.ops.sparse_multiply import baselines
from spectralkernels.ops.threshold_spectrum import threshold_spectrum
from spectralkernels.sparse import SparseSpectrum
from spectralkernels.sparse.inputs import KERNEL_SIZE, convolved_spectrum, grid
from spectralkernels.spectra import half

LISTS = ("coo", "csr", "index")
OPERANDS = 3  # beside its products: a kept value and two int64 indices
FEW = 1 / 3  # share of coefficients up to which adding kept ones one by one was faster on a CPU than a dense product


def sparse_multiply(sparse: SparseSpectrum, w_hat: Tensor, *, optimise: Aim = "time", impl: str = "auto") -> Tensor:
    """Multiply a sparse half spectrum by conjugate weights and sum over input channels.

    Z[b, o, u, v] = sum over c of Y[b, c, u, v] * conj(W[o, c, u, v])

    sparse: SparseSpectrum of shape [B, C, U, V] (from `threshold_spectrum`), in any format; an implementation that
        reads another format converts it first.
    w_hat: Complex [O, C, U, V] of the same dtype and device, any strides.
    optimise: what auto looks for where a format lists its kept coefficients one by one (coo, csr, index) on a CPU. Each
        takes a row of products, one per output channel: "time" expands the spectrum where more than a third is kept,
        "memory" where those rows are larger than the expanded spectrum. Other formats have one way.
    Returns: Complex [B, O, U, V], contiguous; differentiable with respect to the sparse values and w_hat.
    Raises: DtypeError if `sparse` is no SparseSpectrum, or dtype or device differ; ShapeError if shapes do not fit;
        RangeError on an unknown implementation or aim; Unsupported if the named one cannot run here.
    Source: SpecNet (2021), Algorithm 1.
    """
    if not isinstance(sparse, SparseSpectrum):
        raise DtypeError(
            f"sparse must be a SparseSpectrum, got {type(sparse).__name__}; make one: threshold_spectrum(y_hat, beta)"
        )
    if not isinstance(w_hat, Tensor):
        raise DtypeError(f"w_hat must be a tensor of dtype {sparse.dtype}, got {type(w_hat).__name__}")
    check_tensor("w_hat", w_hat)
    check_like("w_hat", w_hat, "sparse", sparse.values)
    if len(sparse.shape) != 4:
        raise ShapeError(
            f"sparse must have shape [B, C, U, V], got {list(sparse.shape)}; threshold a batch of maps with channels"
        )
    _, channels, rows, columns = sparse.shape
    if w_hat.dim() != 4 or tuple(w_hat.shape[1:]) != (channels, rows, columns):
        raise ShapeError(
            f"w_hat must have shape [O, {channels}, {rows}, {columns}] to match the spectrum, "
            f"got {list(w_hat.shape)}; transform the kernel on the spectrum's grid"
        )
    operation = _AIMED[checked_aim(optimise)]
    output: Tensor = dispatch(operation, impl, w_hat.device.type, {"sparse": sparse, "w_hat": w_hat})
    return output


def make_inputs(case: Case, device: str) -> dict[str, Any]:
    """Thresholded spectra of convolved maps (bitmap, tanh applied), and the spectra of the next 3x3 layer's kernels."""
    shape = (case["batch"], case["in_channels"], case["height"], case["width"])
    dtype = torch.complex128 if case.dtype == "float64" else torch.complex64
    rows, n = fft_size(case)
    y_hat = convolved_spectrum(case["input"], shape, case.seed).to(device, dtype)
    kernels = he_kernel((case["out_channels"], case["in_channels"], KERNEL_SIZE, KERNEL_SIZE), case.seed + 1)
    w_hat = torch.fft.rfft2(kernels, s=(rows, n)).to(device, dtype)
    return {"sparse": threshold_spectrum(y_hat, case["beta"], n=n, impl="bitmap"), "w_hat": w_hat}


def reference(sparse: SparseSpectrum, w_hat: Tensor) -> Tensor:
    """Products broadcast one output channel at a time, then summed, in float64. Returns: Complex128 [B, O, U, V]."""
    y = sparse.to_dense().to(torch.complex128)
    out = y.new_empty(y.shape[0], w_hat.shape[0], *y.shape[2:])
    for o, w in enumerate(w_hat.to(torch.complex128)):
        out[:, o] = (y * w.conj()).sum(1)
    return out


def cost(case: Case) -> Cost:
    """Weights are read and outputs written once (8 bytes each), and one bit per input coefficient is read.

    With F = U * V: bytes >= 8 F O C + F B C / 8 + 8 F B O. Values (8 r F B C bytes) and products (8 r F B C O flops)
    depend on the kept fraction r, which is not known before the data are; one product per output is counted.
    """
    scale = 2 if case.dtype == "float64" else 1
    rows, n = fft_size(case)
    batch, channels, outputs = case["batch"], case["in_channels"], case["out_channels"]
    f = rows * half(n)
    read = 8 * scale * f * outputs * channels + f * batch * channels // 8
    return Cost(read, 8 * scale * f * batch * outputs, 8 * f * batch * outputs)


def fft_size(case: Case) -> tuple[int, ...]:
    return grid(case["height"], case["width"])


def observe(case: Case, output: Tensor) -> Mapping[str, float]:
    """The input's kept fraction, on which the crossover between sparse and dense depends; the same for all outputs."""
    return {"kept_fraction": _kept_fraction(case)}


@lru_cache(maxsize=8)
def _kept_fraction(case: Case) -> float:
    sparse: SparseSpectrum = make_inputs(case, "cpu")["sparse"]
    return sparse.density


def auto(sparse: SparseSpectrum, w_hat: Tensor, optimise: Aim = "time") -> Decision:
    """On a CPU the spectrum's own format unless it lists too many; on CUDA Triton for a bitmap, else dense.

    Adding non-zeros one by one is not reproducible on CUDA, where index_add is atomic.
    """
    if sparse.device.type == "cpu":
        if sparse.format in LISTS and not traced(sparse.values):
            kept, outputs = sparse.values.numel(), w_hat.shape[0]
            if optimise == "time" and kept > FEW * sparse.numel:
                return Decision("dense", f"{kept} of {sparse.numel} are kept, too many to add one by one")
            if optimise == "memory" and kept * (outputs + OPERANDS) > sparse.numel:
                return Decision("dense", f"{kept} rows of {outputs} products are larger than the expanded spectrum")
        return Decision(sparse.format, "the spectrum's own format, which needs no conversion")
    if sparse.format == "bitmap" and sparse.dtype == torch.complex64 and triton_unavailable("cuda") is None:
        return Decision("triton", "it reads the bitmap as it is")
    return Decision("dense", "its sums come in a fixed order on CUDA, where adding non-zeros is atomic")


def _triton(sparse: SparseSpectrum, w_hat: Tensor) -> Tensor:
    from spectralkernels.sparse.multiply import multiply

    return multiply(sparse.to_format("bitmap"), w_hat)


def _triton_supports(sparse: SparseSpectrum, **_: Any) -> str | None:
    return None if sparse.dtype == torch.complex64 else f"the kernel takes complex64, got {sparse.dtype}; use 'dense'"


def _baseline(name: Any, source: str) -> Implementation:
    return Implementation(
        name, "baseline", getattr(baselines, name), source, prepare=partial(baselines.converted, format=name)
    )


def _axes(beta: tuple[float, ...], kinds: tuple[str, ...], **others: int | tuple[int, ...]) -> dict[str, Any]:
    """Axes in declared order, of the middle-sized case unless given."""
    sizes: dict[str, Any] = {"batch": 8, "in_channels": 16, "out_channels": 16, "height": 32, "width": 32} | others
    axes = {name: size if isinstance(size, tuple) else (size,) for name, size in sizes.items()}
    return {**axes, "beta": beta, "input": kinds}


_DENSITIES = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)

OPERATION = Operation(
    name="sparse_multiply",
    summary="sparse half spectrum times conjugate weights, summed over input channels",
    version=1,
    source="SpecNet (2021), Algorithm 1",
    profiles={
        "smoke": (
            Block(
                _axes((0.5,), ("white",), batch=2, in_channels=3, out_channels=2, height=(6, 9), width=(7, 8)),
                passes=("forward", "both"),
            ),
        ),
        "quick": (Block(_axes((0.5, 1.0, 1.5, 3.0), ("pink", "photo"))),),
        "study": (
            Block(_axes(_DENSITIES, ("pink", "photo"))),
            Block(_axes((0.5, 1.0, 1.5, 3.0), ("pink",)), passes=("both",)),
            Block(_axes((1.0, 2.0, 4.0), ("pink",), in_channels=64, out_channels=64, height=16, width=16)),
            Block(_axes((1.0, 2.0, 4.0), ("pink",), batch=(1, 32), height=(8, 16), width=16)),
        ),
        "gpu": (
            Block(_axes(_DENSITIES, ("pink", "photo"), batch=128, in_channels=64, out_channels=64)),
            Block(
                _axes((1.0, 2.0), ("pink",), batch=(32, 128), in_channels=(64, 256), out_channels=(64, 256), height=16)
                | {"width": (16,)},
                where=lambda case: case["in_channels"] == case["out_channels"],
            ),
        ),
        "asv": (Block(_axes((0.5, 1.0, 1.5, 3.0), ("pink",))),),
    },
    make_inputs=make_inputs,
    reference=reference,
    cost=cost,
    fft_size=fft_size,
    tolerance=Tolerance(
        {"float32": 3e-6, "float64": 1e-14},
        "float32 sums over at most a few hundred channels: sqrt(channels) roundings, about 3e-7 is seen",
    ),
    implementations=(
        _baseline("dense", "dense contraction of the expanded spectrum"),
        _baseline("coo", "non-zeros from int64 coordinates"),
        _baseline("csr", "non-zeros from row pointers and columns"),
        _baseline("index", "non-zeros from a flat int32 index"),
        _baseline("bitmap", "bits and packed values expanded, then a dense contraction"),
        Implementation(
            "triton",
            "kernel",
            _triton,
            "ours, after load-sparse compute-dense (Flash-LLM) with empty tiles skipped",
            engine="triton",
            available=triton_unavailable,
            supports=_triton_supports,
            prepare=partial(baselines.converted, format="bitmap"),
        ),
    ),
    auto=auto,
    observe=observe,
    gradients=("w_hat",),
    aims=("time", "memory"),
)
_AIMED = aimed(OPERATION)
