"""Units of work of the library's convolution on a CPU (see `estimates`), by the way that it has for a call.

Seen with ONEDNN_VERBOSE (3.7), one thread: with AVX-512 oneDNN fills registers of 16, 8 or 4 channels of a group,
whichever divides their number, with AVX2 of 8; other groups it multiplies as matrices, but in channels_last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from spectralkernels.convolution.library import SLOW_WIDTH, lays_zeros_first
from spectralkernels.convolution.sizes import LANES, LARGE, Sizes, up
from spectralkernels.spectra import Band

FEW_SAMPLES = 16
"""A convolution by one tap goes to oneDNN from this batch on, or with two threads: by torch's own rule."""

Work = Mapping[str, float]


def direct(sizes: Sizes) -> Work:
    return _padded(sizes, convolved(sizes, sizes.band.out, _row_pairs(sizes.band), channels_last=False))


def direct_converted(sizes: Sizes) -> Work:
    """The same in channels_last, where channels are not rounded up in memory."""
    return _padded(sizes, convolved(sizes, sizes.band.out, _row_pairs(sizes.band), channels_last=True))


def _padded(sizes: Sizes, found: dict[str, float]) -> Work:
    """With what it takes to lay zeros around x beforehand, where that is done."""
    band = sizes.band
    first = lays_zeros_first(sizes.channels, sizes.groups, band.size[-1], band.pad[-1][0])
    if any(before != after for before, after in band.pad) or first:
        padded = [size + sum(pad) for size, pad in zip(band.size, band.pad, strict=True)]
        found |= {"padded": sizes.planes[0] * math.prod(padded), "padded_row": sizes.planes[0] * math.prod(padded[:-1])}
    return found


def _row_pairs(band: Band) -> int:
    """Rows of the answer with rows of taps that do not fall on padding, which oneDNN leaves out."""
    if len(band.n) == 1:
        return 1
    size, taps, zeros, out = band.size[0], band.kernel[0], band.pad[0][0], band.out[0]
    return sum(max(0, min(out, size + zeros - tap) - max(0, zeros - tap)) for tap in range(taps))


def convolved(sizes: Sizes, out: tuple[int, ...], row_pairs: int, channels_last: bool) -> dict[str, float]:
    """Products by the way that the library has for them, channels rounded up, and numbers of maps, answer and weight.

    oneDNN's kernels make a row of the answer at a time, for registers of outputs, up to four at once of an input that
    they read: fewer take longer each, and so do short rows. Groups fill registers of `LANES`, or parts of one, or none:
    then it multiplies matrices, and so does torch itself with few samples and a single tap.
    row_pairs: of rows of the answer and of taps.
    """
    inputs, outputs, band, (of_x, of_weight, of_y) = sizes.inputs, sizes.outputs, sizes.band, sizes.planes
    samples, taps, pixels = math.prod(out), math.prod(band.kernel), math.prod(band.size)
    numbers, batch, groups = of_x * pixels + of_y * samples, sizes.batch, sizes.groups
    wide = groups > 1 and band.kernel[-1] >= SLOW_WIDTH
    channels_last |= wide
    found: dict[str, float] = {"call": 1.0, "number": numbers, "tap": of_weight * taps, "turned": 0.0}
    if channels_last:  # a single channel lies in both layouts
        found["turned"] = of_x * pixels * (sizes.channels > 1) + of_y * samples * (sizes.out_channels > 1)
    if taps == 1:
        return _moved(found | _pointwise(sizes, samples, channels_last))
    pairs = row_pairs * out[-1] * band.kernel[-1]
    if groups == 1:
        of_inputs = inputs if channels_last or inputs < LANES else up(inputs)
        unit, lines = "dense" if inputs >= LANES else "few_channels", -(-outputs // LANES)
        found["few_channels_tap"] = 0.0 if inputs >= LANES else of_weight * taps
        unit = ("narrow_" if outputs <= LANES else "") + unit
        products, in_memory = of_inputs * lines * LANES, (inputs if inputs < LANES else up(inputs), up(outputs))
    elif inputs == outputs == 1:
        unit, of_inputs, lines = "depthwise", 1, -(-groups // LANES)
        products, in_memory = lines * LANES, (up(groups), up(groups))
    elif block := _block(inputs, outputs, channels_last):
        of_inputs, unit = inputs, "grouped" if block == LANES else "parted"
        lines = groups * -(-outputs // block)
        products, in_memory = of_inputs * lines * LANES, (sizes.channels, sizes.out_channels)
    else:
        products = 2 * sizes.products * samples * taps
        found |= {"grouped_product": products, "grouped_column": of_x * samples * taps, "group": batch * groups}
        return _moved(found)
    if wide:
        unit = f"wide_{unit}" if band.kernel[0] == 1 or len(band.n) == 1 else f"wide_{unit}_map"
    laned = 0 if channels_last else batch * (in_memory[0] * pixels + in_memory[1] * samples)
    reorders = 1 if channels_last else 2 if groups == 1 and inputs < LANES else 3
    found |= {
        unit: 2 * batch * products * pairs,
        "reorder": reorders,
        "line": batch * lines * -(-of_inputs // LANES) * row_pairs,
        "step": batch * lines * of_inputs * row_pairs * band.kernel[-1],
        "in_lanes": laned if groups == 1 else 0,
        "groups_in_lanes": laned if groups > 1 else 0,
    }
    return _moved(found)


def _moved(found: dict[str, float]) -> dict[str, float]:
    """With the numbers that are moved in a call that moves many."""
    moved = sum(found.get(unit, 0.0) for unit in ("number", "turned", "in_lanes", "groups_in_lanes"))
    return found | {"large": moved if moved > LARGE else 0.0}


def _block(inputs: int, outputs: int, channels_last: bool) -> int:
    """Channels of a group that oneDNN has in a register; 0: none, it multiplies matrices."""
    for lanes in (LANES, 8, 4) if LANES == 16 else (LANES,):
        if inputs % lanes == outputs % lanes == 0:
            return lanes
    return LANES if channels_last else 0


def _pointwise(sizes: Sizes, samples: int, channels_last: bool) -> dict[str, float]:
    """One tap: by torch itself group by group, or by oneDNN, which multiplies matrices where there are groups."""
    numbers, of_groups = sizes.planes[0] * samples, sizes.groups if sizes.groups > 1 else 0
    if sizes.groups == 1 and sizes.batch >= FEW_SAMPLES:
        inputs, outputs = sizes.inputs if channels_last else up(sizes.inputs), up(sizes.outputs)
        products, laned = 2 * sizes.batch * samples * inputs * outputs, sizes.batch * samples * (inputs + outputs)
        reorders = 1 if channels_last else 3
        return {"pointwise_kernel": products, "in_lanes": 0 if channels_last else laned, "reorder": reorders}
    by = "pointwise" if sizes.batch < FEW_SAMPLES else "pointwise_grouped"
    return {
        by: 2 * sizes.products * samples,
        f"{by}_number": numbers,
        "pointwise_group": of_groups if sizes.batch < FEW_SAMPLES else 0,
        "group": sizes.batch * of_groups,
    }
