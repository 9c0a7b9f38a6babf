"""How the resampling kernels are launched: padded matrices, warps, planes per program, watched launches."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from spectralkernels.constants import constant
from spectralkernels.convolution.fused.precision import UNSCALED, Precision
from spectralkernels.convolution.fused.share import images_per_program
from spectralkernels.launch import Launch, LaunchPlan, NamedLaunch, planned_launch, triton_dtype
from spectralkernels.resampling import factors, matrix
from spectralkernels.resampling.kernels import resample_kernel, window_gradient_kernel
from spectralkernels.spectra import half, next_pow2

Plane = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Resampling:
    """One geometry: sides of the long maps and of the short ones, and the rule of an even size.

    smoothness: the width of the ramp where the device holds two strides, else 0.
    """

    long: Plane
    short: Plane
    even: str
    smoothness: float = 0.0

    def tile(self, transposed: bool) -> tuple[Plane, Plane]:
        """Of what is read and of what is written."""
        read, made = ((_tile(high), _tile(wide)) for high, wide in (self.long, self.short))
        return (made, read) if transposed else (read, made)

    @property
    def largest(self) -> int:
        """The longest side of a tile."""
        return _tile(max(*self.long, *self.short))


def _tile(side: int) -> int:
    """The least side of a tensor core's operand that holds one."""
    return max(16, next_pow2(side))


def resample_launch(
    x: Tensor,
    y: Tensor,
    window: Tensor | None,
    geometry: Resampling,
    scale: float,
    precision: Precision,
    *,
    transposed: bool,
    share: float | None = None,
) -> Launch:
    """The launch that fills y with the resampled x, or with the transposed map of it.

    x: Real [batch, channel, *long], y: Real [batch, channel, *short], exchanged where transposed; window: Float32 [1],
    a share of the band, or [2], strides, or None; all contiguous. share: one that the host knows.
    """
    tensors: dict[str, Tensor | None] = {"x_ptr": x, "y_ptr": y, "window_ptr": window}
    for axis, name in enumerate(("rows", "columns")):
        n, m = geometry.long[axis], geometry.short[axis]
        inner: Tensor | None = None
        frequency: Tensor | None = None
        if window is not None:
            outer, inner, frequency = _factors(n, m, geometry.even, transposed, x.device)
        else:
            outer = _whole(n, m, geometry.even, _cut(share, m), transposed, precision, x.device)
        tensors |= {f"outer_{name}_ptr": outer, f"inner_{name}_ptr": inner, f"frequency_{name}_ptr": frequency}
    return _resampling_plan(x.shape[0] * x.shape[1], geometry, scale, precision, transposed).of(tensors)


@planned_launch
def _resampling_plan(
    planes: int, geometry: Resampling, scale: float, precision: Precision, transposed: bool
) -> LaunchPlan:
    tile, out = geometry.tile(transposed)
    band = geometry.tile(False)[1]
    size, made = (geometry.short, geometry.long) if transposed else (geometry.long, geometry.short)
    warps = _warps(geometry, precision)
    images = images_per_program(planes, 1, warps, most=8)
    return LaunchPlan(
        kernel=resample_kernel,
        grid=(triton.cdiv(planes, images),),
        numbers={
            "planes": planes,
            "scale": scale,
            "smoothness": geometry.smoothness,
            **_sides("LONG_", geometry.long),
            **_sides("SHORT_", geometry.short),
            **_sides("", size),
            **_sides("OUT_", made),
            **_sides("TILE_", tile),
            **_sides("TILE_OUT_", out),
            **_sides("BAND_", band),
            "RAMP": int(geometry.smoothness > 0.0),
            "IMAGES": images,
            **_arithmetic(geometry, precision),
            # The factors of A are float32 in every class.
            "BUILD": "ieee" if precision.mode == "ieee" else "tf32x3",
        },
        options={"num_warps": warps},
    )


def window_gradient_launch(
    long: Tensor,
    short: Tensor,
    window: Tensor,
    partial: Tensor,
    geometry: Resampling,
    scale: float,
    precision: Precision,
) -> Launch:
    """The launch that fills partial, Float32 [programs, 2], whose sum is the gradient of both strides.

    long, short: Real [batch, channel, *sides], contiguous: maps and the gradient of what they became, or the reverse.
    """
    tensors: dict[str, Tensor | None] = {"long_ptr": long, "short_ptr": short, "window_ptr": window}
    tensors["partial_ptr"] = partial
    for axis, name in enumerate(("rows", "columns")):
        n, m = geometry.long[axis], geometry.short[axis]
        analyse, gather, frequency = _analyses(n, m, geometry.even, precision, long.device)
        tensors |= {f"analyse_{name}_ptr": analyse, f"gather_{name}_ptr": gather, f"frequency_{name}_ptr": frequency}
    return _gradient_plan(long.shape[0] * long.shape[1], geometry, scale, precision).of(tensors)


@planned_launch
def _gradient_plan(planes: int, geometry: Resampling, scale: float, precision: Precision) -> LaunchPlan:
    long, short = geometry.tile(False)
    images = _pairs(planes, geometry, precision)
    return LaunchPlan(
        kernel=window_gradient_kernel,
        grid=(triton.cdiv(planes, images),),
        numbers={
            "planes": planes,
            "scale": scale,
            "smoothness": geometry.smoothness,
            **_sides("LONG_", geometry.long),
            **_sides("SHORT_", geometry.short),
            **_sides("TILE_LONG_", long),
            **_sides("TILE_SHORT_", short),
            "IMAGES": images,
            **_arithmetic(geometry, precision),
        },
        options={"num_warps": _warps(geometry, precision)},
    )


