"""Triton kernels of the bitmap format: expand, collect, and the slot of every word (imports triton).

Where an index is itself loaded from memory, the compiler cannot know which lanes of a warp address neighbours, and lays
them along the first axis of a tile (triton 3.6) or along the last (3.7). These kernels, and those that use their
functions, tell it with `tl.max_contiguous` that two neighbours of a row are contiguous: lanes then run along rows in
both. No load gets wider by that, as an index may begin anywhere.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from spectralkernels.launch import Launch, NamedLaunch, as_real_pairs
from spectralkernels.sparse.bitmap import BLOCK, WORD, blocks_of

NUM_WARPS = 4


@triton.jit
def real(coefficient):
    """The real part of a complex64 that travels as one int64: one load or store where two floats would be two."""
    return coefficient.to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def imaginary(coefficient):
    return (coefficient >> 32).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def as_coefficient(re, im):
    high = im.to(tl.int32, bitcast=True).to(tl.int64) << 32
    return high | re.to(tl.uint32, bitcast=True).to(tl.int64)


@triton.jit
def popcount(words):
    """Set bits of each int32 word; the compiler knows this form and makes it one instruction."""
    words = words.to(tl.uint32, bitcast=True)
    words = words - ((words >> 1) & 0x55555555)
    words = (words & 0x33333333) + ((words >> 2) & 0x33333333)
    words = (words + (words >> 4)) & 0x0F0F0F0F
    return ((words * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def slots_of(words_ptr, BLOCK: tl.constexpr):
    """Slot within its block of every coefficient, if it is kept, and whether it is. Returns: Int32, Bool [words, 32].

    A slot is the end of the coefficient's word less the set bits from its own on: only the words are summed up.
    """
    bit = tl.arange(0, 32)[None, :]
    words = tl.load(words_ptr + tl.arange(0, BLOCK // 32))
    ends = tl.cumsum(popcount(words), 0)[:, None]
    slots = ends - popcount(words[:, None] & (-1 << bit))
    return tl.max_contiguous(tl.multiple_of(slots, (1, 1)), (1, 2)), (words[:, None] & (1 << bit)) != 0


@triton.jit
def expand_kernel(
    values_ptr,
    outputs_ptr,
    words_ptr,
    offsets_ptr,
    flat_ptr,
    n_coefficients,
    COMPACT: tl.constexpr,
    TANH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program owns one block: reads its bits and its r * BLOCK values, writes BLOCK coefficients.

    With TANH the values are gradients, multiplied by the derivative at the packed `outputs` of tanh (8 bytes more per
    value).
    """
    block = tl.program_id(0).to(tl.int64)
    base = tl.load(offsets_ptr + block).to(tl.int64) if COMPACT else block * BLOCK
    slots, kept = slots_of(words_ptr + block * (BLOCK // 32), BLOCK)
    values = tl.load(values_ptr + base + slots, mask=kept, other=0)
    if TANH:
        outputs = tl.load(outputs_ptr + base + slots, mask=kept, other=0)
        re, im = real(outputs), imaginary(outputs)
        re = real(values) * (1.0 - re * re)
        im = imaginary(values) * (1.0 - im * im)
        values = as_coefficient(re, im)
    offs = 32 * tl.arange(0, BLOCK // 32)[:, None] + tl.arange(0, 32)[None, :]
    tl.store(flat_ptr + block * BLOCK + offs, values, mask=offs < n_coefficients - block * BLOCK)


@triton.jit
def collect_kernel(
    flat_ptr,
    words_ptr,
    offsets_ptr,
    values_ptr,
    n_coefficients,
    COMPACT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program owns one block: reads its bits and BLOCK coefficients, writes its r * BLOCK values."""
    block = tl.program_id(0).to(tl.int64)
    base = tl.load(offsets_ptr + block).to(tl.int64) if COMPACT else block * BLOCK
    slots, kept = slots_of(words_ptr + block * (BLOCK // 32), BLOCK)
    offs = 32 * tl.arange(0, BLOCK // 32)[:, None] + tl.arange(0, 32)[None, :]
    flat = tl.load(flat_ptr + block * BLOCK + offs, mask=offs < n_coefficients - block * BLOCK, other=0)
    tl.store(values_ptr + base + slots, flat, mask=kept)


@triton.jit
def word_slots_kernel(words_ptr, offsets_ptr, slots_ptr, COMPACT: tl.constexpr, BLOCK: tl.constexpr):
    """One program owns one block: the slot of the first kept coefficient of each of its words."""
    block = tl.program_id(0)
    offs = tl.arange(0, BLOCK // 32)
    counts = popcount(tl.load(words_ptr + block * (BLOCK // 32) + offs))
    base = tl.load(offsets_ptr + block) if COMPACT else block * BLOCK
    tl.store(slots_ptr + block * (BLOCK // 32) + offs, base + tl.cumsum(counts, 0) - counts)


def as_int64(spectrum: Tensor) -> Tensor:
    """Complex64 [...] as Int64, one per coefficient; shares memory where `spectrum` is contiguous."""
    return as_real_pairs(spectrum).view(torch.int64)


def expand(
    values: Tensor, words: Tensor, offsets: Tensor | None, numel: int, *, outputs: Tensor | None = None
) -> Tensor:
    """See `bitmap.expand`; Complex64 only. With packed `outputs` of tanh, `values` are gradients that pass through."""
    flat = torch.empty(numel, dtype=torch.complex64, device=values.device)
    Launch(
        kernel=expand_kernel,
        grid=(blocks_of(numel),),
        arguments={
            "values_ptr": as_int64(values),
            "outputs_ptr": as_int64(values if outputs is None else outputs),
            "words_ptr": words,
            "offsets_ptr": words if offsets is None else offsets,
            "flat_ptr": as_int64(flat),
            "n_coefficients": numel,
            "COMPACT": offsets is not None,
            "TANH": outputs is not None,
            "BLOCK": BLOCK,
        },
        options={"num_warps": NUM_WARPS},
    ).run()
    return flat


def collect(flat: Tensor, words: Tensor, offsets: Tensor | None, capacity: int) -> Tensor:
    """See `bitmap.collect`; Complex64 only."""
    values = torch.zeros(capacity, dtype=torch.complex64, device=flat.device)
    Launch(
        kernel=collect_kernel,
        grid=(blocks_of(flat.numel()),),
        arguments={
            "flat_ptr": as_int64(flat),
            "words_ptr": words,
            "offsets_ptr": words if offsets is None else offsets,
            "values_ptr": as_int64(values),
            "n_coefficients": flat.numel(),
            "COMPACT": offsets is not None,
            "BLOCK": BLOCK,
        },
        options={"num_warps": NUM_WARPS},
    ).run()
    return values


def word_slots(words: Tensor, offsets: Tensor | None) -> Tensor:
    """Slot of the first kept coefficient of each word. Returns: Int32, as long as `words`."""
    slots = torch.empty_like(words)
    Launch(
        kernel=word_slots_kernel,
        grid=(words.numel() * WORD // BLOCK,),
        arguments={
            "words_ptr": words,
            "offsets_ptr": words if offsets is None else offsets,
            "slots_ptr": slots,
            "COMPACT": offsets is not None,
            "BLOCK": BLOCK,
        },
        options={"num_warps": 1},
    ).run()
    return slots


def _watched(compact: bool) -> NamedLaunch:
    """All three kernels over the bits of [128, 64, 34, 18], in full blocks or compact ones."""

    def call() -> None:
        numel = 128 * 64 * 34 * 18
        blocks = blocks_of(numel)
        values = torch.empty(blocks * BLOCK, dtype=torch.complex64, device="meta")
        words = torch.empty(blocks * (BLOCK // WORD), dtype=torch.int32, device="meta")
        offsets = torch.empty(blocks, dtype=torch.int32, device="meta") if compact else None
        collect(expand(values, words, offsets, numel), words, offsets, values.shape[0])
        word_slots(words, offsets)

    return NamedLaunch(f"B128 C64 34x18, {'compact' if compact else 'full'} blocks", call)


FINGERPRINTS = (_watched(False), _watched(True))
