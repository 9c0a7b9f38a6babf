"""Sparse spectral multiplication in torch, one function per storage format."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spectralkernels.sparse import SparseSpectrum


def dense(sparse: SparseSpectrum, w_hat: Tensor) -> Tensor:
    """Expand, whatever the format, and contract channels with one batched matrix product per frequency."""
    return torch.einsum("bcuv,ocuv->bouv", sparse.to_dense(), w_hat.conj()).contiguous()


def bitmap(sparse: SparseSpectrum, w_hat: Tensor) -> Tensor:
    """Expand bits and packed values, then contract densely."""
    return dense(sparse.to_format("bitmap"), w_hat)


def coo(sparse: SparseSpectrum, w_hat: Tensor) -> Tensor:
    """Use the non-zeros only; coordinates are read as stored."""
    sparse = sparse.to_format("coo")
    batch, channel, row, column = sparse.index[0]
    return _multiply_nonzeros(sparse, w_hat, batch, channel, row * w_hat.shape[3] + column)


def csr(sparse: SparseSpectrum, w_hat: Tensor) -> Tensor:
    """Use the non-zeros only; row pointers are spread to one row number per value."""
    sparse = sparse.to_format("csr")
    pointers, column = sparse.index
    rows = torch.arange(len(pointers) - 1, device=sparse.device)
    line = torch.repeat_interleave(rows, pointers.diff(), output_size=sparse.values.numel())
    plane, row = line // w_hat.shape[2], line % w_hat.shape[2]
    frequency = row * w_hat.shape[3] + column
    return _multiply_nonzeros(sparse, w_hat, plane // w_hat.shape[1], plane % w_hat.shape[1], frequency)


def index(sparse: SparseSpectrum, w_hat: Tensor) -> Tensor:
    """Use the non-zeros only; the flat index is divided into batch, channel and frequency."""
    sparse = sparse.to_format("index")
    frequencies = w_hat.shape[2] * w_hat.shape[3]
    flat = sparse.index[0].long()
    plane, frequency = flat // frequencies, flat % frequencies
    return _multiply_nonzeros(sparse, w_hat, plane // w_hat.shape[1], plane % w_hat.shape[1], frequency)


def converted(sparse: SparseSpectrum, w_hat: Tensor, *, format: Any) -> dict[str, Any]:
    """The inputs with the spectrum in the format that an implementation reads, so that conversion is not timed."""
    return {"sparse": sparse.to_format(format), "w_hat": w_hat}


def _multiply_nonzeros(
    sparse: SparseSpectrum, w_hat: Tensor, batch: Tensor, channel: Tensor, frequency: Tensor
) -> Tensor:
    """Add every non-zero times its row of conj(W), all output channels at once, to its output frequency."""
    outputs, _, rows, columns = w_hat.shape
    weights = w_hat.conj().permute(1, 2, 3, 0).reshape(-1, outputs)  # [C * F, O]
    products = sparse.values.unsqueeze(1) * weights[channel * rows * columns + frequency]  # [nnz, O]
    sums = products.new_zeros(sparse.shape[0] * rows * columns, outputs)
    sums = sums.index_add(0, batch * rows * columns + frequency, products)
    return sums.reshape(sparse.shape[0], rows, columns, outputs).permute(0, 3, 1, 2).contiguous()
