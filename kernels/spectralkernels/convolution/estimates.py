"""How long an implementation of a band-limited convolution takes on a CPU, about: its work, times fitted seconds.

`work` counts what an implementation does in units of one kind each (a multiplication in a product, a number of a plane
in a transform, a call); `FORWARD` says what a unit takes. Estimates are good for choosing, not for promising: the
constants are of one kind of machine, and what they must get right is which implementation is faster.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from spectralkernels.convolution import ffts
from spectralkernels.convolution.baselines import fast_band
from spectralkernels.convolution.cost import folded_flops
from spectralkernels.convolution.dft_native.operators import LARGEST_LANE_WEIGHTS
from spectralkernels.convolution.fitted import FORWARD, FORWARD_AND_BACKWARD
from spectralkernels.convolution.library import MOST_ZEROS, SLOW_WIDTH
from spectralkernels.convolution.linear_maps import PIECE_BYTES
from spectralkernels.convolution.low_pass import filters_by_fft
from spectralkernels.spectra import Band, half

LANES = 16 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 8
"""Channels that a library convolution, a product of few columns and `dft_native` round up to: those of AVX-512, or of
a register half as long."""
FEW_PLANES = 32
"""Maps that a transform by matrices, one axis after the other, takes the time of, at least: on one core of an AMD EPYC
3, 8 and 32 planes of 128 x 128, all modes kept, take 17.5, 19.6 and 17.9 ms."""
LARGE = 4 << 20
"""Numbers of a spectrum that an allocator maps anew in every call: they cost more each."""

_TAKEN_FROM = {"torch_fft_fast": "torch_fft"}

Work = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the time of a call follows from.

    itemsize: bytes of a number of the computation. listed: how many modes of the band a mask lists, by steps; all if
    None. cells: whether it lists them one by one.
    """

    batch: int
    channels: int
    out_channels: int
    groups: int
    band: Band
    itemsize: int = 4
    listed: int | None = None
    cells: bool = False

    @property
    def modes(self) -> int:
        """F."""
        return self.band.modes if self.listed is None else self.listed

    @property
    def inputs(self) -> int:
        """Channels per group."""
        return self.channels // self.groups

    @property
    def outputs(self) -> int:
        """Output channels per group."""
        return self.out_channels // self.groups

    @property
    def planes(self) -> tuple[int, int, int]:
        """Of x, weight and y."""
        return self.batch * self.channels, self.out_channels * self.inputs, self.batch * self.out_channels

    @property
    def products(self) -> int:
        """Multiplications of the product over channels, per mode or per tap and sample: B O C / groups."""
        return self.batch * self.out_channels * self.inputs


def seconds(name: str, sizes: Sizes, training: bool = False) -> float:
    """Seconds of one call of the implementation `name`, about, with its backward pass if `training`.

    KeyError if it is not estimated.
    """
    taken = (FORWARD_AND_BACKWARD if training else FORWARD)[taken_from(name)]
    total = 0.0
    for unit, count in work(name, sizes, training).items():
        total += taken[unit] * count
    return total * sizes.itemsize / 4


def taken_from(name: str) -> str:
    """The implementation whose seconds per unit of work are those of `name`, too."""
    return _TAKEN_FROM.get(name, name)


def work(name: str, sizes: Sizes, training: bool = False) -> Work:
    """What an implementation does, by unit: see the functions below.

    With a backward pass other constants stand for it; the library's convolutions, which fill registers with outputs,
    are counted from inputs to outputs and from outputs to inputs.
    """
    found = _WORK[name](sizes)
    if not (training and name in _BOTH_WAYS):
        return found
    back = _WORK[name](replace(sizes, channels=sizes.out_channels, out_channels=sizes.channels))
    return {unit: found.get(unit, 0.0) + back.get(unit, 0.0) for unit in {**found, **back}}


# --- torch.fft ------------------------------------------------------------------------------------------------------


