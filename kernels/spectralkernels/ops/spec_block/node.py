"""The block as one autograd node that saves packed maps and the weight, never a dense spectrum.

    forward    Y = sum_c X conj(W),  Z = tanh(Y) where |Y| > beta        saves X and Z as stored, and the weight
    backward   G = dZ (1 - Z^2) where Z is kept, real and imaginary parts apart
               dX = sum_o G W where X is kept
               dW = sum_b X conj(G)

(PyTorch's convention: a gradient is that with respect to the conjugate.) W and, for a spatial input, X are transformed
again in the backward pass. Both passes are written in other operations' public functions; `CHOICES` says with which
implementations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spectralkernels.operators import operator
from spectralkernels.ops.masked_multiply import masked_multiply
from spectralkernels.ops.sparse_multiply import sparse_multiply
from spectralkernels.ops.spec_block.packing import length, moved, trimmed
from spectralkernels.ops.spec_block.transforms import half_spectrum, half_spectrum_adjoint
from spectralkernels.ops.threshold_spectrum import threshold_spectrum
from spectralkernels.sparse import SparseSpectrum, bitmap

CHOICES = {
    "triton": {"multiply": "triton", "threshold": "triton", "dense_multiply": "triton"},
    "bitmap": {"multiply": "bitmap", "threshold": "bitmap", "dense_multiply": "complex_bmm"},
}


@operator("spec_block")
def spec_block(
    values: Tensor,
    words: Tensor | None,
    offsets: Tensor | None,
    weight: Tensor,
    shape: Sequence[int],
    n: int,
    beta: Tensor,
    tanh: bool,
    relative: bool,
    slots: int | None,
    impl: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """One block on the half spectrum of `shape` [B, C, U, V], n samples long along its last axis.

    values, words, offsets: a bitmap spectrum; or, where words is None, a spectrum or a real map.
    weight: Complex [O, C, U, V], or the real kernel. beta: Float64 of one number, on the host.
    slots: as in `packing.trimmed`. impl: a key of `CHOICES`.
    Returns: values, words, offsets of a bitmap spectrum [B, O, U, V].
    """
    choice = CHOICES[impl]
    w_hat = half_spectrum(weight, shape, n, "backward")
    if words is None:
        y_hat = masked_multiply(half_spectrum(values, shape, n, "ortho"), w_hat, impl=choice["dense_multiply"])
    else:
        y_hat = sparse_multiply(stored(shape, values, words, offsets), w_hat, impl=choice["multiply"])
    activation = "tanh" if tanh else "none"
    full = threshold_spectrum(
        y_hat, float(beta), activation=activation, relative=relative, n=n, impl=choice["threshold"]
    )
    del y_hat, w_hat
    kept_values, kept_offsets = trimmed(full.values, full.index[0], slots)
    return kept_values, full.index[0], kept_offsets


@spec_block.register_fake
def _(*, weight: Tensor, shape: Sequence[int], slots: int | None) -> tuple[Tensor, Tensor, Tensor]:
    blocks = bitmap.blocks_of(shape[0] * weight.shape[0] * shape[2] * shape[3])
    kept = torch.library.get_ctx().new_dynamic_size() if slots is None else length(slots, blocks)
    dtype = weight.dtype if weight.is_complex() else weight.dtype.to_complex()
    return (
        weight.new_empty(kept, dtype=dtype),
        weight.new_empty(blocks * (bitmap.BLOCK // bitmap.WORD), dtype=torch.int32),
        weight.new_empty(blocks, dtype=torch.int32),
    )


@spec_block.register_composed
def _(
    *,
    values: Tensor,
    words: Tensor | None,
    offsets: Tensor | None,
    weight: Tensor,
    shape: Sequence[int],
    n: int,
    beta: Tensor,
    tanh: bool,
    relative: bool,
    slots: int | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """A magnitude within rounding of beta may fall on the other side of it."""
    w_hat = half_spectrum(weight, shape, n, "backward")
    if words is None:
        y_hat = masked_multiply(half_spectrum(values, shape, n, "ortho"), w_hat, impl="einsum")
    else:
        y_hat = sparse_multiply(stored(shape, values, words, offsets), w_hat, impl="bitmap")
    activation = "tanh" if tanh else "none"
    full = threshold_spectrum(y_hat, beta, activation=activation, relative=relative, n=n, impl="bitmap")
    kept_values, kept_offsets = moved(full.values, full.index[0], slots, Tensor.scatter)
    return kept_values, full.index[0], kept_offsets


def stored(shape: Sequence[int], values: Tensor, words: Tensor, offsets: Tensor | None) -> SparseSpectrum:
    """The bitmap spectrum of these tensors."""
    return SparseSpectrum(tuple(shape), "bitmap", values, (words,) if offsets is None else (words, offsets))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    values, words, offsets, weight, ctx.shape, ctx.n, _, ctx.tanh, _, _, ctx.impl = inputs
    for_x, for_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[3]
    z_values, z_words, z_offsets = output
    ctx.spatial = None if values.is_complex() else tuple(values.shape[2:])
    ctx.kernel = None if weight.is_complex() else tuple(weight.shape[2:])
    ctx.outputs, ctx.capacity = weight.shape[0], values.shape[0]
    ctx.save_for_backward(
        values if for_weight else None,
        words,
        offsets,
        weight if for_x else None,
        # where tanh is left out, its derivative needs no values
        z_values if ctx.tanh else None,
        z_words,
        z_offsets,
    )
    ctx.mark_non_differentiable(z_words, z_offsets)


def _backward(ctx: Any, grad: Tensor, grad_words: Tensor | None, grad_offsets: Tensor | None) -> tuple[Any, ...]:
    values, words, offsets, weight, z_values, z_words, z_offsets = ctx.saved_tensors
    shape, n, choice = ctx.shape, ctx.n, CHOICES[ctx.impl]
    if ctx.tanh:
        slope = 1.0 - torch.view_as_real(z_values).square()
        grad = torch.view_as_complex(torch.view_as_real(grad.resolve_conj()) * slope)
    g = stored((shape[0], ctx.outputs, *shape[2:]), grad, z_words, z_offsets)
    grad_x = grad_weight = None
    if ctx.needs_input_grad[0]:
        # physically: torch drops a lazy conjugate inside a custom operator under AOT autograd
        back = half_spectrum(weight, shape, n, "backward").transpose(0, 1).conj_physical()
        grad_x = sparse_multiply(g, back, impl=choice["multiply"])
        if words is not None:
            grad_x = bitmap.collect(grad_x.reshape(-1), words, offsets, ctx.capacity)
        elif ctx.spatial is not None:
            grad_x = half_spectrum_adjoint(grad_x, ctx.spatial, n, "ortho")
    if ctx.needs_input_grad[3]:
        x = half_spectrum(values, shape, n, "ortho") if words is None else stored(shape, values, words, offsets)
        grad_weight = _weight_gradient(x, g, ctx.impl)
        if ctx.kernel is not None:
            grad_weight = half_spectrum_adjoint(grad_weight, ctx.kernel, n, "backward")
    return grad_x, None, None, grad_weight, None, None, None, None, None, None, None


def _weight_gradient(x: SparseSpectrum | Tensor, g: SparseSpectrum, impl: str) -> Tensor:
    """dW [O, C, U, V], the sum over the batch; Triton reads one of the two maps packed, torch expands both."""
    if impl == "triton":
        from spectralkernels.sparse.multiply import multiply

        if isinstance(x, Tensor):
            return multiply(g, x, over_batch=True).transpose(0, 1).conj_physical()
        return multiply(x, g.to_dense(), over_batch=True)
    x = x if isinstance(x, Tensor) else x.to_dense()
    maps = (x.transpose(0, 1), g.to_dense().transpose(0, 1))
    return masked_multiply(*maps, impl=CHOICES[impl]["dense_multiply"]).transpose(0, 1)


spec_block.register_autograd(_backward, setup_context=_setup_context)
# Of a dense map: how many coefficients are kept is known on the device alone. FFTs are not counted, as in torch.
spec_block.register_flops(lambda values, words, offsets, weight, shape, *_: 8 * math.prod(shape) * weight.shape[0])
