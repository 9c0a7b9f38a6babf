"""Root mean square of maps from their half spectra in one Triton launch (imports triton)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from spectralkernels.launch import Launch, NamedLaunch
from spectralkernels.operators import operator
from spectralkernels.ops.threshold_spectrum import baselines
from spectralkernels.ops.threshold_spectrum.activation import power_of_two_near
from spectralkernels.sparse.bitmap import BLOCK
from spectralkernels.sparse.kernels import as_int64, imaginary, real

NUM_WARPS = 4
LEAST = 2.0**-100
"""What squares below 2^-126 lack of a mean that is larger than this, is less than half a bit of float32."""


@triton.jit
def total_power(y_ptrs, scale, SIZE: tl.constexpr, COLUMNS: tl.constexpr, EVEN: tl.constexpr, BLOCK: tl.constexpr):
    """The sum of |scale Y|^2 over the full spectrum of a map, of which SIZE coefficients are there.

    Columns other than the self-conjugate ones stand for two coefficients of the full spectrum (Parseval's theorem).
    """
    power = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, SIZE, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        y = tl.load(y_ptrs + offs, mask=offs < SIZE, other=0)
        re, im = scale * real(y), scale * imaginary(y)
        column = offs % COLUMNS
        alone = column == 0
        if EVEN:
            alone = alone | (column == COLUMNS - 1)
        power += (re * re + im * im) * tl.where(alone, 1.0, 2.0)
    return tl.sum(power, axis=0)


@triton.jit
def largest_part(y_ptrs, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """The largest magnitude of a real or imaginary part of a map."""
    largest = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, SIZE, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        y = tl.load(y_ptrs + offs, mask=offs < SIZE, other=0)
        largest = tl.maximum(largest, tl.maximum(tl.abs(real(y)), tl.abs(imaginary(y))))
    return tl.max(largest, axis=0)


@triton.jit
def rms_kernel(
    y_ptr,
    rms_ptr,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
    EVEN: tl.constexpr,
    CELLS: tl.constexpr,
    LEAST: tl.constexpr,
    BLOCK: tl.constexpr,
    AGAIN: tl.constexpr,
):
    """One program owns one map: reads its SIZE coefficients of 8 bytes, writes the root mean square of its CELLS cells.

    Squares of float32 overflow above 2^64 and lose digits below 2^-63: a map whose mean square is not finite, or below
    LEAST, is read twice more, for its largest part and for the squares beside that. NaN for one that is not finite.
    """
    y_ptrs = y_ptr + tl.program_id(0).to(tl.int64) * SIZE
    mean_square = total_power(y_ptrs, 1.0, SIZE, COLUMNS, EVEN, BLOCK) * (1.0 / CELLS)
    unit = 1.0
    if ((mean_square >= LEAST) & (mean_square < float("inf"))) == 0:
        # in blocks of their own, so that no register of the usual way waits for this one
        scale = tl.minimum(power_of_two_near(largest_part(y_ptrs, SIZE, AGAIN)), 2.0**126)
        mean_square = total_power(y_ptrs, scale, SIZE, COLUMNS, EVEN, AGAIN) * (1.0 / CELLS)
        unit = power_of_two_near(scale)  # 1 / scale
    rms = tl.sqrt_rn(mean_square) * unit
    tl.store(rms_ptr + tl.program_id(0), tl.where(rms < float("inf"), rms, float("nan")))


@operator("map_rms", dense=True)
def map_rms(y_hat: Tensor, n: int) -> Tensor:
    """Root mean square of each map in one launch, from its ortho-normalised half spectrum.

    y_hat: Complex64 [..., U, V]. n: signal length of the last axis. Returns: as `baselines.map_rms`, Float32 [planes].
    """
    return _launch(y_hat, n)


def _launch(y_hat: Tensor, n: int) -> Tensor:
    rows, columns = y_hat.shape[-2:]
    rms = torch.empty(y_hat.numel() // (rows * columns), dtype=torch.float32, device=y_hat.device)
    Launch(
        kernel=rms_kernel,
        grid=(rms.numel(),),
        arguments={
            "y_ptr": as_int64(y_hat),
            "rms_ptr": rms,
            "SIZE": rows * columns,
            "COLUMNS": columns,
            "EVEN": n % 2 == 0,
            "CELLS": rows * n,
            "LEAST": LEAST,
            "BLOCK": min(triton.next_power_of_2(rows * columns), BLOCK),
            "AGAIN": 32 * NUM_WARPS,
        },
        options={"num_warps": NUM_WARPS},
    ).run()
    return rms


@map_rms.register_fake
def _(y_hat: Tensor, n: int) -> Tensor:
    return y_hat.new_empty(y_hat.numel() // (y_hat.shape[-2] * y_hat.shape[-1]), dtype=torch.float32)


# Of a spectrum without a derivative, for whatever torch.func does besides.
map_rms.register_composed(baselines.map_rms)


def _watched(columns: int, n: int) -> NamedLaunch:
    y_hat = torch.empty(128, 64, n, columns, dtype=torch.complex64, device="meta")
    return NamedLaunch(f"B128 C64 {n}x{columns}", lambda: _launch(y_hat, n))


FINGERPRINTS = (_watched(18, 34), _watched(17, 33), _watched(30, 58))
