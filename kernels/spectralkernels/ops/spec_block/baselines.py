"""The block in torch: the composition that autograd differentiates, and the float64 reference."""

from __future__ import annotations

import torch
from torch import Tensor

from spectralkernels.ops.spec_block.node import stored
from spectralkernels.ops.spec_block.transforms import half_spectrum
from spectralkernels.ops.threshold_spectrum import threshold_spectrum
from spectralkernels.sparse import SparseSpectrum


def dense(
    values: Tensor,
    words: Tensor | None,
    offsets: Tensor | None,
    weight: Tensor,
    shape: tuple[int, ...],
    n: int,
    beta: float,
    activation: str,
    relative: bool,
    capacity: float | None,
) -> SparseSpectrum:
    """Algorithm 1 line by line; autograd saves both factors and the activated map as dense spectra."""
    x = values if words is None else stored(shape, values, words, offsets).to_dense()
    x_hat, w_hat = half_spectrum(x, shape, n, "ortho"), half_spectrum(weight, shape, n, "backward")
    y_hat = torch.einsum("bcuv,ocuv->bouv", x_hat, w_hat.conj())
    return threshold_spectrum(y_hat, beta, activation=activation, relative=relative, n=n, impl="dense")


def reference(
    values: Tensor,
    words: Tensor | None,
    offsets: Tensor | None,
    weight: Tensor,
    shape: tuple[int, ...],
    n: int,
    beta: float,
    activation: str,
    relative: bool,
    capacity: float | None,
) -> Tensor:
    """The dense answer in float64; transforms are sums of exponentials. Returns: Complex128 [B, O, U, V]."""
    y = block_spectrum(values, words, offsets, weight, shape, n)
    power = y.real**2 + y.imag**2
    rows, columns = shape[2:]
    column = torch.arange(columns, device=y.device)
    alone = (column == 0) | (2 * column == n)
    limit = torch.full((), beta**2, dtype=torch.float64, device=y.device)
    if relative:
        limit = limit * ((2.0 - alone.double()) * power).sum((-2, -1), keepdim=True) / (rows * n)
    partner = (-torch.arange(rows, device=y.device)) % rows
    decisive = torch.where(alone, torch.maximum(power, power[..., partner, :]), power)
    z = torch.complex(y.real.tanh(), y.imag.tanh()) if activation == "tanh" else y
    return torch.where(decisive > limit, z, 0.0)


def ideal(
    values: Tensor,
    words: Tensor | None,
    offsets: Tensor | None,
    weight: Tensor,
    shape: tuple[int, ...],
    n: int,
    beta: float,
    activation: str,
    relative: bool,
    capacity: float | None,
) -> Tensor:
    """The same block on the same input with nothing dropped: the distance is what this block's threshold costs."""
    return reference(values, words, offsets, weight, shape, n, 0.0, activation, False, capacity)


def block_spectrum(
    values: Tensor, words: Tensor | None, offsets: Tensor | None, weight: Tensor, shape: tuple[int, ...], n: int
) -> Tensor:
    """Y before the threshold, one output channel at a time. Returns: Complex128 [B, O, U, V]."""
    if words is not None:
        x = stored(shape, values, words, offsets).to_dense().to(torch.complex128)
    elif values.is_complex():
        x = values.to(torch.complex128)
    else:
        x = exponentials(values, shape[2], n) / (shape[2] * n) ** 0.5
    w = weight.to(torch.complex128) if weight.is_complex() else exponentials(weight, shape[2], n)
    return torch.stack([(x * one.conj()).sum(1) for one in w], dim=1)


def exponentials(planes: Tensor, rows: int, n: int) -> Tensor:
    """The half spectrum of zero-padded real planes as two sums of exponentials. Returns: Complex128 [..., U, V]."""

    def matrix(frequencies: int, samples: int, period: int) -> Tensor:
        u = torch.arange(frequencies, dtype=torch.float64, device=planes.device).unsqueeze(1)
        turns = (u * torch.arange(samples, dtype=torch.float64, device=planes.device) % period) / period
        return torch.polar(torch.ones_like(turns), -2.0 * torch.pi * turns)

    left, right = matrix(rows, planes.shape[-2], rows), matrix(n // 2 + 1, planes.shape[-1], n)
    return left @ planes.to(torch.complex128) @ right.T
