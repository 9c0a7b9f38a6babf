"""The gate: is the answer right? Nothing is timed before it says yes, and the last timed answer passes it again.

Two numbers are never mixed. The rounding error compares an implementation with the float64 reference of the same
operation, and is the gate; the approximation error compares that reference with the uncompressed answer, and is a
result, never a failure (see metrics/approximation_error.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

# A gradient is one more pass of the operation over a cotangent, and a weight's gradient sums over batch and plane where
# the forward sums over channels: longer sums of already rounded terms.
GRADIENT_FACTOR = 4.0


@dataclass(frozen=True, slots=True)
class Expected:
    """The right answer, dense, in float64 or complex128, and the right gradient of each differentiated input."""

    output: Tensor
    gradients: Mapping[str, Tensor] = field(default_factory=dict)


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Relative L2 error ||got - expected|| / ||expected||; 0 for two zeros, inf for something against zero, else
    NaN where `got` has NaN.

    got, expected: tensors of one shape; the arithmetic is in the dtype of `expected` (float64 or complex128).
    """
    if expected.numel() == 0:
        return 0.0
    difference = torch.linalg.vector_norm(_like(got, expected) - expected).item()
    scale = torch.linalg.vector_norm(expected).item()
    if scale == 0.0:
        return 0.0 if difference == 0.0 else float("inf") if difference == difference else float("nan")
    return difference / scale


def largest_error(got: Tensor, expected: Tensor) -> float:
    """Largest |got - expected| over largest |expected|, with the same conventions as `relative_error`."""
    if expected.numel() == 0:
        return 0.0
    difference = (_like(got, expected) - expected).abs().max().item()
    scale = expected.abs().max().item()
    if scale == 0.0:
        return 0.0 if difference == 0.0 else float("inf") if difference == difference else float("nan")
    return difference / scale


def fault(got: Tensor, expected: Tensor, tolerance: float, what: str = "the answer") -> str | None:
    """What is wrong with `got`, with both numbers, or None if its relative L2 error is within `tolerance`."""
    if got.shape != expected.shape:
        return f"{what} has shape {list(got.shape)}, the float64 reference has {list(expected.shape)}"
    if got.is_complex() != expected.is_complex():
        return f"{what} is {got.dtype}, the reference is {expected.dtype}"
    if expected.numel() == 0:
        return None
    if not torch.isfinite(got).all():
        return f"{what} contains NaN or infinity, the float64 reference does not"
    if not got.any() and expected.any():
        return f"{what} is all zeros, the float64 reference is not"
    error = relative_error(got, expected)
    if not error <= tolerance:
        return f"{what} has relative L2 error {error:.3g} against the float64 reference, allowed is {tolerance:.3g}"
    return None


def check(output: Tensor, gradients: Mapping[str, Tensor], expected: Expected, tolerance: float) -> str | None:
    """The first fault of an output and its gradients (of which `gradients` may hold none), or None."""
    found = fault(output, expected.output, tolerance)
    for name, gradient in gradients.items():
        found = found or fault(
            gradient, expected.gradients[name], GRADIENT_FACTOR * tolerance, f"the gradient of {name}"
        )
    return found


def poison(output: object, keep: Sequence[object]) -> None:
    """Overwrite an answer with NaN, so that a call that writes nothing cannot pass with the bits of an earlier one.

    Left alone: what is not a dense floating-point tensor, overlaps itself, or shares memory with one of `keep`.
    """
    if not isinstance(output, Tensor) or output.layout != torch.strided:
        return
    if not (output.is_floating_point() or output.is_complex()) or output.numel() == 0:
        return
    if any(stride == 0 and size > 1 for stride, size in zip(output.stride(), output.shape, strict=True)):
        return
    shared = {_address(value) for value in keep if isinstance(value, Tensor) and value.layout == torch.strided}
    if _address(output) not in shared:
        with torch.no_grad():
            output.fill_(float("nan"))


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _like(got: Tensor, expected: Tensor) -> Tensor:
    return got.detach().to(device=expected.device, dtype=expected.dtype)
