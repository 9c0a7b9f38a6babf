"""How large the tiles are: as large as fits without spilling registers to memory on sm_80, sm_90 and sm_100.

The tests compile every tile for the three and look. What a tile may be depends on the GPU's tensor cores (`target`) and
on how an accuracy class multiplies:

    plain    one product on tensor cores
    split    an operand is split into two or three numbers, whose three to six products are summed; the parts of every
             operand take registers
    ffma     float32 products without a tensor core; the operands take registers

Transforms work on 8 planes at a time: 8 neighbouring float32 numbers fill a sector of 32 bytes, the unit of a store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from spectralkernels.convolution.dft_triton.matrices import Transform
from spectralkernels.convolution.dft_triton.precision import ChainPrecision
from spectralkernels.target import TensorCore

PLANES = 8
FILL = 264
"""Programs that give each of an H200's 132 processors two."""


@dataclass(frozen=True, slots=True)
class ProductTile:
    """A tile of one matrix product: m x n of the result, k deep; overlap: see `SeparableTile`.

    shares: programs that share a tile of a product per mode, each a part of its depth; their sums are added by a second
    launch, in one order. For small planes of many channels, whose tiles are fewer than multiprocessors can hold. No
    rule takes it either.
    """

    m: int
    n: int
    k: int
    warps: int
    overlap: int = 1
    shares: int = 1


@dataclass(frozen=True, slots=True)
class SeparableTile:
    """A tile of a separable transform: PLANES planes, h x w pixels, u x v modes; stages of its software pipeline.

    overlap: grids in flight, 2 where the launch begins before the one before it has ended (see `kernels.overlap`). No
    rule takes it: whether it is faster is for a search on a GPU to find.
    """

    h: int
    w: int
    u: int
    v: int
    stages: int
    warps: int = 8
    overlap: int = 1


def dense_tile(rows: int, columns: int, depth: int, precision: ChainPrecision) -> ProductTile:
    """The tile of a dense transform: `rows` is the matrix's other side than `depth` where it is a, planes else."""
    if _family(precision) == "ffma":
        return ProductTile(_block(rows, 32), _block(columns, 32), _block(depth, 16), 4)
    m = _block(rows, 64)
    # A flat tile is made longer, so that a program has enough to do.
    n = _block(columns, 64 if m >= 64 else 128)
    return ProductTile(m, n, _block(depth, 32), 4)


def product_tile(m: int, n: int, k: int, batches: int, precision: ChainPrecision, core: TensorCore) -> ProductTile:
    """The tile of a complex product of m x n x k, `batches` times."""
    family = _family(precision)
    block_m, block_n, block_k = _block(m, 64), _block(n, 64), _block(k, 32)
    if family == "ffma":
        block_n = min(block_n, 32)
        return ProductTile(block_m, block_n, 16, 8 if block_m * block_n >= 2048 else 4)
    if family == "split" and core == "mma":
        return ProductTile(min(block_m, 32), min(block_n, 32), 16, 4)
    if family == "split" and core == "wgmma":
        # Half as deep, so that the pieces leave room for two blocks of 64 x 64 on a multiprocessor.
        block_k = 16
    crowded = (family == "split" and core == "tcgen05") or (precision.storage == torch.float32 and core == "mma")
    if crowded or batches * -(-m // block_m) * -(-n // block_n) < FILL:
        block_n = min(block_n, 32)
    return ProductTile(block_m, block_n, block_k, 4)


def separable_tile(transform: Transform, synthesis: bool, precision: ChainPrecision, core: TensorCore) -> SeparableTile:
    """The tile of a separable transform, modes to pixels where `synthesis`."""
    if by_quadrants(precision, core):
        return _quadrant_tile(transform, synthesis, precision)
    height, width = transform.lengths
    h, w, u, v = _block(height, 32, 8), _block(width, 64), _block(transform.modes_u, 64, 8), transform.modes_v
    family = _family(precision)
    if height <= 32 and max(w, u) <= 32 and core != "mma":
        return SeparableTile(h, w, u, _block(v, 16, 8), 1)
    crowded = family == "split" and core == "tcgen05"
    if not synthesis:
        return SeparableTile(min(h, 16), w, min(u, 32) if crowded else u, 8, 2)
    # With the 64 rows of wgmma, the split classes would spill: 32 rows, mma.sync.
    return SeparableTile(
        min(h, 16) if family == "split" or core == "mma" else h, w, min(u, 16 if crowded else 32), 8, 2
    )


def by_quadrants(precision: ChainPrecision, core: TensorCore) -> bool:
    """Whether a separable transform takes the kernels of `quadrants`.

    16-bit operands are transposed on their way to a tensor core, tf32 ones are not, and fp32 has no tensor core. On
    Blackwell those kernels would leave its tensor cores for those of Ampere.
    """
    return precision.name == "fp32" or (precision.dot in ("tf32", "tf32x3") and core != "tcgen05")


def _quadrant_tile(transform: Transform, synthesis: bool, precision: ChainPrecision) -> SeparableTile:
    """u counts rows u >= 0. A warp has a plane, so that its registers hold all of a tile.

    fp32 holds its operands in registers, too: tiles of half the height leave room for two blocks on a multiprocessor.
    """
    height, width = transform.lengths
    h, w, u, v = _block(height, 32), _block(width, 64), _block(transform.half_u, 32, 8), transform.modes_v
    if _family(precision) == "ffma":
        if height <= 32 and w <= 32 and u <= 16:
            return SeparableTile(min(h, 16), w, u, _block(v, 16, 8), 1)
        return SeparableTile(8, w, min(u, 16), 8, 1) if synthesis else SeparableTile(16, w, u, 8, 1)
    if height <= 32 and w <= 32 and u <= 16:
        return SeparableTile(h, w, u, _block(v, 16, 8), 1)
    short = not synthesis or _family(precision) == "split"
    return SeparableTile(min(h, 16) if short else h, w, u, 8, 1 if synthesis else 2)


def _family(precision: ChainPrecision) -> Literal["plain", "split", "ffma"]:
    if precision.name == "fp32":
        return "ffma"
    return "split" if "x" in precision.name else "plain"


def _block(size: int, most: int, least: int = 16) -> int:
    """The power of two that covers `size`, within limits."""
    return min(most, max(least, 1 << max(0, size - 1).bit_length()))
