"""From the arguments of a band-limited convolution to its `Band`, with every way they can be wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from spectralkernels.checks import (
    REAL_DTYPES,
    as_integer,
    as_integers,
    as_number,
    check_bias,
    check_channels,
    check_compression,
    check_dims,
    check_dtype,
    check_groups,
    check_like,
    check_sizes,
    check_tensor,
)
from spectralkernels.constants import planned
from spectralkernels.dft import too_large
from spectralkernels.errors import DtypeError, RangeError, ShapeError
from spectralkernels.modes import ModeList
from spectralkernels.spectra import GRIDS, Band, fft_size, kept_1d, kept_2d


@dataclass(frozen=True, slots=True, eq=False)
class WeightSpectrum:
    """A frozen weight, transformed once for one geometry; the convolution it was made for takes it for a weight.

    made by `weight_spectrum` for `band_limited_conv2d` and `...1d`, by `masked_weight_spectrum` for `masked_conv2d`.
    mode_list: the modes of a mask; None for the whole band.
    modes: Real [F, 2, O * C / groups], see `dft`. A snapshot: it does not follow later changes of the weight and
    carries no gradient.

    A call with it need not repeat compression, padding, groups and grid. It compares by value, moves with `to`, and is
    saved and loaded by torch, `weights_only=True` included. In a module, keep `modes` as a buffer, and call with
    `dataclasses.replace(spectrum, modes=self.modes)`.
    """

    modes: Tensor
    band: Band
    out_channels: int
    in_channels_per_group: int
    groups: int
    mode_list: ModeList | None = None

    def to(self, *args: Any, **kwargs: Any) -> WeightSpectrum:
        """The same spectrum on a device or in float32 or float64; arguments as in torch.Tensor.to."""
        modes = self.modes.to(*args, **kwargs)
        if modes.dtype not in (torch.float32, torch.float64):
            raise DtypeError(f"a WeightSpectrum is held in float32 or float64, half maps included, got {modes.dtype}")
        return replace(self, modes=modes)

    def __eq__(self, other: object) -> bool:
        """Equal geometry, and equal modes on the same device."""
        if not isinstance(other, WeightSpectrum):
            return NotImplemented
        facts = [(one.band, one.out_channels, one.groups, one.mode_list, one.modes.device) for one in (self, other)]
        return facts[0] == facts[1] and self.modes.dtype == other.modes.dtype and torch.equal(self.modes, other.modes)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        kernel = [self.out_channels, self.in_channels_per_group, *self.band.kernel]
        band = f"compression={self.band.compression}" if self.mode_list is None else f"{len(self.mode_list)} modes"
        return (
            f"WeightSpectrum(weight={kernel}, size={self.band.size}, n={self.band.n}, {band}, groups={self.groups}, "
            f"dtype={self.modes.dtype}, device={self.modes.device})"
        )


def needs_tensor(weight: Tensor | WeightSpectrum, **rest: object) -> str | None:
    """The reason why an implementation that transforms the weight itself cannot take this one, or None."""
    return "it takes a weight tensor, not a WeightSpectrum" if isinstance(weight, WeightSpectrum) else None


def fits_matrices(x: Tensor, band: Band, **rest: object) -> str | None:
    """The reason why the transforms of a convolution are not made as matrices, or None; see `dft.too_large`."""
    return _too_large(band, compute_dtype(x.dtype).itemsize)


@planned
def _too_large(band: Band, itemsize: int) -> str | None:
    return too_large(band.n, band.kept, (band.size, band.kernel, band.out), itemsize)


Padding = Literal["same", "valid", "causal"] | int | Sequence[int]
GridChoice = str | int | Sequence[int]


def check_arguments(
    x: Tensor, weight: Tensor, bias: Tensor | None, groups: int, stride: int | tuple[int, ...], spatial: str
) -> None:
    """Raise what is wrong with the tensors of a convolution; `spatial` is "length" or "height, width"."""
    kernel = ", ".join(f"kernel {axis}" for axis in spatial.split(", "))
    check_tensor("weight", weight)
    check_dims("weight", weight, f"[out_channel, in_channel / groups, {kernel}]")
    check_dtype("x", x, REAL_DTYPES)
    check_like("weight", weight, "x", x)
    check_channels(x.shape[1], weight, groups)
    check_bias(bias, weight.shape[0], x)
    check_stride(stride)


def check_frozen_weight(weight: Tensor, axes: int, groups: int) -> None:
    """Raise what is wrong with a weight that is to be frozen for series (1 axis) or maps (2)."""
    check_tensor("weight", weight)
    kernel = "kernel length" if axes == 1 else "kernel height, kernel width"
    check_dims("weight", weight, f"[out_channel, in_channel / groups, {kernel}]")
    check_dtype("weight", weight, REAL_DTYPES)
    check_groups(groups)
    check_channels(weight.shape[1] * groups, weight, groups)


def check_spectrum_arguments(
    x: Tensor,
    spectrum: WeightSpectrum,
    bias: Tensor | None,
    band: Band,
    groups: int,
    stride: int | tuple[int, ...],
    modes: ModeList | None = None,
) -> None:
    """Raise what is wrong with maps that meet a frozen `WeightSpectrum`: dtype, device, channels, geometry or modes."""
    check_dtype("x", x, REAL_DTYPES)
    if x.device != spectrum.modes.device or compute_dtype(x.dtype) != spectrum.modes.dtype:
        raise DtypeError(
            f"this WeightSpectrum holds {spectrum.modes.dtype} on {spectrum.modes.device}, x is {x.dtype} "
            f"on {x.device}; "
            "make it from a weight of the dtype and device of x"
        )
    check_bias(bias, spectrum.out_channels, x)
    check_stride(stride)
    if (spectrum.band, spectrum.groups) != (band, groups):
        made, needed = ({**asdict(each), "groups": g} for each, g in ((spectrum.band, spectrum.groups), (band, groups)))
        here, there = (
            ", ".join(f"{name}={facts[name]}" for name in made if made[name] != needed[name])
            for facts in (made, needed)
        )
        raise ShapeError(
            f"this WeightSpectrum was made for {here}, the call needs {there}; leave the geometry out of the call, or "
            f"make one with {_maker(modes)}(...) for it"
        )
    if spectrum.mode_list != modes:
        raise ShapeError(
            f"this WeightSpectrum holds the modes of {_origin(spectrum.mode_list)}, the call needs those of "
            f"{_origin(modes)}; make one with {_maker(modes)}(...)"
        )
    if x.shape[1] != spectrum.in_channels_per_group * groups:
        raise ShapeError(f"x must have {spectrum.in_channels_per_group * groups} channels, got shape {list(x.shape)}")


def _maker(modes: ModeList | None) -> str:
    return "weight_spectrum" if modes is None else "masked_weight_spectrum"


def _origin(modes: ModeList | None) -> str:
    return "a whole band" if modes is None else f"a mask ({len(modes)} of them)"


def check_stride(stride: int | Sequence[int]) -> None:
    steps = stride if isinstance(stride, (tuple, list)) else (stride,)
    if any(as_integer("stride", step) != 1 for step in steps):
        raise RangeError(f"stride must be 1, got {stride}; subsample the output, y[..., ::2, ::2], for a stride of 2")


def reach(kernel: Sequence[int], dilation: Sequence[int]) -> tuple[int, ...]:
    """Samples from the first to the last tap of a dilated kernel: the kernel of its band."""
    return tuple(step * (taps - 1) + 1 for taps, step in zip(kernel, dilation, strict=True))


def dilation_of(band: Band, kernel: Sequence[int]) -> tuple[int, ...]:
    """The distance of the taps of a `kernel` on a band, which has its reach; 1 for a single tap."""
    return tuple((far - 1) // max(1, taps - 1) or 1 for far, taps in zip(band.kernel, kernel, strict=True))


def conv_band(
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    *,
    compression: float,
    padding: Padding = "same",
    grid: GridChoice = "tight",
) -> Band:
    """The geometry of a stride-1 correlation on planes of `size` with a `kernel`, under a compression rate.

    padding: "same" (output size = input size; an even kernel has the extra zero after, as torch has), "valid", zeros on
    both sides, or of series "causal": the output size is that of the input, and all zeros lie before.
    grid: a policy of `spectra.fft_size`, or the FFT size itself.
    Raises: ShapeError where no output is left; DtypeError or RangeError on a bad compression, padding or grid.
    """
    if min(*size, *kernel) < 1:
        raise ShapeError(f"map and kernel must have at least one sample per axis, got map {size} and kernel {kernel}")
    return _band(size, kernel, compression, _per_axis_padding(padding, kernel), grid)


def filled(geometry: dict[str, Any]) -> dict[str, Any]:
    """The options of a call that are not given, None, as they are for a weight that is a tensor."""
    defaults = {"compression": 0.0, "padding": "same", "grid": "tight", "groups": 1}
    return {name: defaults[name] if value is None else value for name, value in geometry.items()}


def checked_groups(groups: int | None, weight: Tensor | WeightSpectrum) -> int:
    """The groups of a call: those of a frozen weight, or 1, where none are given."""
    if groups is None:
        return weight.groups if isinstance(weight, WeightSpectrum) else 1
    return as_integer("groups", groups)


def frozen_band(
    spectrum: WeightSpectrum,
    size: tuple[int, ...],
    *,
    compression: float | None,
    padding: Padding | None,
    grid: GridChoice | None,
) -> Band:
    """The geometry of a call with a frozen weight: what is None is the spectrum's own. Errors as in `conv_band`."""
    own = spectrum.band
    if size != own.size:
        maker = _maker(spectrum.mode_list)
        raise ShapeError(
            f"this WeightSpectrum was made for maps of {own.size}, got {size}; make one with {maker}(...) "
            "for this map size"
        )
    if compression is padding is grid is None:
        return own
    compression = own.compression if compression is None else compression
    pad = own.pad if padding is None else _per_axis_padding(padding, own.kernel)
    return _band(size, own.kernel, compression, pad, own.n if grid is None else grid)


