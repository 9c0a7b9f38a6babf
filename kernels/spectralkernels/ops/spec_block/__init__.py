"""The block of SpecNet: a convolution, a threshold and an activation that never leave the frequency domain.

    Y = sum_c X conj(W)        X: the packed map of the block before, W = rfft2(kernel)
    Z = tanh(Re Y) + i tanh(Im Y)  where |Y| > beta,  0 elsewhere; stored as bits and packed values

It composes `sparse_multiply` (`masked_multiply` for a dense input) and `threshold_spectrum`, and is one autograd node,
because each of them alone would save the dense W, and Z in slots for all coefficients.
Source: Guan et al., "SpecNet: Spectral Domain Convolutional Neural Network", 2021, section 3 and Algorithm 1.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from spectralkernels.aims import aimed, checked_aim
from spectralkernels.checks import as_flag, checked_beta, is_batched
from spectralkernels.declare import Aim, Decision, Implementation, Operation, Tolerance
from spectralkernels.dispatch import dispatch
from spectralkernels.errors import RangeError
from spectralkernels.launch import triton_unavailable
from spectralkernels.operators import on_host
from spectralkernels.ops.spec_block import arguments, baselines, node
from spectralkernels.ops.spec_block.profiles import PROFILES, cost, fft_size, make_inputs, observe
from spectralkernels.sparse import LARGEST_INT32_COUNT, SparseSpectrum

ACTIVATIONS = ("tanh", "none")
LARGEST_MAP = 2**30  # as in threshold_spectrum


def spec_block(
    x: SparseSpectrum | Tensor,
    weight: Tensor,
    beta: float | Tensor,
    *,
    activation: str | None = "tanh",
    relative: bool = False,
    n: int | None = None,
    capacity: float | None = None,
    optimise: Aim = "memory",
    impl: str = "auto",
) -> SparseSpectrum:
    """Convolve, threshold and activate in the frequency domain, and store the map sparse.

        Y[b, o] = sum over c of X[b, c] conj(W[o, c])        (correlation, like conv2d)
        Z = tanh(Re Y) + i tanh(Im Y) where |Y| > beta, 0 elsewhere

    The first block pads a real map to H + K - 1, so that nothing wraps; later blocks keep the size of the spectrum and
    convolve on its circle, as in Algorithm 1. Back to a map: torch.fft.irfft2(z.to_dense(), s=(U, n), norm="ortho").

    x: SparseSpectrum [B, C, U, V] of the block before; or real maps [B, C, H, W]; or their half spectrum, Complex
        [B, C, U, V] with norm="ortho". float32, float64 or the complex type of one of them.
    weight: Real [O, C, K_h, K_w], K_h <= U, K_w <= n, or its spectrum Complex [O, C, U, V] (unnormalised). The paper
        writes a true convolution: that is weight=torch.fft.rfft2(kernel, s=(U, n)).conj().
    beta, relative, activation: as in `threshold_spectrum`; conjugate pairs are kept or dropped together. tanh of a
        spectrum is not the spectrum of a map's tanh. There is no bias; one would be added at frequency 0 alone.
    n: signal length of the last axis of a spectrum, 2 (V - 1) or 2 (V - 1) + 1; default: what x carries, as
        the result of a block does, else 2 (V - 1). A real map with a real kernel has n = W + K_w - 1.
    capacity: fraction of Z's coefficients for which memory is reserved, in (0, 1]. None: for what is kept, no more;
        then the host waits once for the count. A number never waits; if more are kept than fit, all values are NaN.
        Not used by "dense".
    optimise: what auto looks for. "memory": to save packed maps alone. "time": what is computed soonest, on a CPU
        "dense", which saves a few times as much; on CUDA in single precision "triton" is taken for both.
    impl: "triton" and "bitmap" store bits and packed values; "dense" is the composition that autograd differentiates:
        it saves dense spectra and returns format "dense".
    Returns: SparseSpectrum [B, O, U, V]. Differentiable in x (its `values`) and weight.

    Saved for the backward pass: x as given, the weight as given, and Z as stored; spectra of the weight and of a real
    map are made again. Gradients are exact for the function above wherever it is smooth: nothing flows through a
    dropped coefficient, and tanh's slope is 1 - Z^2. The paper writes down no backward pass. It calls gradients from
    sparse maps approximations, which they are to those of a network without threshold, not to those of this one.

    Raises: DtypeError, ShapeError, RangeError on arguments that do not fit; Unsupported if `impl` cannot run here.
    Source: SpecNet (2021), Algorithm 1, equations 2 to 4.
    """
    values, words, offsets = arguments.flat_input(x)
    n = arguments.carried_length(x, n)
    shape, length = arguments.spectrum_grid(x, weight, n)
    known = n is not None or not (values.is_complex() or weight.is_complex())
    beta = checked_beta(beta)
    name = "none" if activation is None else activation
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise RangeError(f"unknown activation {activation!r}; known: {', '.join(ACTIVATIONS)}")
    arguments.reserved_slots(capacity, 0)
    inputs = {
        "values": values,
        "words": words,
        "offsets": offsets,
        "weight": weight,
        "shape": shape,
        "n": length,
        "beta": beta,
        "activation": name,
        "relative": as_flag("relative", relative),
        "capacity": capacity,
    }
    output: SparseSpectrum = dispatch(_AIMED[checked_aim(optimise)], impl, values.device.type, inputs)
    return replace(output, n=length if known else None)


def auto(values: Tensor, weight: Tensor, beta: float | Tensor, optimise: Aim = "memory", **_: Any) -> Decision:
    """The Triton kernels on CUDA in single precision; elsewhere torch's bitmap, or for time the dense composition."""
    single = weight.dtype in (torch.float32, torch.complex64)
    if not is_batched(beta) and values.is_cuda and single and triton_unavailable("cuda") is None:
        return Decision("triton", "single precision on CUDA: it saves the packed maps alone")
    if optimise == "time":
        return Decision("dense", "it takes the least time of torch's operations: nothing is packed")
    return Decision("bitmap", "the least memory of torch's operations: it saves the packed maps alone")


