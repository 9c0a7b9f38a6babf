"""DiffStride: pooling whose strides are learned, by a soft window over the spectrum that is then cropped.

    y = Re F^-1_M( crop_M( m_h(u; S_h) m_w(v; S_w) F_N(x) ) ),    m(f; S) = clamp((R + N / (2 S) - |f|) / R, 0, 1)
    dm / dS = -N / (2 R S^2) in the ramp, 0 elsewhere;   M = N / S + 2 R rounded up to even, at most N

The window is separable and the same for +f and -f, so that each axis is one real matrix S diag(m) D (`resampling`), and
the gradient to a stride is that of a weighted sum of constant matrices: exact, from the ramp's few waves alone.
R = 4 is the authors': at their strides a map of 16 does not shrink (T23), so that sizes must be recorded.

Source: Riad et al., "Learning Strides in Convolutional Neural Networks" (ICLR 2022); `compat` computes what their code
does: another threshold of columns (T20) and other positions of rows (T21).
Floor: x and two strides in, y out, and the cheaper of two matrix products and two FFTs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from spectralkernels.autocast import as_written
from spectralkernels.checks import REAL_DTYPES, as_flag, as_integers, as_number, check_dtype, check_tensor
from spectralkernels.convolution.fused.precision import UNSCALED, in_every_class
from spectralkernels.convolution.geometry import compute_dtype
from spectralkernels.declare import Block, Case, Cost, Decision, Implementation, Operation, Pass, Scalar, Tolerance
from spectralkernels.dispatch import dispatch
from spectralkernels.errors import DtypeError, RangeError, ShapeError
from spectralkernels.inputs import feature_map
from spectralkernels.layouts import as_given, batched
from spectralkernels.masks import soft_window_side
from spectralkernels.masks.window import AT_AN_END, held_stride, ramp
from spectralkernels.operators import nothing_traces
from spectralkernels.resampling import check_target, factors, resample, windowed_matrix
from spectralkernels.resampling.fused import DEFAULT, best_resampling, fused_resample, not_resampled
from spectralkernels.resampling.learned import learned_resample
from spectralkernels.spectra import half


def diff_stride2d(
    x: Tensor,
    strides: Tensor,
    *,
    smoothness: float = 4.0,
    cropping: bool = True,
    size: tuple[int, int] | None = None,
    legacy_scale: bool = False,
    compat: bool = False,
    impl: str = "auto",
) -> Tensor:
    """Pool maps at learned strides.

    x: Real [batch, channel, height, width], or one sample of it, each side above R; half types are computed in float32.
    strides: Real [2], (S_h, S_w), on the device of x. Before use S is moved into [N / (N - R), N / 2] (T22); the
        gradient passes through that move, so that a stride outside can come back.
    smoothness: R > 0, the width of the ramp in frequencies.
    cropping: False keeps the size of the map, for which nothing is read on the host: sizes that follow the strides
        (T24) wait for the device, and forbid CUDA graphs and compilation whole.
    size: (M_h, M_w) to crop to instead, whatever the window holds beyond; nothing is read either.
    legacy_scale: multiply by N_h N_w / (M_h M_w), as an unscaled FFT and a scaled inverse do.
    compat: the authors' positions and thresholds, for even sides; not with `size`.
    Returns: Real [batch, channel, M_h, M_w], dtype and layout of x. Differentiable in x and strides.
    Raises: ShapeError, DtypeError, RangeError on arguments that do not fit; Unsupported if `impl` cannot run here.
    """
    given, x = x, batched(x, "[batch, channel, height, width]")
    check_dtype("x", x, REAL_DTYPES)
    plane = (x.shape[2], x.shape[3])
    smoothness = as_number("smoothness", smoothness)
    if not 0.0 < smoothness < math.inf:
        raise RangeError(f"smoothness must be above 0, got {smoothness}; spectral_pool2d has a hard edge")
    if min(plane) <= smoothness or min(plane) < 2:
        raise RangeError(
            f"each side of the map {plane} must exceed smoothness={smoothness} and 1; lower the smoothness"
        )
    check_tensor("strides", strides)
    if strides.shape != (2,) or not strides.is_floating_point():
        raise ShapeError(
            f"strides must be Real [2], vertical and horizontal, got {strides.dtype} {list(strides.shape)}"
        )
    if strides.device != x.device:
        raise DtypeError(f"strides must be on the device of x ({x.device}), got {strides.device}; move one of them")
    cropping, compat = as_flag("cropping", cropping), as_flag("compat", compat)
    if compat and (plane[0] % 2 or plane[1] % 2):
        raise RangeError(f"compat needs even sides, got {plane}: at odd ones the authors' code misplaces the mean")
    if size is not None and (compat or not cropping):
        raise RangeError("size must be left out with compat=True or cropping=False, which have sizes of their own")
    if size is not None:
        target = as_integers("size", size, (2,))
    else:
        target = diff_stride_size(plane, strides, smoothness) if cropping else plane
    check_target(plane, target)
    inputs: dict[str, Any] = {"x": x, "strides": strides, "size": target, "smoothness": smoothness}
    scale = math.prod(plane) / math.prod(target) if as_flag("legacy_scale", legacy_scale) else 1.0
    y = dispatch(OPERATION, impl, x.device.type, {**inputs, "scale": scale, "compat": compat})
    return as_given(y, given, x)


def diff_stride_size(plane: tuple[int, int], strides: Tensor, smoothness: float) -> tuple[int, int]:
    """The size that `diff_stride2d` crops to: N / S + 2 R rounded up to even, at most N. Reads the strides."""
    values: list[float] = strides.detach().tolist()
    if not all(math.isfinite(value) for value in values):
        raise RangeError(f"strides must be finite, got {values}; lower the learning rate of the strides")
    sides = (
        soft_window_side(n, held_stride(n, value, smoothness), smoothness)
        for n, value in zip(plane, values, strict=True)
    )
    return next(sides), next(sides)


# --- implementations ------------------------------------------------------------------------------------------------


def _dft_gemm(
    x: Tensor, strides: Tensor, size: tuple[int, int], smoothness: float, scale: float, compat: bool
) -> Tensor:
    dtype = compute_dtype(x.dtype)
    with as_written(x.device.type):
        sides = tuple(enumerate(zip(x.shape[2:], size, strict=True)))
        if not (torch.is_grad_enabled() and strides.requires_grad):
            rows, columns = (
                windowed_matrix(n, m, "drop", None, strides, axis, smoothness, dtype, x.device)
                for axis, (n, m) in sides
            )
            return resample(x.to(dtype), rows * scale, columns).to(x.dtype)
        if nothing_traces() and forward_ad._current_level < 0:
            return learned_resample(x.to(dtype), strides.to(dtype), size, smoothness, scale).to(x.dtype)
        # What differentiates in its own way, or cannot follow ours, has the window between the waves.
        (s_h, d_h, k_h), (s_w, d_w, k_w) = (factors(n, m, "drop", dtype, x.device) for _, (n, m) in sides)
        held = strides.to(dtype)
        of_rows = ramp(k_h, x.shape[2], held[0], smoothness) * scale
        of_columns = ramp(k_w, x.shape[3], held[1], smoothness)
        modes = resample(x.to(dtype), d_h, d_w) * (of_rows.unsqueeze(1) * of_columns)
        return resample(modes, s_h, s_w).to(x.dtype)


def _symmetric(compat: bool, **rest: Any) -> str | None:
    return "the authors' code treats +f and -f differently; a real matrix an axis cannot" if compat else None


def _triton(
    x: Tensor,
    strides: Tensor,
    size: tuple[int, int],
    smoothness: float,
    scale: float,
    compat: bool,
    *,
    accuracy: str,
) -> Tensor:
    return fused_resample(x, size, "drop", strides=strides, smoothness=smoothness, scale=scale, accuracy=accuracy)


def _triton_rules(x: Tensor, size: tuple[int, int], compat: bool, *, accuracy: str, **rest: Any) -> str | None:
    return _symmetric(compat) or not_resampled(x, size, accuracy, strided=True)


def _torch_rfft(
    x: Tensor, strides: Tensor, size: tuple[int, int], smoothness: float, scale: float, compat: bool
) -> Tensor:
    height, width = x.shape[2:]
    dtype = compute_dtype(x.dtype)
    with as_written(x.device.type):
        strides = strides.to(dtype)
        spectrum = torch.fft.rfft2(x.to(dtype), norm="forward")
        kept = torch.arange(size[0], device=x.device)
        kept = torch.where(2 * kept < size[0], kept, kept + height - size[0])
        of_rows = ramp(row_positions(kept, height, compat), height, strides[0], smoothness)
        columns = torch.arange(half(size[1]), device=x.device)
        of_columns = ramp(columns - 1 if compat else columns, width, strides[1], smoothness)
        of_rows = of_rows * inside(torch.minimum(kept, height - kept), height, size[0])
        of_columns = of_columns * inside(columns, width, size[1])
        cropped = spectrum[..., : half(size[1])][..., kept, :] * (of_rows.unsqueeze(1) * of_columns)
        # One axis after the other: of a spectrum that is not Hermitian, as with compat, libraries of several axes
        # at once do not all take the real part.
        rows = torch.fft.ifft(cropped, dim=-2, norm="forward")
        return (torch.fft.irfft(rows, n=size[1], norm="forward") * scale).to(x.dtype)


def row_positions(rows: Tensor, height: int, compat: bool) -> Tensor:
    """Where the window sees a row: at |f|; the authors' code sees -f at f - 1 (T21)."""
    return torch.minimum(rows, height - rows - int(compat))


