"""Which cells of a masked plane a program owns, looked up by the program itself in the mask (imports triton).

A low pass keeps runs of a row. Of the cells in blocks of 16 neighbours that it touches, a third are dropped and would
be computed all the same. A program that finds the next 16 kept ones computes no others. The list is nowhere stored: a
mask is a tensor that may change before any call, and knowing its list on the host would wait for the device.
"""

# Triton reads a kernel's annotations as its own.

from __future__ import annotations

import triton
import triton.language as tl

from spectralkernels.sparse.kernels import popcount
from spectralkernels.tuning import rounded

MOST_CELLS, FEWEST_CHANNELS = 4096, 32
"""What one program can look through, and the channels that pay for it: a search costs the time of about three."""


def searched_words(cells: int, channels: int, block: int) -> int:
    """Words of 32 cells that a program of `block` cells looks through; 0 where it takes cells as they lie."""
    if cells <= block or cells > MOST_CELLS or channels < FEWEST_CHANNELS:
        return 0
    return rounded(triton.cdiv(cells, 32))


@triton.jit
def cells_of_block(mask_ptr, block, n_cells, BLOCK_F: tl.constexpr, WORDS: tl.constexpr):
    """The cells of a block, those kept in the first blocks and those dropped in the rest, and whether they are kept.

    A mask is read as WORDS words of 32 bits; a rank among their ones is found word first, then by halving.
    Returns: Int32 [BLOCK_F], beyond the plane where a block is not filled; Bool.
    """
    word = tl.arange(0, WORDS)
    lane = tl.arange(0, 32)[None, :]
    cell = 32 * word[:, None] + lane
    here = tl.load(mask_ptr + cell, mask=cell < n_cells, other=0) != 0
    words = tl.sum(tl.where(here, 1 << lane, 0), axis=1)
    n_kept_blocks = tl.cdiv(tl.sum(popcount(words), 0), BLOCK_F)
    kept = block < n_kept_blocks
    words = tl.where(kept, words, ~words)
    rank = (block - tl.where(kept, 0, n_kept_blocks)) * BLOCK_F + tl.arange(0, BLOCK_F)
    counts = popcount(words)
    before = (tl.cumsum(counts, 0)[None, :] <= rank[:, None]).to(tl.int32)  # [BLOCK_F, WORDS]
    at = tl.sum(before, axis=1)
    rank -= tl.sum(before * counts[None, :], axis=1)
    bits = tl.sum(tl.where(word[None, :] == at[:, None], words[None, :], 0), axis=1).to(tl.uint32, bitcast=True)
    found = 32 * at
    for step in tl.static_range(5):
        low = popcount((bits & ((1 << (16 >> step)) - 1)).to(tl.int32, bitcast=True))
        high = rank >= low
        rank -= tl.where(high, low, 0)
        found += tl.where(high, 16 >> step, 0)
        bits = tl.where(high, bits >> (16 >> step), bits)
    return found, kept
