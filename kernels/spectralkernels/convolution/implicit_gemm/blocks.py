"""How large the blocks of the depthwise implicit GEMM are."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch

from spectralkernels.launch import interpreted
from spectralkernels.spectra import next_pow2


@dataclass(frozen=True, slots=True)
class Sides:
    """Sizes of map, output and kernel, and the zeros before the map, (vertical, horizontal)."""

    size: tuple[int, ...]
    out: tuple[int, ...]
    taps: tuple[int, ...]
    pad: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Blocks:
    """rows, outer: of a program's outputs. inner, chunks: input columns per product, and products per kernel row.
    across: blocks that make up an output row."""

    rows: int
    inner: int
    outer: int
    chunks: int
    across: int
    warps: int


def blocks_of(sides: Sides) -> Blocks:
    """The blocks with the least work per output row, zeros of the Toeplitz matrices counted.

    Per input column and kernel row: a multiplication per output column, half as much again to gather the Toeplitz
    matrix of 128 rows, and a value of x that goes through shared memory, worth 64 multiplications of an H100's SM.
    """
    found = [_blocks(sides, inner, outer) for inner, outer in itertools.product((64, 32, 16), (64, 32, 16))]
    return min(found, key=lambda blocks: blocks.inner * blocks.chunks * blocks.across * (1.5 * blocks.outer + 64))


def _blocks(sides: Sides, inner: int, outer: int) -> Blocks:
    size, out, taps, pad = sides.size[1], sides.out[1], sides.taps[1], sides.pad[1]
    across = -(-out // outer)
    chunks = 1
    for first in range(0, across * outer, outer):
        begin = max(first - pad, 0)
        end = min(first + min(outer, out - first) - 1 - pad + taps, size)
        chunks = max(chunks, -(-(end - begin) // inner))
    rows = max(16, min(128, next_pow2(sides.out[0] * 4)))
    return Blocks(rows, inner, outer, chunks, across, 8 if outer == 64 else 4)


def operand(dtype: torch.dtype) -> torch.dtype:
    """What the products multiply: Triton's interpreter multiplies bfloat16 as integers, float32 proves the indexing."""
    return torch.float32 if interpreted() else dtype
