"""Masked multiply: the spectral multiplication and channel sum of a band-limited convolution.

    y[b, o, u, v] = mask[u, v] sum_c x[b, c, u, v] conj(w[o, c, u, v])        zero where mask is zero

Spectra stay uncropped: an implementation may crop, multiply, sum and pad in one go, which is what the Triton kernel
does. Dropped cells of x and w are never used, so NaN there is harmless.

Cost of a forward pass with F kept cells of U V, element size s (8 bytes for complex64):

    bytes read      s F (B C + O C / groups)      kept inputs, once
    bytes written   s U V B O                     the whole zero-padded output, once
    FLOPs           8 F B O C / groups            four multiplications and four additions per complex product

Source: Dziedzic et al., Band-limited Training and Inference for Convolutional Neural Networks (ICML 2019), section 3.3
and appendix 6.1.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from spectralkernels.declare import Case, Cost, Decision, Implementation, Operation, Role, Tolerance
from spectralkernels.dispatch import dispatch
from spectralkernels.inputs import feature_map, he_kernel
from spectralkernels.launch import Launch, triton_unavailable
from spectralkernels.ops.masked_multiply import baselines
from spectralkernels.ops.masked_multiply.arguments import checked
from spectralkernels.ops.masked_multiply.autograd import operator
from spectralkernels.ops.masked_multiply.baselines import Compute
from spectralkernels.ops.masked_multiply.profiles import PROFILES
from spectralkernels.spectra import half, low_pass_mask
from spectralkernels.tf32 import tf32_unavailable


def masked_multiply(
    x_hat: Tensor, w_hat: Tensor, mask: Tensor | None = None, *, groups: int = 1, impl: str = "auto"
) -> Tensor:
    """Multiply spectra by the conjugate of a weight's spectrum, sum over channels, and zero the dropped cells.

        y[b, o, u, v] = mask[u, v] sum_c x_hat[b, c, u, v] conj(w_hat[o, c, u, v])

    x_hat: Complex64 or Complex128 [batch, in_channels, U, V], any strides.
    w_hat: the same dtype, [out_channels, in_channels / groups, U, V].
    mask: Bool or floating point [U, V]; a float mask scales. None keeps everything.
    groups: output channels of a group see only its input channels, as in conv2d.
    impl: "auto", or the name of an implementation.

    Returns: [batch, out_channels, U, V], contiguous; differentiable with respect to x_hat, w_hat and a float mask.
    Raises: DtypeError, ShapeError, RangeError on arguments that do not fit; Unsupported where a named implementation
        cannot run.
    Source: Dziedzic et al. 2019, section 3.3.
    """
    mask = checked(x_hat, w_hat, mask, groups)
    inputs = {"x_hat": x_hat, "w_hat": w_hat, "mask": mask, "groups": groups}
    return dispatch(OPERATION, impl, x_hat.device.type, inputs)


def reference(x_hat: Tensor, w_hat: Tensor, mask: Tensor | None, groups: int) -> Tensor:
    """The definition in complex128, on all cells: one einsum per group, then the mask."""
    x_groups = x_hat.to(torch.complex128).chunk(groups, dim=1)
    w_groups = w_hat.to(torch.complex128).chunk(groups, dim=0)
    y = torch.cat([torch.einsum("bcuv,ocuv->bouv", x, w.conj()) for x, w in zip(x_groups, w_groups, strict=True)], 1)
    return y if mask is None else torch.where(mask != 0, y * mask, 0.0)


def make_inputs(case: Case, device: str) -> dict[str, Any]:
    """Spectra of real maps (norm="ortho") and of 3 x 3 He kernels (unnormalised), and the low-pass mask of the case."""
    size = (case["height"], case["width"])
    real = torch.float64 if case.dtype == "complex128" else torch.float32
    x = feature_map(case["input"], (case["batch"], case["in_channels"], *size), case.seed).to(real)
    w = he_kernel(
        (case["out_channels"], case["in_channels"] // case["groups"], min(3, size[0]), min(3, size[1])), case.seed
    ).to(real)
    return {
        "x_hat": torch.fft.rfft2(x, norm="ortho").to(device),
        "w_hat": torch.fft.rfft2(w, s=size).to(device),
        "mask": low_pass_mask(size, case["compression"], device),
        "groups": case["groups"],
    }


def cost(case: Case) -> Cost:
    """The floor that the module's docstring derives; the mask's own bytes are left out."""
    element = 16 if case.dtype == "complex128" else 8
    batch, channels, outputs = case["batch"], case["in_channels"], case["out_channels"]
    group_channels = channels // case["groups"]
    kept = _kept(case)
    return Cost(
        bytes_read=element * kept * (batch * channels + outputs * group_channels),
        bytes_written=element * _cells(case) * batch * outputs,
        flops=8 * kept * batch * outputs * group_channels,
    )


def observe(case: Case, output: Tensor) -> Mapping[str, float]:
    """What the mask really keeps of the half spectrum."""
    kept_fraction = _kept(case) / _cells(case)
    return {"achieved_compression": 1.0 - kept_fraction, "kept_fraction": kept_fraction}


def auto(x_hat: Tensor, w_hat: Tensor, mask: Tensor | None, groups: int) -> Decision:
    """The Triton kernel on CUDA complex64; else bmm, or einsum where a group has one channel and nothing is summed."""
    if x_hat.is_cuda and x_hat.dtype == torch.complex64 and triton_unavailable("cuda") is None:
        return Decision("triton", "one kernel skips what is masked; not yet timed on a GPU")
    if w_hat.shape[1] == 1:
        return Decision("einsum", "a group of one channel leaves nothing to sum")
    return Decision("complex_bmm", "one matrix product per frequency was the fastest on a CPU")


def _cells(case: Case) -> int:
    return case["height"] * half(case["width"])


def _kept(case: Case) -> int:
    return int(low_pass_mask((case["height"], case["width"]), case["compression"]).sum())


def _triton_compute(launch_name: str) -> Compute:
    def compute(x_hat: Tensor, w_hat: Tensor, mask: Tensor | None, groups: int, conjugate: bool) -> Tensor:
        from spectralkernels.ops.masked_multiply import kernels

        y = torch.empty(x_hat.shape[0], w_hat.shape[0], *x_hat.shape[2:], dtype=torch.complex64, device=x_hat.device)
        getattr(kernels, launch_name)(x_hat, w_hat, mask, y, groups, conjugate).run()
        return y

    return compute


def planned(x_hat: Tensor, w_hat: Tensor, mask: Tensor | None, groups: int) -> Callable[..., Tensor]:
    """What multiplies such spectra by the Triton kernel, of these sizes and strides, and no gradient wanted.

    Complex64 as for `masked_multiply`, mask contiguous. Returns: a function of (x_hat, w_hat, mask).
    """
    from spectralkernels.ops.masked_multiply.kernels import planes, tiled_launch

    shape, device = (x_hat.shape[0], w_hat.shape[0], *x_hat.shape[2:]), x_hat.device
    first = tiled_launch(x_hat, w_hat, mask, torch.empty(shape, dtype=torch.complex64, device=device), groups, True)
    tensors = ("x_ptr", "w_ptr", "mask_ptr", "y_ptr")
    kernel, grid, options, strided = first.kernel, first.grid, first.options, first.strided
    numbers = {name: value for name, value in first.arguments.items() if name not in tensors}

    def multiply(x_hat: Tensor, w_hat: Tensor, mask: Tensor | None) -> Tensor:
        y = torch.empty(shape, dtype=torch.complex64, device=device)
        pointers = {"x_ptr": planes(x_hat), "w_ptr": planes(w_hat), "mask_ptr": mask, "y_ptr": torch.view_as_real(y)}
        arguments = {**pointers, **numbers}
        Launch(kernel, grid, arguments, options, strided, tensors).run()
        return y

    return multiply


def _only_complex64(who: str, x_hat: Tensor, w_hat: Tensor, mask: Tensor | None, groups: int) -> str | None:
    if x_hat.dtype != torch.complex64:
        return f"{who} complex64 spectra, got {str(x_hat.dtype).removeprefix('torch.')}"
    return None


def _implementation(name: str, role: Role, compute: Compute, source: str, **rest: Any) -> Implementation:
    registered = operator(name, compute)

    def call(x_hat: Tensor, w_hat: Tensor, mask: Tensor | None, groups: int) -> Tensor:
        return registered(x_hat, w_hat, mask, groups, True)

    return Implementation(name, role, call, source, **rest)


def _find_cells_first(**inputs: Any) -> dict[str, Any]:
    baselines.kept_cells(inputs["mask"])
    return inputs


def _torch_form(name: str, source: str) -> Implementation:
    return _implementation(name, "baseline", baselines.COMPUTES[name], source, prepare=_find_cells_first)


def _coarse_form(name: str, source: str, error: float, because: str, **rest: Any) -> Implementation:
    compute, tolerance = baselines.COARSE_COMPUTES[name], Tolerance({"complex64": error}, because)
    return _implementation(
        name,
        "baseline",
        compute,
        source,
        prepare=_find_cells_first,
        supports=partial(_only_complex64, "it rounds"),
        tolerance=tolerance,
        **rest,
    )


def _tensor_core_compute(precision: str) -> Compute:
    def compute(x_hat: Tensor, w_hat: Tensor, mask: Tensor | None, groups: int, conjugate: bool) -> Tensor:
        from spectralkernels.ops.masked_multiply import tensor_cores

        y = torch.empty(x_hat.shape[0], w_hat.shape[0], *x_hat.shape[2:], dtype=torch.complex64, device=x_hat.device)
        tensor_cores.multiply(x_hat, w_hat, mask, y, groups, conjugate, precision)
        return y

    return compute


def _triton_form(name: str, role: Role, compute: Compute, source: str, **rest: Any) -> Implementation:
    supports = partial(_only_complex64, "Triton kernels take")
    return _implementation(
        name, role, compute, source, engine="triton", available=triton_unavailable, supports=supports, **rest
    )


_11_BITS = "both factors rounded to 11 bits and, in fp16, the sum: 3e-4 to 4e-4 seen, five times that allowed"
_8_BITS = "both factors and the sum rounded to 8 bits: 2.5e-3 to 3e-3 seen, five times that allowed"

OPERATION = Operation(
    name="masked_multiply",
    summary="spectral multiply and channel sum under a mask, zero-padded",
    version=1,
    source="Dziedzic et al. (ICML 2019), section 3.3 and appendix 6.1.2",
    profiles=PROFILES,
    make_inputs=make_inputs,
    reference=reference,
    cost=cost,
    fft_size=lambda case: (case["height"], case["width"]),
    tolerance=Tolerance(
        relative={"complex64": 3e-6, "complex128": 1e-14},
        because=(
            "a sum of C rounded products errs by about eps sqrt(C): 1.4e-6 at C = 512 in float32 (eps = 6e-8), twice "
            "that with three multiplications; TF32 (5e-4) and one forgotten channel of 512 (4e-2) are far outside"
        ),
    ),
    implementations=(
        _triton_form(
            "triton",
            "kernel",
            _triton_compute("tiled_launch"),
            "this project: crop, multiply, sum and pad in one launch",
        ),
        _triton_form(
            "triton_tf32x3",
            "kernel",
            _tensor_core_compute("tf32x3"),
            "this project: one matrix product per listed cell, three on tensor cores",
        ),
        _triton_form(
            "triton_bf16x3",
            "kernel",
            _tensor_core_compute("bf16x3"),
            "the same, operands in two pieces of 8 bits",
            tolerance=Tolerance({"complex64": 3e-5}, "three bf16 products keep 16 bits of each factor"),
        ),
        _triton_form(
            "triton_2019",
            "baseline",
            _triton_compute("planewise_launch"),
            "Dziedzic et al. 2019, appendix 6.1.2, in Triton",
        ),
        _torch_form("einsum", "torch.einsum on the kept cells"),
        _torch_form("complex_bmm", "torch.bmm in complex numbers, one product per kept frequency"),
        _torch_form("real_bmm", "torch.bmm of the real embedding, [F, B, 2C] x [F, 2C, 2O]"),
        _coarse_form("complex_bmm_tf32", "complex_bmm with TF32 allowed", 2e-3, _11_BITS, available=tf32_unavailable),
        _coarse_form("real_bmm_tf32", "real_bmm with TF32 allowed", 2e-3, _11_BITS, available=tf32_unavailable),
        _coarse_form("real_bmm_fp16", "real_bmm with factors in float16", 2e-3, _11_BITS),
        _coarse_form("real_bmm_bf16", "real_bmm with factors in bfloat16", 1.6e-2, _8_BITS),
        _torch_form("three_mult", "Gauss: three real products per complex one; Dziedzic et al. 2019, appendix 6.1.2"),
        _torch_form("broadcast", "broadcast multiplication, then a sum"),
    ),
    auto=auto,
    observe=observe,
    gradients=("x_hat", "w_hat"),
)
