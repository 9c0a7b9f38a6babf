"""Packed values of all blocks moved together, in Triton (imports triton)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from spectralkernels.launch import Launch, NamedLaunch, as_real_pairs, dense
from spectralkernels.sparse.bitmap import BLOCK, WORD, blocks_of
from spectralkernels.sparse.kernels import popcount

NUM_WARPS = 4


@triton.jit
def block_counts_kernel(words_ptr, counts_ptr, n_blocks, TILE: tl.constexpr, WORDS: tl.constexpr):
    """One program owns TILE blocks: reads their 128 bytes of bits each, writes their counts, 4 bytes each."""
    blocks = tl.program_id(0) * TILE + tl.arange(0, TILE)
    inside = blocks < n_blocks
    offs = blocks[:, None] * WORDS + tl.arange(0, WORDS)[None, :]
    counts = tl.sum(popcount(tl.load(words_ptr + offs, mask=inside[:, None], other=0)), axis=1)
    tl.store(counts_ptr + blocks, counts, mask=inside)


@triton.jit
def move_kernel(values_ptr, counts_ptr, ends_ptr, packed_ptr, starts_ptr, n_blocks, room, BLOCK: tl.constexpr):
    """One program owns one block: reads and writes 8 bytes for each of its values, writes where they begin.

    Where all blocks together keep more than `room`, nothing is moved and the packed values become NaN.
    """
    block = tl.program_id(0)
    count = tl.load(counts_ptr + block)
    start = tl.load(ends_ptr + block) - count
    # a block that does not fit is read from the spare one
    tl.store(starts_ptr + block, tl.minimum(start, room))
    offs = tl.arange(0, 2 * BLOCK)
    if tl.load(ends_ptr + n_blocks - 1) <= room:
        # one slot more where the count is odd, for a load 128 bits wide
        end = (count + 1) // 2 * 4
        values = tl.load(values_ptr + block.to(tl.int64) * (2 * BLOCK) + offs, mask=offs < end, other=0.0)
        target = tl.multiple_of(2 * start.to(tl.int64), 2)
        tl.store(packed_ptr + target + offs, values, mask=offs < 2 * count)
    else:
        flat = block.to(tl.int64) * (2 * BLOCK) + offs
        size = 2 * (room + tl.full((), BLOCK, tl.int64))
        nan = tl.full((2 * BLOCK,), float("nan"), tl.float32)
        tl.store(packed_ptr + flat, nan, mask=flat < size)
        tl.store(packed_ptr + flat + 2 * BLOCK, nan, mask=flat + 2 * BLOCK < size)


def trimmed(values: Tensor, words: Tensor, slots: int | None) -> tuple[Tensor, Tensor]:
    """See `packing.trimmed`; Complex64 only, at least one block."""
    blocks = words.numel() * WORD // BLOCK
    counts = torch.empty(blocks, dtype=torch.int32, device=words.device)
    Launch(
        kernel=block_counts_kernel,
        grid=(triton.cdiv(blocks, 32),),
        arguments={
            "words_ptr": dense(words),
            "counts_ptr": counts,
            "n_blocks": blocks,
            "TILE": 32,
            "WORDS": BLOCK // WORD,
        },
        options={"num_warps": NUM_WARPS},
    ).run()
    ends = counts.cumsum(0, dtype=torch.int32)
    # the one wait of the block, where the caller wants no slot too many
    room = int(ends[-1]) if slots is None else slots
    packed = torch.empty(room + (0 if slots is None else BLOCK), dtype=torch.complex64, device=values.device)
    starts = torch.empty_like(counts)
    Launch(
        kernel=move_kernel,
        grid=(blocks,),
        arguments={
            "values_ptr": as_real_pairs(values),
            "counts_ptr": counts,
            "ends_ptr": ends,
            "packed_ptr": torch.view_as_real(packed),
            "starts_ptr": starts,
            "n_blocks": blocks,
            "room": room,
            "BLOCK": BLOCK,
        },
        options={"num_warps": NUM_WARPS},
    ).run()
    return packed, starts


def _watched(batch: int, channels: int, rows: int, columns: int) -> NamedLaunch:
    def call() -> None:
        blocks = blocks_of(batch * channels * rows * columns)
        values = torch.empty(blocks * BLOCK, dtype=torch.complex64, device="meta")
        words = torch.empty(blocks * (BLOCK // WORD), dtype=torch.int32, device="meta")
        trimmed(values, words, blocks * (BLOCK // 2))

    return NamedLaunch(f"B{batch} C{channels} {rows}x{columns}, room for half", call)


FINGERPRINTS = (_watched(128, 64, 34, 18),)
