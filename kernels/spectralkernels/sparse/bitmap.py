"""The bitmap format in torch: bits, packing and unpacking as custom operators of static shape.

`expand` and `collect` are adjoint to each other, so each is the other's backward pass. Where Triton runs, complex64
goes through its kernels (`sparse.kernels`), elsewhere through the torch code here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spectralkernels.launch import triton_unavailable
from spectralkernels.operators import operator

WORD = 32
BLOCK = 1024  # coefficients per block: 32 words, one 128-byte line of the bitmap


def blocks_of(numel: int) -> int:
    """Blocks that `numel` coefficients fill."""
    return (numel + BLOCK - 1) // BLOCK


def pack_bits(bits: Tensor) -> Tensor:
    """Bool [blocks, 1024] -> Int32 [blocks * 32]; bit i of a word is its i-th coefficient."""
    shifts = torch.arange(WORD, dtype=torch.int32, device=bits.device)
    return (bits.reshape(-1, WORD).to(torch.int32) << shifts).sum(1, dtype=torch.int32)


def unpack_bits(words: Tensor) -> Tensor:
    """Int32 [blocks * 32] -> Bool [blocks, 1024]."""
    shifts = torch.arange(WORD, dtype=torch.int32, device=words.device)
    return ((words.unsqueeze(1) >> shifts) & 1).bool().reshape(-1, BLOCK)


@operator("bitmap_pack")
def pack(flat: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Pack the kept coefficients of each block to the start of its slots.

    flat: Complex [n]. kept: Bool [n].
    Returns: Complex [blocks * 1024], zero in unused slots; Int32 [blocks * 32].
    """
    bits = blocked(kept)
    return _collect(flat, bits, None, bits.numel()), pack_bits(bits)


@pack.register_fake
def _(flat: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    blocks = blocks_of(flat.shape[0])
    return flat.new_empty(blocks * BLOCK), kept.new_empty(blocks * (BLOCK // WORD), dtype=torch.int32)


@operator("bitmap_expand", dense=True)
def expand(values: Tensor, words: Tensor, offsets: Tensor | None, numel: int) -> Tensor:
    """Unpack to the flat spectrum, zero where dropped.

    values: Complex [blocks * 1024], or packed without gaps with `offsets` Int32 [blocks]. words: Int32 [blocks * 32].
    Returns: Complex [numel].
    """
    if _runs_on_triton(values):
        from spectralkernels.sparse import kernels

        return kernels.expand(values, words, offsets, numel)
    return _expand(values, words, offsets, numel)


@expand.register_fake
def _(values: Tensor, words: Tensor, offsets: Tensor | None, numel: int) -> Tensor:
    return values.new_empty(numel)


@operator("bitmap_collect", dense=True)
def collect(flat: Tensor, words: Tensor, offsets: Tensor | None, capacity: int) -> Tensor:
    """Gather the coefficients that the words mark, in the order and place of `expand`'s values.

    flat: Complex [n]. Returns: Complex [capacity], zero in unused slots.
    """
    if _runs_on_triton(flat):
        from spectralkernels.sparse import kernels

        return kernels.collect(flat, words, offsets, capacity)
    return _collect(flat, unpack_bits(words), offsets, capacity)


@collect.register_fake
def _(flat: Tensor, words: Tensor, offsets: Tensor | None, capacity: int) -> Tensor:
    return flat.new_empty(capacity)


def blocked(flat: Tensor) -> Tensor:
    """[n] -> [blocks, 1024], the last block filled with zeros."""
    return torch.nn.functional.pad(flat, (0, -flat.shape[0] % BLOCK)).reshape(-1, BLOCK)


def _slots(bits: Tensor, offsets: Tensor | None) -> Tensor:
    """Slot of every coefficient, if it is kept. Returns: Int64 [blocks, 1024]."""
    if offsets is None:
        offsets = torch.arange(len(bits), device=bits.device) * BLOCK
    return bits.cumsum(1) - 1 + offsets.unsqueeze(1)


def _expand(values: Tensor, words: Tensor, offsets: Tensor | None, numel: int) -> Tensor:
    bits = unpack_bits(words)
    if values.numel() == 0:
        return values.new_zeros(numel)
    slots = torch.where(bits, _slots(bits, offsets), 0)
    return torch.where(bits, values[slots], 0.0).reshape(-1)[:numel]


def _collect(
    flat: Tensor, bits: Tensor, offsets: Tensor | None, capacity: int, scatter: Callable[..., Tensor] = Tensor.scatter_
) -> Tensor:
    # dropped coefficients land in one slot too many, which is cut off
    slots = torch.where(bits, _slots(bits, offsets), capacity).reshape(-1)
    return scatter(flat.new_zeros(capacity + 1), 0, slots[: flat.shape[0]], flat)[:capacity]


def _runs_on_triton(values: Tensor) -> bool:
    return values.dtype == torch.complex64 and triton_unavailable(values.device.type) is None


def _save_pack(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.numel = inputs[0].shape[0]
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])


def _pack_backward(ctx: Any, grad_values: Tensor, grad_words: Tensor | None) -> tuple[Tensor, None]:
    (words,) = ctx.saved_tensors
    return expand(grad_values, words, None, ctx.numel), None


def _save_words(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    data, words, offsets, _ = inputs
    ctx.size = data.shape[0]
    ctx.save_for_backward(words, offsets)


def _expand_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    words, offsets = ctx.saved_tensors
    return collect(grad, words, offsets, ctx.size), None, None, None


def _collect_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    words, offsets = ctx.saved_tensors
    return expand(grad, words, offsets, ctx.size), None, None, None


# All three are linear in the spectrum, and torch can differentiate their code here, whatever kernels run elsewhere. It
# has a rule to batch `scatter`, not `scatter_`.


@pack.register_composed
def _(flat: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    bits = blocked(kept)
    return _collect(flat, bits, None, bits.numel(), Tensor.scatter), pack_bits(bits)


@collect.register_composed
def _(flat: Tensor, words: Tensor, offsets: Tensor | None, capacity: int) -> Tensor:
    return _collect(flat, unpack_bits(words), offsets, capacity, Tensor.scatter)


expand.register_composed(_expand)

pack.register_autograd(_pack_backward, setup_context=_save_pack)
expand.register_autograd(_expand_backward, setup_context=_save_words)
collect.register_autograd(_collect_backward, setup_context=_save_words)
