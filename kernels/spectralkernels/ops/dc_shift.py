"""The DC shift: bring the frequency zero of a spectrum from its corner to its centre, or back.

    y[i, j] = x[(i - H // 2) mod H, (j - W // 2) mod W],     back: + in place of -

For odd sides the way back is another permutation (T21): shifting twice is no shift only where both sides are even.
Dziedzic et al. 2019 (section 6.1.1) swap the quadrants I with III and II with IV in place of loops over elements.

Floor: every number in and out. An operation is counted for each: a roofline knows no zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from spectralkernels.checks import check_tensor
from spectralkernels.constants import constant
from spectralkernels.declare import Block, Case, Cost, Decision, Implementation, Operation, Scalar, Tolerance
from spectralkernels.dispatch import dispatch
from spectralkernels.errors import DtypeError, ShapeError
from spectralkernels.inputs import feature_map
from spectralkernels.layouts import as_given


def dc_shift(x: Tensor, *, inverse: bool = False, impl: str = "auto") -> Tensor:
    """Move the zero frequency to the centre, (H // 2, W // 2), of the last two axes, or with `inverse` from there.

    x: Real or Complex [..., height, width], any strides. inverse: the way back.
    Returns: a tensor of its own, shape and dtype of x, in channels_last where x is. Differentiable.
    Raises: ShapeError, DtypeError on arguments that do not fit; Unsupported if `impl` cannot run here.
    """
    check_tensor("x", x)
    if x.dim() < 2:
        raise ShapeError(f"x must be [..., height, width], got shape {list(x.shape)}")
    if not isinstance(inverse, bool):
        raise DtypeError(f"inverse must be True or False, got {type(inverse).__name__}")
    return as_given(dispatch(OPERATION, impl, x.device.type, {"x": x, "inverse": inverse}), x, x)


# --- implementations ------------------------------------------------------------------------------------------------


def _by(side: int, inverse: bool) -> int:
    """Where an axis is cut: its samples from here on come first."""
    return side // 2 if inverse else (side + 1) // 2


def _quadrants(x: Tensor, inverse: bool) -> Tensor:
    """Two pairs of quadrants change places: one pass over memory."""
    down, across = (_by(side, inverse) for side in x.shape[-2:])
    upper, lower = x[..., :down, :], x[..., down:, :]
    rows = [torch.cat([half[..., across:], half[..., :across]], dim=-1) for half in (lower, upper)]
    return torch.cat(rows, dim=-2)


def _fftshift(x: Tensor, inverse: bool) -> Tensor:
    shift = torch.fft.ifftshift if inverse else torch.fft.fftshift
    return shift(x, dim=(-2, -1))


def _elements(x: Tensor, inverse: bool) -> Tensor:
    """Element by element, by a list of where each comes from."""
    where = _sources((x.shape[-2], x.shape[-1]), inverse, x.device)
    return x.flatten(-2).index_select(-1, where).view(x.shape)


@constant
def _sources(plane: tuple[int, int], inverse: bool, device: torch.device) -> Tensor:
    rows, columns = (torch.arange(_by(n, inverse), _by(n, inverse) + n, device=device).remainder(n) for n in plane)
    return (rows.unsqueeze(1) * plane[1] + columns).flatten()


# --- declaration ----------------------------------------------------------------------------------------------------


def _inputs(case: Case, device: str) -> dict[str, Any]:
    shape = (case["batch"], case["channels"], case["height"], case["width"])
    parts = [feature_map("white", shape, case.seed + i) for i in range(2)]
    x = torch.complex(*parts) if case.dtype.startswith("complex") else parts[0]
    return {"x": x.to(device=device, dtype=getattr(torch, case.dtype)), "inverse": case["inverse"]}


def _reference(x: Tensor, inverse: bool) -> Tensor:
    """Each frequency of x is asked where it is now."""
    wide = x.to(torch.complex128 if x.is_complex() else torch.float64)
    y = torch.empty_like(wide)
    height, width = x.shape[-2:]
    for i in range(height):
        for j in range(width):
            moved = (i + height // 2) % height, (j + width // 2) % width
            (there, here) = ((i, j), moved) if inverse else (moved, (i, j))
            y[..., there[0], there[1]] = wide[..., here[0], here[1]]
    return y


def _cost(case: Case) -> Cost:
    numbers = case["batch"] * case["channels"] * case["height"] * case["width"]
    moved = numbers * getattr(torch, case.dtype).itemsize
    return Cost(bytes_read=moved, bytes_written=moved, flops=numbers)


_SHAPE: dict[str, tuple[Scalar, ...]] = {
    "batch": (8,),
    "channels": (64,),
    "height": (32,),
    "width": (32,),
    "inverse": (False,),
}
_TINY = {**_SHAPE, "batch": (2,), "channels": (3,), "height": (5, 1), "width": (6, 7), "inverse": (False, True)}
_DTYPES = ("complex64", "float32")

PROFILES: dict[str, tuple[Block, ...]] = {
    "smoke": (Block(_TINY, dtypes=("complex64",), passes=("forward", "both")), Block(_SHAPE, dtypes=("float64",))),
    "quick": (Block(_SHAPE, dtypes=_DTYPES),),
    "study": tuple(
        Block({**_SHAPE, "height": (n,), "width": (n,)}, dtypes=_DTYPES, passes=("forward", "both"))
        for n in (8, 16, 32, 59, 64, 128)
    ),
    "gpu": (Block({**_SHAPE, "batch": (128,)}, dtypes=_DTYPES, passes=("forward", "both")),),
    "asv": (Block(_SHAPE, dtypes=("complex64",)),),
}

OPERATION = Operation(
    name="dc_shift",
    summary="the zero frequency of a spectrum from its corner to its centre, or back",
    version=1,
    source="Dziedzic et al., Band-limited Training and Inference for CNNs, ICML 2019, section 6.1.1",
    profiles=PROFILES,
    make_inputs=_inputs,
    reference=_reference,
    cost=_cost,
    fft_size=lambda case: (case["height"], case["width"]),
    tolerance=Tolerance(
        dict.fromkeys(("complex64", "complex128", "float32", "float64"), 0.0), because="it computes nothing"
    ),
    implementations=(
        Implementation("quadrants", "kernel", _quadrants, "the quadrants change places: the paper's way"),
        Implementation("fftshift", "baseline", _fftshift, "torch.fft.fftshift"),
        Implementation("elements", "baseline", _elements, "every element by an index: what the paper replaces"),
    ),
    auto=lambda **inputs: Decision("fftshift", "one pass over memory"),
    gradients=("x",),
)
