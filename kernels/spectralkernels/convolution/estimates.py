"""How long an implementation of a band-limited convolution takes on a CPU, about: its work, times fitted seconds.

`work` counts what an implementation does in units of one kind each (a multiplication in a product, a number of a plane
in a transform, a call); `FORWARD` says what a unit takes. Estimates are good for choosing, not for promising: the
constants are of one kind of machine, and what they must get right is which implementation is faster.
"""

from __future__ import annotations

import math
from dataclasses import replace

from spectralkernels.convolution import ffts
from spectralkernels.convolution.baselines import fast_band
from spectralkernels.convolution.cost import folded_flops
from spectralkernels.convolution.dft_native.library import LARGEST_BLOCK
from spectralkernels.convolution.dft_native.operators import LARGEST_LANE_WEIGHTS
from spectralkernels.convolution.fitted import FORWARD, FORWARD_AND_BACKWARD
from spectralkernels.convolution.library_work import Work, convolved, direct, direct_converted
from spectralkernels.convolution.linear_maps import PIECE_BYTES
from spectralkernels.convolution.low_pass import filters_by_fft
from spectralkernels.convolution.sizes import LANES, LARGE, Sizes, up
from spectralkernels.spectra import Band, half

FEW_PLANES = 32
"""Maps that a transform by matrices, one axis after the other, takes the time of, at least: on one core of an AMD EPYC
3, 8 and 32 planes of 128 x 128, all modes kept, take 17.5, 19.6 and 17.9 ms."""
SUMS_IN_CACHE = 1 << 20
"""Bytes of real, and of imaginary, sums of a part of a batch, of as many rows as a product takes at least."""
_TAKEN_FROM = {"torch_fft_fast": "torch_fft"}


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
        "map": max(up(of_x), few) * _truncated(band.size, sizes) + max(up(of_y), few) * _truncated(band.out, sizes),
        "kernel": up(of_weight) * _truncated(band.kernel, sizes),
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

    Series are transformed in pairs. A pass over a plane goes over its numbers, its columns and its modes. The weight is
    transformed again for each part of a batch whose sums fill the cache, and read again for each block of its rows.
    Of modes that are listed one by one it computes the whole band around them.
    """
    modes = sizes.band.modes if sizes.cells else sizes.modes
    band, (of_x, of_weight, of_y) = sizes.band, sizes.planes
    lanes = LANES * 4 // sizes.itemsize
    of_groups = up(sizes.groups, lanes) / sizes.groups
    of_outputs = up(sizes.outputs, lanes) / sizes.outputs
    pairs, series = sizes.inputs * sizes.outputs, len(band.n) == 1
    if of_groups < of_outputs and 2 * modes * pairs * lanes * sizes.itemsize <= LARGEST_LANE_WEIGHTS:
        if series:
            of_x, of_y = (_in_pairs(sizes.batch, each) * sizes.groups for each in (sizes.inputs, sizes.outputs))
            of_weight = _even(pairs) * sizes.groups
        return {
            "call": 1.0,
            "lane_map": of_groups * _folded(band, of_x, of_weight, of_y),
            "lane_product": of_groups * sizes.products * modes,
            "lane_number": of_groups * (of_x * math.prod(band.size) + of_y * math.prod(band.out)),
            "lane_pass": of_groups * _passed(band, modes, of_x, of_weight, of_y),
        }
    of_inputs = up(sizes.inputs, lanes) / sizes.inputs
    numbers = of_x * math.prod(band.size) + of_weight * math.prod(band.kernel) + of_y * math.prod(band.out)
    block = -(-sizes.batch // max(1, -(-sizes.batch // LARGEST_BLOCK)))
    rows_at_most = max(LARGEST_BLOCK, SUMS_IN_CACHE // (lanes * sizes.itemsize * modes))
    parts = -(-sizes.batch // rows_at_most)
    if series:
        of_x, of_y = (_even(sizes.batch) * channels for channels in (sizes.channels, sizes.out_channels))
        of_weight = _even(sizes.inputs) * sizes.out_channels
    planes = of_x * of_inputs, parts * of_weight * of_outputs, of_y * of_outputs
    return {
        "call": 1.0,
        "group": sizes.groups,
        "number": numbers,
        "large": numbers if numbers > LARGE else 0,
        "map": _folded(band, *planes),
        "pass": _passed(band, modes, *planes),
        "product": sizes.products * modes * of_outputs,
        "block": -(-sizes.batch // max(1, block)) * sizes.outputs * sizes.channels * modes * of_outputs,
    }


def _folded(band: Band, of_x: float, of_weight: float, of_y: float) -> float:
    """FLOPs of the transforms of so many planes."""
    maps = of_x * folded_flops(band.size, band) + of_y * folded_flops(band.out, band)
    return maps + of_weight * folded_flops(band.kernel, band)


def _passed(band: Band, modes: int, of_x: float, of_weight: float, of_y: float) -> float:
    """Numbers of the planes, of their columns and of their modes that the two steps of these transforms pass over."""
    total = 0.0
    for of, plane in ((of_x, band.size), (of_weight, band.kernel), (of_y, band.out)):
        columns = 2 * plane[0] * band.columns if len(plane) == 2 else 0
        total += of * (math.prod(plane) + columns + 2 * modes)
    return total


def _even(count: int) -> int:
    return count + count % 2


def _in_pairs(batch: int, channels: int) -> int:
    """Planes of a batch of series that are transformed where two samples lie together, each time an even number."""
    return batch // 2 * 2 * channels + batch % 2 * _even(channels)


# --- the library convolution, then a low-pass -------------------------------------------------------------------------


def _direct_lowpass(sizes: Sizes) -> Work:
    """The convolution of wrapped maps on the whole circle, then a filter per axis: a product or two FFTs."""
    band, of_x, of_y = sizes.band, sizes.planes[0], sizes.planes[2]
    units = ("filter", "filter_fft", "filter_number", "plan", "across")
    row_pairs = 1 if len(band.n) == 1 else band.n[0] * band.kernel[0]
    found = {**convolved(sizes, band.n, row_pairs, channels_last=False), **dict.fromkeys(units, 0.0)}
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
            found["across"] += rows * n if axis + 1 < len(band.n) else 0
    return found


_WORK = {
    "torch_fft": _torch_fft,
    "torch_fft_fast": _torch_fft_fast,
    "dft_gemm": _dft_gemm,
    "dft_native": _dft_native,
    "direct": direct,
    "direct_converted": direct_converted,
    "direct_lowpass": _direct_lowpass,
}
_BOTH_WAYS = frozenset(("direct", "direct_converted", "direct_lowpass"))
