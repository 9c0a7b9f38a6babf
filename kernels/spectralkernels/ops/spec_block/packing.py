"""Packed values without gaps: what a map that waits for its backward pass should hold.

`threshold_spectrum` packs the kept values of each block of 1024 to the start of the block's own slots, so that nothing
waits for a count; the slots together are as large as the dense spectrum. Here the blocks move together.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spectralkernels.checks import is_batched
from spectralkernels.errors import Unsupported
from spectralkernels.launch import triton_unavailable
from spectralkernels.sparse.bitmap import BLOCK, unpack_bits


def length(slots: int, blocks: int) -> int:
    """Complex values that a map of `blocks` blocks takes, given room for `slots` of them and for a spare block."""
    return min(slots + BLOCK, blocks * BLOCK)


def trimmed(values: Tensor, words: Tensor, slots: int | None) -> tuple[Tensor, Tensor]:
    """Move the packed values of all blocks together.

    values: Complex [blocks * 1024]. words: Int32 [blocks * 32].
    slots: None makes room for exactly the kept values, whose number the host waits for. A number makes room for that
        many, and for one block more, and waits for nothing; if more are kept, all values become NaN. Where that is
        room for all blocks, they stay where they are.
    Returns: Complex [kept] or [length(slots, blocks)]; Int32 [blocks], where each block's values begin.
    Raises: Unsupported if a CUDA graph is being captured, which cannot wait.
    """
    if not _in_place(values, slots):
        if slots is None and _captured(values):
            raise Unsupported(
                "a CUDA graph cannot wait for the number of kept coefficients; pass capacity, such as 0.5"
            )
        if values.dtype == torch.complex64 and triton_unavailable(values.device.type) is None:
            from spectralkernels.ops.spec_block import kernels

            return kernels.trimmed(values, words, slots)
    return moved(values, words, slots)


def moved(
    values: Tensor, words: Tensor, slots: int | None, scatter: Callable[..., Tensor] = Tensor.scatter_
) -> tuple[Tensor, Tensor]:
    """As `trimmed`, in torch's own operations; torch.func needs them with `Tensor.scatter`, which it can batch."""
    blocks = values.shape[0] // BLOCK
    if _in_place(values, slots):
        return values, torch.arange(0, blocks * BLOCK, BLOCK, dtype=torch.int32, device=values.device)
    if slots is None and is_batched(words):
        raise Unsupported(
            "torch.func.vmap has no place for maps that keep more than others; pass capacity, such as 0.5"
        )
    counts = unpack_bits(words).sum(1)
    ends = counts.cumsum(0)
    starts = ends - counts
    room = int(ends[-1]) if slots is None else slots
    rank = torch.arange(BLOCK, device=values.device)
    targets = starts.unsqueeze(1) + rank
    # what is not kept, or does not fit, lands in the spare block
    targets = torch.where((rank < counts.unsqueeze(1)) & (targets < room), targets, room)
    packed = scatter(values.new_zeros(room + BLOCK), 0, targets.reshape(-1), values)
    if slots is None:
        return packed[:room].clone(), starts.to(torch.int32)
    return torch.where(ends[-1] > room, float("nan"), packed), starts.clamp(max=room).to(torch.int32)


def _in_place(values: Tensor, slots: int | None) -> bool:
    """Whether there is room for all blocks where they are."""
    blocks = values.shape[0] // BLOCK
    return blocks == 0 or (slots is not None and length(slots, blocks) == blocks * BLOCK)


def _captured(tensor: Tensor) -> bool:
    return tensor.is_cuda and torch.cuda.is_current_stream_capturing()
