"""Triton kernels of the bitmap format: expand, collect, and the slot of every word (imports triton)."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from spectralkernels.aot import NamedLaunch
from spectralkernels.launch import as_real_pairs
from spectralkernels.sparse.bitmap import BLOCK, WORD, blocks_of

NUM_WARPS = 4


@triton.jit
def expand_kernel(
    values_ptr,
    words_ptr,
    offsets_ptr,
    flat_ptr,
    n_coefficients,
    COMPACT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program owns one block: reads its bits and its r * BLOCK values, writes BLOCK coefficients."""
    block = tl.program_id(0).to(tl.int64)
    offs = tl.arange(0, BLOCK)
    bits = (tl.load(words_ptr + block * (BLOCK // 32) + offs // 32) >> (offs % 32)) & 1
    base = tl.load(offsets_ptr + block).to(tl.int64) if COMPACT else block * BLOCK
    slots = base + tl.cumsum(bits, 0) - bits
    pair = tl.arange(0, 2)[None, :]
    kept = (bits != 0)[:, None]
    values = tl.load(values_ptr + 2 * slots[:, None] + pair, mask=kept, other=0.0)  # [BLOCK, 2]
    # a flat store is 128 bits wide, a [BLOCK, 2] one 64
    offs_flat = 2 * BLOCK * block + tl.arange(0, 2 * BLOCK)
    end = n_coefficients * tl.full((), 2, tl.int64)
    tl.store(flat_ptr + offs_flat, tl.reshape(values, (2 * BLOCK,)), mask=offs_flat < end)


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
    offs = tl.arange(0, BLOCK)
    bits = (tl.load(words_ptr + block * (BLOCK // 32) + offs // 32) >> (offs % 32)) & 1
    base = tl.load(offsets_ptr + block).to(tl.int64) if COMPACT else block * BLOCK
    slots = base + tl.cumsum(bits, 0) - bits
    offs_flat = 2 * BLOCK * block + tl.arange(0, 2 * BLOCK)
    end = n_coefficients * tl.full((), 2, tl.int64)
    flat = tl.load(flat_ptr + offs_flat, mask=offs_flat < end, other=0.0)
    pair = tl.arange(0, 2)[None, :]
    tl.store(values_ptr + 2 * slots[:, None] + pair, tl.reshape(flat, (BLOCK, 2)), mask=(bits != 0)[:, None])


@triton.jit
def popcount(words):
    """Set bits of each int32 word (SWAR: the interpreter has no libdevice)."""
    words = words.to(tl.uint32, bitcast=True)
    words = words - ((words >> 1) & 0x55555555)
    words = (words & 0x33333333) + ((words >> 2) & 0x33333333)
    words = (words + (words >> 4)) & 0x0F0F0F0F
    words = words + (words >> 8)
    return ((words + (words >> 16)) & 0x3F).to(tl.int32)


@triton.jit
def word_slots_kernel(words_ptr, offsets_ptr, slots_ptr, COMPACT: tl.constexpr, BLOCK: tl.constexpr):
    """One program owns one block: the slot of the first kept coefficient of each of its words."""
    block = tl.program_id(0)
    offs = tl.arange(0, BLOCK // 32)
    counts = popcount(tl.load(words_ptr + block * (BLOCK // 32) + offs))
    base = tl.load(offsets_ptr + block) if COMPACT else block * BLOCK
    tl.store(slots_ptr + block * (BLOCK // 32) + offs, base + tl.cumsum(counts, 0) - counts)


def on_device_of(tensor: Tensor) -> torch.cuda.device:
    """Triton launches on the current device; make it the tensor's (a CPU tensor changes nothing)."""
    return torch.cuda.device(tensor.device if tensor.is_cuda else -1)


def expand(values: Tensor, words: Tensor, offsets: Tensor | None, numel: int) -> Tensor:
    """See `bitmap.expand`; Complex64 only."""
    flat = torch.empty(numel, dtype=torch.complex64, device=values.device)
    if numel:
        with on_device_of(values):
            expand_kernel[(blocks_of(numel),)](
                as_real_pairs(values),
                words,
                words if offsets is None else offsets,
                torch.view_as_real(flat),
                numel,
                COMPACT=offsets is not None,
                BLOCK=BLOCK,
                num_warps=NUM_WARPS,
            )
    return flat


def collect(flat: Tensor, words: Tensor, offsets: Tensor | None, capacity: int) -> Tensor:
    """See `bitmap.collect`; Complex64 only."""
    values = torch.zeros(capacity, dtype=torch.complex64, device=flat.device)
    if flat.numel():
        with on_device_of(flat):
            collect_kernel[(blocks_of(flat.numel()),)](
                as_real_pairs(flat),
                words,
                words if offsets is None else offsets,
                torch.view_as_real(values),
                flat.numel(),
                COMPACT=offsets is not None,
                BLOCK=BLOCK,
                num_warps=NUM_WARPS,
            )
    return values


def word_slots(words: Tensor, offsets: Tensor | None) -> Tensor:
    """Slot of the first kept coefficient of each word. Returns: Int32, as long as `words`."""
    slots = torch.empty_like(words)
    if words.numel():
        with on_device_of(words):
            word_slots_kernel[(words.numel() * WORD // BLOCK,)](
                words,
                words if offsets is None else offsets,
                slots,
                COMPACT=offsets is not None,
                BLOCK=BLOCK,
                num_warps=1,
            )
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
