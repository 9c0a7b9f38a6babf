"""The gate: is the answer right? Nothing is timed before it says yes, and timed answers pass it again.

Two numbers are never mixed. The rounding error compares an implementation with the float64 reference of the same
operation, and is the gate; the approximation error compares that reference with the uncompressed answer, and is a
result, never a failure (see metrics/approximation_error.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spectralbench.answers import overlaps

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


def largest_allowed(expected: Tensor, tolerance: float, least: float = 0.0) -> float:
    """The largest error of one element of an answer whose relative L2 error is `tolerance`, if nothing is amiss.

        tolerance * (largest |expected| + rms(expected) sqrt(2 ln 2n)).

    An error that each element gets in proportion to itself (a rounding) is largest at the largest element: the first
    term. An error that is spread over all n elements alike (the noise of a sum or a transform) has the rms of the
    tolerance, and n normal numbers stay under sqrt(2 ln 2n) times theirs: the second. A few elements that are plainly
    wrong among very many vanish in the norm, and stand out here.
    """
    count = expected.numel()
    rms = max(least, torch.linalg.vector_norm(expected).item() / math.sqrt(count))
    return tolerance * (expected.abs().max().item() + rms * math.sqrt(2 * math.log(2 * count)))


def fault(got: Tensor, expected: Tensor, tolerance: float, what: str = "the answer", least: float = 0.0) -> str | None:
    """What is wrong with `got`, with both numbers, or None if its error is within bounds, in norm and everywhere.

    tolerance: of the relative L2 error; for single elements see `largest_allowed`. least: the rms that `expected` is
    taken to have where its own is less, so that zero may be missed by a rounding of what cancelled.
    """
    if got.shape != expected.shape:
        return f"{what} has shape {list(got.shape)}, the float64 reference has {list(expected.shape)}"
    if got.is_complex() != expected.is_complex():
        return f"{what} is {got.dtype}, the reference is {expected.dtype}"
    if expected.numel() == 0:
        return None
    if not torch.isfinite(got).all():
        return f"{what} contains NaN or infinity, the float64 reference does not"
    if torch.linalg.vector_norm(expected).item() < least * math.sqrt(expected.numel()):
        worst, allowed = (
            (_like(got, expected) - expected).abs().max().item(),
            largest_allowed(expected, tolerance, least),
        )
        return None if worst <= allowed else f"{what} is off by {worst:.3g} at one element, allowed is {allowed:.3g}"
    if not got.any() and expected.any():
        return f"{what} is all zeros, the float64 reference is not"
    error = relative_error(got, expected)
    if not error <= tolerance:
        return f"{what} has relative L2 error {error:.3g} against the float64 reference, allowed is {tolerance:.3g}"
    allowed = largest_allowed(expected, tolerance)
    worst = (_like(got, expected) - expected).abs().max().item()
    if not worst <= allowed:
        return f"{what} is off by {worst:.3g} at one element, allowed is {allowed:.3g} (relative L2 error {error:.3g})"
    return None


def misfit(got: Tensor, asked: torch.dtype, coarse: bool, device: torch.device) -> str | None:
    """Why `got` is not the kind of tensor that a caller of the operation gets, or None.

    asked: the dtype of the case, in whose precision the answer must be: a wider one is another computation, a narrower
    one is for a coarse accuracy class alone. Its elements must have memory of their own on the device of the inputs.
    """
    if type(got) not in (Tensor, torch.nn.Parameter):
        return f"the answer is a {type(got).__name__}, which may put work off; a plain tensor is asked for"
    if got.layout != torch.strided or overlaps(got):
        return (
            f"the answer has layout {got.layout} and strides {list(got.stride())}; every element needs its own memory"
        )
    if got.device != device:
        return f"the answer is on {got.device}, its inputs are on {device}"
    wanted = asked.to_complex() if got.is_complex() else asked.to_real()
    if got.dtype != wanted and not (coarse and got.dtype.itemsize < wanted.itemsize):
        return f"the answer is {got.dtype}, the case asks for {wanted}"
    return None


def check(
    output: Tensor, gradients: Mapping[str, Tensor], expected: Expected, tolerance: float, floor: float = 0.0
) -> str | None:
    """The first fault of an output and its gradients (of which `gradients` may hold none), or None.

    floor: see `Operation.gradient_floor`.
    """
    found = fault(output, expected.output, tolerance)
    least = floor * _rms([expected.gradients[name] for name in gradients]) if floor else 0.0
    for name, gradient in gradients.items():
        found = found or fault(
            gradient, expected.gradients[name], GRADIENT_FACTOR * tolerance, f"the gradient of {name}", least
        )
    return found


def _rms(tensors: Sequence[Tensor]) -> float:
    """Of all elements of all tensors."""
    squares = sum(torch.linalg.vector_norm(tensor).item() ** 2 for tensor in tensors)
    return math.sqrt(squares / max(1, sum(tensor.numel() for tensor in tensors)))


def _like(got: Tensor, expected: Tensor) -> Tensor:
    return got.detach().to(device=expected.device, dtype=expected.dtype)