def _packed(impl: str) -> Any:
    def call(
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
        z_shape = (shape[0], weight.shape[0], *shape[2:])
        slots = arguments.reserved_slots(capacity, math.prod(z_shape))
        z_values, z_words, z_offsets = node.spec_block(
            values, words, offsets, weight, shape, n, on_host(beta), activation == "tanh", relative, slots, impl
        )
        return node.stored(z_shape, z_values, z_words, z_offsets)

    return call


def _packed_supports(weight: Tensor, shape: tuple[int, ...], **_: Any) -> str | None:
    count = shape[0] * max(shape[1], weight.shape[0]) * shape[2] * shape[3]
    if count > LARGEST_INT32_COUNT:
        return f"packed maps take at most {LARGEST_INT32_COUNT} coefficients, got {count}; split the batch"
    return None


def _triton_supports(weight: Tensor, shape: tuple[int, ...], beta: float | Tensor, **others: Any) -> str | None:
    if is_batched(beta):
        return "the kernels take one threshold, got those of a vmap; use impl='bitmap' or impl='dense'"
    if weight.dtype not in (torch.float32, torch.complex64):
        return f"the kernels take float32 or complex64, got {weight.dtype}; use impl='bitmap'"
    if shape[2] * shape[3] >= LARGEST_MAP:
        return f"the kernels take maps of fewer than 2^30 coefficients, got {list(shape[2:])}; use impl='bitmap'"
    return _packed_supports(weight, shape)


_SPECNET = "SpecNet (2021), Algorithm 1"

OPERATION = Operation(
    name="spec_block",
    summary="SpecNet's block: spectral convolution, threshold and tanh from packed map to packed map",
    version=1,
    source=_SPECNET,
    profiles=PROFILES,
    make_inputs=make_inputs,
    reference=baselines.reference,
    ideal=baselines.ideal,
    cost=cost,
    fft_size=fft_size,
    tolerance=Tolerance(
        {"float32": 3e-6, "float64": 1e-13},
        "a product of two FFTs summed over at most a few hundred channels: about 1e-7 is seen in float32; one wrong "
        "decision costs 1e-3",
    ),
    implementations=(
        Implementation("dense", "baseline", baselines.dense, f"{_SPECNET}, as autograd differentiates it"),
        Implementation(
            "bitmap", "baseline", _packed("bitmap"), f"{_SPECNET}, torch, packed maps saved", supports=_packed_supports
        ),
        Implementation(
            "triton",
            "kernel",
            _packed("triton"),
            "ours: multiply from the packed map, threshold, tanh and packing in Triton; torch.fft for the weight",
            engine="triton",
            available=triton_unavailable,
            supports=_triton_supports,
        ),
    ),
    auto=auto,
    dense=SparseSpectrum.to_dense,
    observe=observe,
    gradients=("values", "weight"),
    aims=("memory", "time"),
)
_AIMED = aimed(OPERATION)