def partial_sums(planes: int, geometry: Resampling, precision: Precision) -> int:
    """How many partial sums the kernel of `window_gradient_launch` writes."""
    return -(-planes // _pairs(planes, geometry, precision))


def _pairs(planes: int, geometry: Resampling, precision: Precision) -> int:
    return images_per_program(planes, 1, _warps(geometry, precision), most=32)


def _warps(geometry: Resampling, precision: Precision) -> int:
    """As for the fused depthwise convolution: a warp owns a plane of 32 x 32, two where operands are split.

    Above that split operands spill 136 to 624 bytes on mma.sync, as they do with eight warps; whole ones do not.
    """
    if geometry.largest > 32:
        return 4
    return 2 if precision.pieces > 1 or precision.mode == "ieee" else 1


def _sides(name: str, sides: Plane) -> dict[str, int]:
    return {f"{name}H": sides[0], f"{name}W": sides[1]}


def _arithmetic(geometry: Resampling, precision: Precision) -> dict[str, Any]:
    stages = 2 if geometry.largest <= 32 else 1
    return {"STAGES": stages, "MMA": triton_dtype(precision.operand), "PRECISION": precision.mode}


# --- matrices -------------------------------------------------------------------------------------------------------


def _cut(share: float | None, m: int) -> int | None:
    """The highest frequency that a share of the band leaves."""
    return None if share is None else math.floor(share * half(m))


@constant
def _whole(
    n: int, m: int, even: str, cut: int | None, transposed: bool, precision: Precision, device: torch.device
) -> Tensor:
    """A [TILE m, TILE n] in the dtype of operands, or its transpose."""
    cpu = torch.device("cpu")
    made = matrix(n, m, even, torch.float64, cpu)
    if cut is not None:
        s, d, frequency = factors(n, m, even, torch.float64, cpu)
        made = (s * (frequency <= cut)) @ d
    return precision.rounded(_padded(made.t() if transposed else made), device)


@constant
def _factors(n: int, m: int, even: str, transposed: bool, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Float32 (S, D, |k|), or (D', S', |k|), to the tile."""
    s, d, frequency = factors(n, m, even, torch.float64, torch.device("cpu"))
    outer, inner = (d.t(), s.t()) if transposed else (s, d)
    return _padded(outer).float().to(device), _padded(inner).float().to(device), _band(frequency).to(device)


@constant
def _analyses(n: int, m: int, even: str, precision: Precision, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(D, S', |k|) to the tile, in the dtype of operands."""
    s, d, frequency = factors(n, m, even, torch.float64, torch.device("cpu"))
    return (
        precision.rounded(_padded(d), device),
        precision.rounded(_padded(s.t()), device),
        _band(frequency).to(device),
    )


def _padded(made: Tensor) -> Tensor:
    rows, columns = (_tile(side) - side for side in made.shape)
    return F.pad(made, (0, columns, 0, rows)).contiguous()


def _band(frequency: Tensor) -> Tensor:
    return F.pad(frequency.float(), (0, _tile(len(frequency)) - len(frequency)))


# --- watched launches -----------------------------------------------------------------------------------------------


def _watched(kind: str, planes: tuple[int, int], long: int, short: int, name: str, maps: torch.dtype) -> NamedLaunch:
    """A pooling, DiffStride forward, its gradient in x or in its strides, on maps of (batch, channels)."""

    def call() -> None:
        strided = kind != "pool"
        window = torch.empty(2, device="meta") if strided else None
        geometry = Resampling((long, long), (short, short), "drop" if strided else "average", 4.0 if strided else 0.0)
        x, y = (torch.empty(*planes, side, side, dtype=maps, device="meta") for side in (long, short))
        planned = UNSCALED[name]
        if kind == "strides":
            assert window is not None
            sums = torch.empty(partial_sums(math.prod(planes), geometry, planned), 2, device="meta")
            window_gradient_launch(x, y, window, sums, geometry, 1.0, planned).run()
        elif kind == "dx":
            resample_launch(y, x, window, geometry, 1.0, planned, transposed=True).run()
        else:
            resample_launch(x, y, window, geometry, 1.0, planned, transposed=False).run()

    return NamedLaunch(f"{kind} {name} B{planes[0]} C{planes[1]} {long}x{long} {short}x{short}", call)


FINGERPRINTS = (
    _watched("pool", (128, 64), 32, 16, "bf16", torch.bfloat16),
    _watched("pool", (128, 64), 32, 16, "tf32x3", torch.float32),
    _watched("pool", (32, 64), 56, 28, "tf32x3", torch.float32),
    _watched("window", (128, 64), 32, 24, "tf32x3", torch.float32),
    _watched("window", (32, 64), 56, 36, "tf32x3", torch.float32),
    _watched("dx", (128, 64), 32, 24, "tf32x3", torch.float32),
    _watched("strides", (128, 64), 32, 24, "bf16", torch.bfloat16),
    _watched("strides", (128, 64), 32, 24, "tf32x3", torch.float32),
    _watched("strides", (32, 64), 56, 36, "tf32x3", torch.float32),
)
"""The `gpu` profiles of spectral pooling and DiffStride."""