def _band(
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    compression: float,
    pad: tuple[tuple[int, int], ...],
    grid: GridChoice,
) -> Band:
    compression = as_number("compression", compression)
    check_compression(compression)
    out = tuple(h + before + after - k + 1 for h, k, (before, after) in zip(size, kernel, pad, strict=True))
    if min(out) < 1:
        raise ShapeError(
            f"kernel {kernel} is larger than the padded map {size} + {pad}; pad more or use padding='same'"
        )
    rule: Callable[[int, float], int] = kept_1d if len(size) == 1 else kept_2d
    n = _grid_sizes(grid, size, kernel, pad, out)
    return Band(size, kernel, pad, out, n, tuple(rule(each, compression) for each in n), compression)


def _per_axis_padding(padding: Padding, kernel: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    if isinstance(padding, str) and padding == "same":
        return tuple(((k - 1) // 2, k // 2) for k in kernel)
    if isinstance(padding, str) and padding == "valid":
        return tuple((0, 0) for _ in kernel)
    if isinstance(padding, str) and padding == "causal" and len(kernel) == 1:
        return ((kernel[0] - 1, 0),)
    if isinstance(padding, str):
        raise RangeError(f"padding must be 'same', 'valid' or a number of zeros per side, got {padding!r}")
    if not isinstance(padding, (tuple, list)):
        padding = (as_integer("padding", padding),) * len(kernel)
    sides = tuple(as_integer("padding", side) for side in padding)
    if len(sides) != len(kernel) or min(sides) < 0:
        raise RangeError(f"padding must be one number >= 0, or one for each of {len(kernel)} axes, got {padding}")
    check_sizes("padding", sides, padding, " zeros per side")
    return tuple((side, side) for side in sides)


def check_grid_choice(grid: GridChoice) -> None:
    """Raise on what is neither a policy nor FFT sizes; whether they suffice follows from the maps."""
    if not isinstance(grid, str):
        for n in grid if isinstance(grid, (tuple, list)) else (grid,):
            check_sizes("grid", (as_integer("grid", n),), n)
    elif grid not in GRIDS:
        raise RangeError(f"grid must be one of {', '.join(GRIDS)} or an FFT size, got {grid!r}")


def _grid_sizes(
    grid: GridChoice,
    size: tuple[int, ...],
    kernel: tuple[int, ...],
    pad: tuple[tuple[int, int], ...],
    out: tuple[int, ...],
) -> tuple[int, ...]:
    sides = list(zip(size, kernel, pad, out, strict=True))
    check_grid_choice(grid)
    if isinstance(grid, str):
        return tuple(fft_size(h, k, p, o, grid) for h, k, p, o in sides)  # type: ignore[arg-type]
    n = as_integers("grid", grid, (len(size),)) if isinstance(grid, (tuple, list)) else (as_integer("grid", grid),)
    n = n * (len(size) // len(n))
    least = tuple(fft_size(h, k, p, o, "tight") for h, k, p, o in sides)
    if len(n) != len(size) or any(have < need for have, need in zip(n, least, strict=True)):
        raise RangeError(f"grid {n} wraps around into the output: the smallest FFT size here is {least}")
    return tuple(n)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Spectra of half-precision maps are computed in float32."""
    return torch.float32 if dtype in HALVES else dtype


HALVES = (torch.float16, torch.bfloat16)
