"""Thresholding in torch: the decision, the activation, and packing into each format."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from spectralkernels.operators import in_float64
from spectralkernels.sparse import Format, SparseSpectrum, pack, pack_compact

Activation = Literal["tanh", "none"]


def threshold(
    y_hat: Tensor, beta: float | Tensor, activation: Activation, relative: bool, n: int, *, format: Format
) -> SparseSpectrum:
    """Threshold into a format with torch operations only; the activation sees kept values alone."""
    return _activated(pack(y_hat, _kept(y_hat, beta, relative, n), format), activation)


def bitmap_compact(
    y_hat: Tensor, beta: float | Tensor, activation: Activation, relative: bool, n: int
) -> SparseSpectrum:
    """Threshold into a bitmap that holds no more than it uses, and keeps no more for the backward pass."""
    return _activated(pack_compact(y_hat, _kept(y_hat, beta, relative, n)), activation)


def _kept(y_hat: Tensor, beta: float | Tensor, relative: bool, n: int) -> Tensor:
    return decide(y_hat.detach(), beta, map_rms(y_hat.detach(), n) if relative else None, n)


def _activated(sparse: SparseSpectrum, activation: Activation) -> SparseSpectrum:
    return replace(sparse, values=activate(sparse.values, activation))


def decide(y_hat: Tensor, beta: float | Tensor, rms: Tensor | None, n: int) -> Tensor:
    """Which coefficients are kept: |Y| > beta (or NaN), pairs of the self-conjugate columns together.

    y_hat: Complex [..., U, V]. beta: or a tensor of one number. rms: Real [planes] or None. Returns: Bool [..., U, V].
    """
    limit = in_float64(beta, y_hat.device).to(y_hat.real.dtype)  # rounded by the cast
    if rms is not None:
        limit = torch.where(limit.isinf(), limit, limit * rms).reshape(*y_hat.shape[:-2], 1, 1)
    kept = ~(y_hat.abs() <= limit)
    columns = kept[..., :: y_hat.shape[-1] - 1] if n % 2 == 0 else kept[..., :1]
    columns.logical_or_(columns.flip(-2).roll(1, -2))  # row u beside row -u mod U
    return kept


def map_rms(y_hat: Tensor, n: int) -> Tensor:
    """Root mean square of each map, from its ortho-normalised half spectrum by Parseval's theorem.

    Columns other than the self-conjugate ones stand for two coefficients of the full spectrum.
    Returns: Real [planes], in y_hat's precision; NaN of a map that is not finite, by which all of it is kept.
    """
    pairs = torch.view_as_real(y_hat.resolve_conj())
    # Squared in float64: a square of float32 is 0 below 1e-23 and infinite above 1e19.
    power = torch.linalg.vector_norm(pairs, dim=(-3, -1), dtype=torch.float64).square()  # [..., V]
    alone = power[..., 0] + (power[..., -1] if n % 2 == 0 else 0.0)
    mean_square = (2.0 * power.sum(-1) - alone) / (y_hat.shape[-2] * n)
    rms = mean_square.sqrt().to(y_hat.real.dtype).reshape(-1)
    return rms.nan_to_num(nan=math.nan, posinf=math.nan)  # below infinity everything else of a map would be dropped


def activate(values: Tensor, activation: Activation) -> Tensor:
    """The odd activation on real and imaginary parts separately."""
    if activation == "none":
        return values
    return torch.view_as_complex(torch.view_as_real(values).tanh())


dense = partial(threshold, format="dense")
coo = partial(threshold, format="coo")
csr = partial(threshold, format="csr")
index = partial(threshold, format="index")
bitmap = partial(threshold, format="bitmap")