def inside(frequency: Tensor, n: int, m: int) -> Tensor:
    """Whether a frequency has a place of its own in the crop; M / 2 of an even crop has not."""
    return 2 * frequency < m if m < n else torch.ones_like(frequency, dtype=torch.bool)


# --- declaration ----------------------------------------------------------------------------------------------------


def _plane(case: Case) -> tuple[int, int]:
    return case["height"], case["width"]


def _size_of(case: Case) -> tuple[int, int]:
    if not case["cropping"]:
        return _plane(case)
    return diff_stride_size(_plane(case), torch.tensor([case["stride_h"], case["stride_w"]]), case["smoothness"])


def _inputs(case: Case, device: str) -> dict[str, Any]:
    dtype = getattr(torch, case.dtype)
    x = feature_map(case["input"], (case["batch"], case["channels"], *_plane(case)), case.seed)
    strides = torch.tensor([case["stride_h"], case["stride_w"]], device=device, dtype=compute_dtype(dtype))
    inputs = {"x": x.to(device=device, dtype=dtype), "strides": strides, "size": _size_of(case)}
    return {**inputs, "smoothness": case["smoothness"], "scale": 1.0, "compat": case["compat"]}


def _reference(
    x: Tensor, strides: Tensor, size: tuple[int, int], smoothness: float, scale: float, compat: bool
) -> Tensor:
    """In float64: the wave of every kept frequency of the full FFT, weighed by the window and summed."""
    x, strides = x.double(), strides.double()
    spectrum = torch.fft.fft2(x)
    y, waves = spectrum, []
    for axis, (n, m) in enumerate(zip(x.shape[2:], size, strict=True)):
        least = n / (n - smoothness)
        held = min(max(float(strides[axis].detach()), least), max(n / 2, least))
        stride = strides[axis] + (held - strides[axis].detach())
        # Rows are a full axis; columns stand for their mirrors too, which count by a factor.
        kept = range(-(m // 2), (m + 1) // 2) if axis == 0 else range(m // 2 + 1)
        weights, wave = [], torch.zeros(m, len(kept), dtype=torch.complex128, device=x.device)
        for i, k in enumerate(kept):
            shift = int(compat) if (axis == 1 or k < 0) else 0
            window = (smoothness + n / (2 * stride) - (abs(k) - shift)) / smoothness
            end = AT_AN_END * n / smoothness
            if not end < float(window.detach()) < 1.0 - end:
                window = window.detach().clamp(0.0, 1.0)
            twice = 2.0 if axis == 1 and 0 < 2 * k < n else 1.0
            weights.append(window * twice * (0.0 if m < n and 2 * abs(k) == m else 1.0))
            angle = torch.arange(m, device=x.device, dtype=torch.float64) * (2 * math.pi * k / m)
            wave[:, i] = torch.polar(torch.ones_like(angle), angle)
        waves.append(wave * torch.stack(weights))
        y = y.index_select(2 + axis, torch.tensor([k % n for k in kept], device=x.device))
    return torch.einsum("ju,bcuv,lv->bcjl", waves[0], y, waves[1]).real * (scale / math.prod(x.shape[2:]))


def _cost(case: Case) -> Cost:
    (high, wide), pixels = _size_of(case), case["height"] * case["width"]
    planes, itemsize = case["batch"] * case["channels"], getattr(torch, case.dtype).itemsize
    products = 2 * high * pixels + 2 * high * wide * case["width"]
    flops = min(products, int(5 * pixels * math.log2(max(2, pixels))))
    return Cost(itemsize * planes * pixels + 8, itemsize * planes * high * wide, planes * flops)


def _observe(case: Case, output: Tensor) -> Mapping[str, float]:
    kept = math.prod(_size_of(case)) / math.prod(_plane(case))
    return {"achieved_compression": 1.0 - kept, "kept_fraction": kept}


_SHAPE: dict[str, tuple[Scalar, ...]] = {
    "batch": (8,),
    "channels": (64,),
    "height": (32,),
    "width": (32,),
    "stride_h": (2.0,),
    "stride_w": (2.0,),
    "smoothness": (4.0,),
    "cropping": (True,),
    "compat": (False,),
    "input": ("pink",),
}
_TINY = {**_SHAPE, "batch": (2,), "channels": (3,), "height": (12,), "width": (10,), "smoothness": (1.5,)}
_BOTH: tuple[Pass, ...] = ("forward", "both")

PROFILES: dict[str, tuple[Block, ...]] = {
    "smoke": (
        Block({**_TINY, "stride_w": (1.7, 2.6), "cropping": (True, False), "compat": (False, True)}, passes=_BOTH),
        Block({**_TINY, "height": (11,), "stride_w": (1.0,)}, passes=_BOTH),
    ),
    "quick": (Block({**_SHAPE, "smoothness": (1.0, 4.0)}),),
    "study": (
        Block({**_SHAPE, "smoothness": (1.0, 2.0, 4.0), "cropping": (True, False)}, passes=_BOTH),
        Block({**_SHAPE, "height": (56,), "width": (56,), "stride_h": (1.5, 2.0, 3.0)}, passes=_BOTH),
        Block({**_SHAPE, "compat": (True,)}),
    ),
    "gpu": (Block({**_SHAPE, "batch": (128,)}, passes=_BOTH),),
    "asv": (Block({**_SHAPE, "smoothness": (1.0, 4.0)}),),
}

OPERATION = Operation(
    name="diff_stride2d",
    summary="pooling at learned strides: a soft window over the spectrum, cropped",
    version=1,
    source="Riad et al., Learning Strides in Convolutional Neural Networks, ICLR 2022",
    profiles=PROFILES,
    make_inputs=_inputs,
    reference=_reference,
    cost=_cost,
    fft_size=_plane,
    tolerance=Tolerance(
        {"float32": 1e-5, "float64": 1e-12, "float16": 2e-3, "bfloat16": 1.6e-2},
        because="two sums over at most a few hundred samples in float32; a stride sums over all maps and cancels",
    ),
    implementations=(
        Implementation(
            "dft_gemm", "kernel", _dft_gemm, "a pair of real matrices, made at the strides", supports=_symmetric
        ),
        *in_every_class(
            "triton", _triton, _triton_rules, "window, matrices and both products in one Triton launch", UNSCALED
        ),
        Implementation("torch_rfft", "baseline", _torch_rfft, "rfft2, window, crop, irfft2: the authors' way"),
    ),
    auto=lambda compat, **inputs: (
        Decision("torch_rfft", "it alone has the authors' positions")
        if compat
        else best_resampling(inputs["x"], _triton_rules(compat=compat, accuracy=DEFAULT, **inputs))
    ),
    observe=_observe,
    gradients=("x", "strides"),
)