def _torch_fft(sizes: Sizes) -> Work:
    """FFTs of x, weight and y with their plans, the numbers they pass over, and a complex product per mode."""
    band, planes = sizes.band, sum(sizes.planes)
    circle, last = math.prod(band.n), band.n[-1]
    found = {
        "call": 1.0,
        "number": planes * circle,
        "mode": planes * sizes.modes,
        "fft": planes * (circle // last) * ffts.row(last),
        "plan": 3.0 * ffts.plan(last),
        "large": planes * circle if planes * circle > LARGE else 0.0,
    }
    if len(band.n) == 2:
        found["second_fft"] = planes * half(last) * ffts.row(band.n[0], real=False)
        found["plan"] += 3.0 * ffts.plan(band.n[0], real=False)
        found["second_axis"] = planes * circle
    if sizes.inputs > 1:
        found["gemm"] = sizes.modes * sizes.groups
        found["product"] = sizes.products * sizes.modes
        found["large_mode"] = sum([n * sizes.modes for n in sizes.planes if n * sizes.modes > LARGE])
    return found


def _torch_fft_fast(sizes: Sizes) -> Work:
    return _torch_fft(replace(sizes, band=fast_band(sizes.band)))


# --- matrices -------------------------------------------------------------------------------------------------------


def _dft_gemm(sizes: Sizes) -> Work:
    """Real products that transform maps and weight, at least of `FEW_PLANES`; per mode and group a product."""
    band, (of_x, of_weight, of_y) = sizes.band, sizes.planes
    depthwise, staircase = sizes.inputs == 1, len(band.n) == 2 and not sizes.cells
    few = FEW_PLANES if staircase else 0
    pieces = max(1.0, 2 * sizes.modes * of_weight * sizes.itemsize / PIECE_BYTES)
    found = {
        "call": 1.0,
        "piece": pieces * (1 if depthwise else sizes.groups),
        "map": max(_up(of_x), few) * _truncated(band.size, sizes) + max(_up(of_y), few) * _truncated(band.out, sizes),
        "kernel": _up(of_weight) * _truncated(band.kernel, sizes),
        "number": of_x * math.prod(band.size) + of_y * math.prod(band.out),
        "mode": (of_x + of_weight + of_y) * sizes.modes,
    }
    if staircase:
        rows = of_x * band.size[0] + of_y * band.out[0] + of_weight * band.kernel[0]
        found["half_done"] = rows * band.columns
    if depthwise:
        found["element"] = of_y * sizes.modes
    else:
        found["gemm"] = sizes.modes * sizes.groups
        found["product"] = sizes.products * sizes.modes
    return found


def _truncated(plane: tuple[int, ...], sizes: Sizes) -> int:
    """FLOPs of the transform of one plane: dense for cells, else a real product over columns and one over rows."""
    if sizes.cells:
        return 4 * math.prod(plane) * sizes.modes
    first = 4 * math.prod(plane) * sizes.band.columns
    return first if len(plane) == 1 else first + 8 * plane[0] * sizes.modes


def _dft_native(sizes: Sizes) -> Work:
    """Folded transforms and the product, planes in lanes: groups where these fill them better, else channels.

    Of modes that are listed one by one it computes the whole band around them.
    """
    modes = sizes.band.modes if sizes.cells else sizes.modes
    band, (of_x, of_weight, of_y) = sizes.band, sizes.planes
    lanes = LANES * 4 // sizes.itemsize
    of_groups = _up(sizes.groups, lanes) / sizes.groups
    of_outputs = _up(sizes.outputs, lanes) / sizes.outputs
    pairs = sizes.inputs * sizes.outputs
    if of_groups < of_outputs and 2 * modes * pairs * lanes * sizes.itemsize <= LARGEST_LANE_WEIGHTS:
        maps = of_x * folded_flops(band.size, band) + of_y * folded_flops(band.out, band)
        numbers = of_x * math.prod(band.size) + of_y * math.prod(band.out)
        return {
            "call": 1.0,
            "lane_map": maps * of_groups,
            "lane_kernel": of_weight * folded_flops(band.kernel, band) * of_groups,
            "lane_product": sizes.products * modes * of_groups,
            "lane_number": numbers * of_groups,
        }
    of_inputs = _up(sizes.inputs, lanes) / sizes.inputs
    numbers = of_x * math.prod(band.size) + of_weight * math.prod(band.kernel) + of_y * math.prod(band.out)
    return {
        "call": 1.0,
        "group": sizes.groups,
        "number": numbers,
        "large": numbers if numbers > LARGE else 0,
        "map": of_x * of_inputs * folded_flops(band.size, band) + of_y * of_outputs * folded_flops(band.out, band),
        "kernel": of_weight * of_outputs * folded_flops(band.kernel, band),
        "product": sizes.products * modes * of_outputs,
    }


def _up(count: int, lanes: int = LANES) -> int:
    return -(-count // lanes) * lanes


# --- the library convolution ----------------------------------------------------------------------------------------


def _direct(sizes: Sizes) -> Work:
    band = sizes.band
    pairs = band.out[-1] * band.kernel[-1]
    if len(band.n) == 2:
        pairs *= _pairs(band.size[0], band.kernel[0], band.pad[0][0], band.out[0])
    found = _convolved(sizes, band.out, pairs)
    if any(before != after for before, after in band.pad) or band.pad[-1][0] > MOST_ZEROS:
        # zeros are laid around x beforehand
        padded = [size + sum(pad) for size, pad in zip(band.size, band.pad, strict=True)]
        found |= {"padded": sizes.planes[0] * math.prod(padded), "padded_row": sizes.planes[0] * math.prod(padded[:-1])}
    return found


def _direct_converted(sizes: Sizes) -> Work:
    """The same in channels_last, where channels are not rounded up in memory."""
    return {**_direct(sizes), "in_lanes": 0.0, "groups_in_lanes": 0.0}


def _pairs(size: int, taps: int, zeros: int, out: int) -> int:
    """Rows of the answer with rows of taps that do not fall on padding, which oneDNN leaves out."""
    return sum(max(0, min(out, size + zeros - tap) - max(0, zeros - tap)) for tap in range(taps))


def _convolved(sizes: Sizes, out: tuple[int, ...], pairs: int) -> dict[str, float]:
    """Products by the way that oneDNN has for them, channels rounded up, and numbers of maps, answer and weight.

    Its kernels make four registers of outputs at once of an input that they read: fewer take longer each.
    pairs: of samples and taps.
    """
    inputs, outputs, band, (of_x, of_weight, of_y) = sizes.inputs, sizes.outputs, sizes.band, sizes.planes
    samples, taps, pixels = math.prod(out), math.prod(band.kernel), math.prod(band.size)
    rounded = _up(inputs) if inputs >= LANES else inputs
    narrow = "narrow_" if outputs <= LANES else ""
    in_memory = sizes.batch * ((rounded if sizes.groups == 1 else _up(sizes.channels)) * pixels)
    if sizes.groups == 1:
        unit, channels = narrow + ("dense" if inputs >= LANES else "few_channels"), rounded * _up(outputs)
    elif inputs == outputs == 1:
        unit, channels = "depthwise", _up(sizes.groups)
    else:
        unit, channels = "grouped", sizes.groups * rounded * _up(outputs)
    if taps == 1:
        unit, channels = "pointwise", sizes.groups * inputs * _up(outputs)
    elif sizes.groups > 1 and band.kernel[-1] >= SLOW_WIDTH:
        unit = f"wide_{unit}" if band.kernel[0] == 1 or len(band.n) == 1 else f"wide_{unit}_map"
    numbers, laned = of_x * pixels + of_y * samples, in_memory + sizes.batch * _up(sizes.out_channels) * samples
    return {
        "call": 1.0,
        unit: 2 * sizes.batch * channels * pairs,
        "number": numbers,
        "large": numbers if numbers > LARGE else 0,
        "in_lanes": laned if sizes.groups == 1 else 0,
        "groups_in_lanes": laned if sizes.groups > 1 else 0,
        "pointwise_number": of_x * samples if taps == 1 else 0,
        "tap": of_weight * taps,
        "group": sizes.batch * sizes.groups if taps == 1 and sizes.groups > 1 else 0,
    }


def _direct_lowpass(sizes: Sizes) -> Work:
    """The convolution of wrapped maps on the whole circle, then a filter per axis: a product or two FFTs."""
    band, of_x, of_y = sizes.band, sizes.planes[0], sizes.planes[2]
    units = ("filter", "filter_fft", "filter_number", "plan")
    pairs = math.prod(band.n) * math.prod(band.kernel)
    found = {**_convolved(sizes, band.n, pairs), **dict.fromkeys(units, 0.0)}
    found["wrapped"] = of_x * math.prod([n + taps for n, taps in zip(band.n, band.kernel, strict=True)])
    found["unfiltered"] = of_y * math.prod(band.n)
    left = list(band.n)
    for axis, (n, kept, out) in enumerate(zip(band.n, band.kept, band.out, strict=True)):
        rows = of_y * math.prod(left) // n
        left[axis] = out
        if kept == half(n):
            continue
        if filters_by_fft(n, out, sizes.itemsize, "cpu"):
            circle = ffts.filter_circle(n, out)
            found["filter_fft"] += 2.0 * rows * ffts.row(circle)
            found["filter_number"] += rows * circle
            found["plan"] += 2.0 * ffts.plan(circle)
        else:
            found["filter"] += 2.0 * rows * n * out
    return found


_WORK = {
    "torch_fft": _torch_fft,
    "torch_fft_fast": _torch_fft_fast,
    "dft_gemm": _dft_gemm,
    "dft_native": _dft_native,
    "direct": _direct,
    "direct_converted": _direct_converted,
    "direct_lowpass": _direct_lowpass,
}
_BOTH_WAYS = frozenset(("direct", "direct_converted", "direct_lowpass"))
