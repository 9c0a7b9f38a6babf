"""Crop a half spectrum to its band and restore it with zeros: what surrounds a band-limited product.

    y = R C x,     C: the rows |u| < k_h and columns v < k_w, an L of two corners;  R = C^T: zeros elsewhere

The band is that of `spectra.kept_2d` (T2). Dziedzic et al. 2019 (section 6.1.1) keep the corners S1 (u >= 0) and S2
(u < 0) apart, slightly faster, or one behind the other, simpler. The DFTs of `dft_gemm` do neither: what a transform
leaves out needs no crop. R C is idempotent, its own transpose, and at c = 0 nothing.

Floor: what is kept in, all of it out. An operation is counted for each number kept: a roofline knows no zero.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spectralkernels.checks import as_number, check_compression, check_dims, check_tensor
from spectralkernels.constants import constant
from spectralkernels.declare import Block, Case, Cost, Decision, Implementation, Operation, Scalar, Tolerance
from spectralkernels.dispatch import dispatch
from spectralkernels.errors import DtypeError
from spectralkernels.inputs import feature_map
from spectralkernels.spectra import full_frequencies, half, kept_2d


def crop_restore(x_hat: Tensor, compression: float, *, impl: str = "auto") -> Tensor:
    """Leave the band of a half spectrum as it is and make the rest zero, by way of the cropped spectrum.

    x_hat: Complex [batch, channel, N_h, N_w // 2 + 1], any strides, as torch.fft.rfft2 makes it.
    compression: fraction of coefficients to drop, 0 <= c < 1.
    Returns: Complex, shape and dtype of x_hat. Differentiable.
    Raises: ShapeError, DtypeError, RangeError on arguments that do not fit; Unsupported if `impl` cannot run here.
    """
    check_tensor("x_hat", x_hat)
    check_dims("x_hat", x_hat, "[batch, channel, rows, columns]")
    if not x_hat.is_complex():
        raise DtypeError(f"x_hat must be complex, got {x_hat.dtype}; pass a spectrum (rfft2)")
    compression = as_number("compression", compression)
    check_compression(compression)
    kept = kept_cells((x_hat.shape[2], x_hat.shape[3]), compression)
    y: Tensor = dispatch(OPERATION, impl, x_hat.device.type, {"x_hat": x_hat, "kept": kept})
    return y


def kept_cells(plane: tuple[int, int], compression: float) -> tuple[int, int]:
    """k of the rows and of the columns of a half spectrum: |u| < k_h, v < k_w."""
    rows, columns = plane
    # Of the half axis only N // 2 + 1 is known and asked for, which 2 (N // 2) has as well.
    return kept_2d(rows, compression), kept_2d(2 * (columns - 1), compression)


# --- implementations ------------------------------------------------------------------------------------------------


def _corners(x_hat: Tensor, kept: tuple[int, int]) -> Tensor:
    """S1 and S2 apart, each copied once on the way out and once on the way back."""
    upper, lower = (corner.contiguous() for corner in _split(x_hat, kept))
    return _between(x_hat, upper, lower)


def _concatenated(x_hat: Tensor, kept: tuple[int, int]) -> Tensor:
    """S1 and S2 one behind the other: as `torch_fft` holds them."""
    upper, lower = _split(x_hat, kept)
    cropped = torch.cat([upper, lower], dim=2)
    return _between(x_hat, cropped[:, :, : upper.shape[2]], cropped[:, :, upper.shape[2] :])


def _split(x_hat: Tensor, kept: tuple[int, int]) -> tuple[Tensor, Tensor]:
    rows, count = x_hat.shape[2], len(full_frequencies(x_hat.shape[2], kept[0]))
    band = x_hat[..., : kept[1]]
    return band[:, :, : kept[0]], band[:, :, rows - (count - kept[0]) :]


def _between(like: Tensor, upper: Tensor, lower: Tensor) -> Tensor:
    """The corners with zeros between and behind them."""
    restored = upper.new_zeros(like.shape)
    restored[:, :, : upper.shape[2], : upper.shape[3]] = upper
    restored[:, :, like.shape[2] - lower.shape[2] :, : upper.shape[3]] = lower
    return restored


def _indexed(x_hat: Tensor, kept: tuple[int, int]) -> Tensor:
    """The cropped spectrum by a list of rows, put back by the same list."""
    rows = _rows(x_hat.shape[2], kept[0], x_hat.device)
    cropped = x_hat[..., : kept[1]].index_select(2, rows)
    restored = cropped.new_zeros(*x_hat.shape[:3], kept[1]).index_copy(2, rows, cropped)
    return F.pad(restored, (0, x_hat.shape[3] - kept[1]))


def _mask(x_hat: Tensor, kept: tuple[int, int]) -> Tensor:
    """No crop: times a mask."""
    rows = torch.zeros(x_hat.shape[2], dtype=torch.bool, device=x_hat.device)
    rows[_rows(x_hat.shape[2], kept[0], x_hat.device)] = True
    columns = torch.arange(x_hat.shape[3], device=x_hat.device) < kept[1]
    return x_hat * (rows.unsqueeze(1) & columns)


@constant
def _rows(n: int, kept: int, device: torch.device) -> Tensor:
    return torch.tensor(full_frequencies(n, kept), device=device)


# --- declaration ----------------------------------------------------------------------------------------------------


def _plane(case: Case) -> tuple[int, int]:
    return case["n"], half(case["n"])


def _inputs(case: Case, device: str) -> dict[str, Any]:
    x = feature_map(case["input"], (case["batch"], case["channels"], case["n"], case["n"]), case.seed)
    x_hat = torch.fft.rfft2(x.double(), norm="ortho").to(device=device, dtype=getattr(torch, case.dtype))
    return {"x_hat": x_hat, "kept": kept_cells(_plane(case), case["compression"])}


def _reference(x_hat: Tensor, kept: tuple[int, int]) -> Tensor:
    """Every cell is asked for its frequency."""
    rows = x_hat.shape[2]
    keep = [[min(u, rows - u) < kept[0] and v < kept[1] for v in range(x_hat.shape[3])] for u in range(rows)]
    return x_hat.to(torch.complex128) * torch.tensor(keep, device=x_hat.device)


def _kept_share(case: Case) -> float:
    (rows, columns), (high, wide) = _plane(case), kept_cells(_plane(case), case["compression"])
    return len(full_frequencies(rows, high)) * wide / (rows * columns)


def _cost(case: Case) -> Cost:
    whole = case["batch"] * case["channels"] * math.prod(_plane(case)) * getattr(torch, case.dtype).itemsize
    kept, itemsize = round(whole * _kept_share(case)), getattr(torch, case.dtype).itemsize
    return Cost(bytes_read=kept, bytes_written=whole, flops=kept // itemsize)


def _observe(case: Case, output: Tensor) -> Mapping[str, float]:
    return {"achieved_compression": 1.0 - _kept_share(case), "kept_fraction": _kept_share(case)}


_SHAPE: dict[str, tuple[Scalar, ...]] = {
    "batch": (8,),
    "channels": (64,),
    "n": (33,),
    "compression": (0.5,),
    "input": ("pink",),
}
_TINY = {
    **_SHAPE,
    "batch": (2,),
    "channels": (3,),
    "n": (1, 2, 7, 8),
    "compression": (0.0, 0.5, 0.99),
    "input": ("white",),
}

PROFILES: dict[str, tuple[Block, ...]] = {
    "smoke": (Block(_TINY, dtypes=("complex64",), passes=("forward", "both")),),
    "quick": (Block(_SHAPE, dtypes=("complex64",)),),
    "study": (
        Block(
            {**_SHAPE, "n": (8, 17, 33, 59, 64, 128), "compression": (0.1, 0.5, 0.85)},
            dtypes=("complex64",),
            passes=("forward", "both"),
        ),
    ),
    "gpu": (Block({**_SHAPE, "batch": (128,)}, dtypes=("complex64",), passes=("forward", "both")),),
    "asv": (Block(_SHAPE, dtypes=("complex64",)),),
}

OPERATION = Operation(
    name="crop_restore",
    summary="crop a half spectrum to its band and restore it with zeros, the corners apart or together",
    version=1,
    source="Dziedzic et al., Band-limited Training and Inference for CNNs, ICML 2019, sections 3.2.3 and 6.1.1",
    profiles=PROFILES,
    make_inputs=_inputs,
    reference=_reference,
    ideal=lambda x_hat, kept: x_hat.to(torch.complex128),
    cost=_cost,
    fft_size=lambda case: (case["n"], case["n"]),
    tolerance=Tolerance({"complex64": 0.0, "complex128": 0.0}, because="it computes nothing"),
    implementations=(
        Implementation("corners", "kernel", _corners, "S1 and S2 apart"),
        Implementation("concatenated", "baseline", _concatenated, "S1 and S2 in one tensor"),
        Implementation("indexed", "baseline", _indexed, "rows by index_select and index_copy"),
        Implementation("mask", "baseline", _mask, "times a mask, without a crop"),
    ),
    auto=lambda **inputs: Decision("mask", "one pass over memory, where a crop and its restoration are two"),
    observe=_observe,
    gradients=("x_hat",),
)
