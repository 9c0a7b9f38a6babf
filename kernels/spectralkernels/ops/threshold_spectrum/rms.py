"""Root mean square of maps from their half spectra in one Triton launch (imports triton)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from spectralkernels.launch import Launch, NamedLaunch
from spectralkernels.operators import operator
from spectralkernels.ops.threshold_spectrum import baselines
from spectralkernels.sparse.bitmap import BLOCK
from spectralkernels.sparse.kernels import as_int64, imaginary, real

NUM_WARPS = 4


@triton.jit
def rms_kernel(
    y_ptr,
    rms_ptr,
    SIZE: tl.constexpr,
    COLUMNS: tl.constexpr,
    EVEN: tl.constexpr,
    CELLS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program owns one map: reads its SIZE coefficients of 8 bytes, writes the root mean square of its CELLS cells.

    Columns other than the self-conjugate ones stand for two coefficients of the full spectrum (Parseval's theorem).
    """
    plane = tl.program_id(0).to(tl.int64)
    power = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, SIZE, BLOCK):
        offs = start + tl.arange(0, BLOCK)
        y = tl.load(y_ptr + plane * SIZE + offs, mask=offs < SIZE, other=0)
        re, im = real(y), imaginary(y)
        column = offs % COLUMNS
        alone = column == 0
        if EVEN:
            alone = alone | (column == COLUMNS - 1)
        power += (re * re + im * im) * tl.where(alone, 1.0, 2.0)
    tl.store(rms_ptr + plane, tl.sqrt_rn(tl.sum(power, axis=0) * (1.0 / CELLS)))


@operator("map_rms", dense=True)
def map_rms(y_hat: Tensor, n: int) -> Tensor:
    """Root mean square of each map in one launch, from its ortho-normalised half spectrum.

    y_hat: Complex64 [..., U, V]. n: signal length of the last axis. Returns: as `baselines.map_rms`, Float32 [planes].
    """
    return baselines.finite(_launch(y_hat, n))


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
            "BLOCK": min(triton.next_power_of_2(rows * columns), BLOCK),
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
