"""Bytes that a forward pass keeps alive for its backward pass, seen by `saved_tensors_hooks`.

Each storage that is still held when the forward pass has ended counts once and whole, however many views of it are
saved, inputs and weights included. What a custom autograd function hides as a plain attribute is not seen: save it with
`save_for_backward`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _Saved:
    """What autograd holds in place of a saved tensor; it dies with the graph node that saved it."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def saved_by(forward: Callable[[], Any]) -> float:
    """Bytes that a forward pass keeps alive for its backward pass."""
    # What the first forward pass prepares for all later ones is not saved by each of them.
    forward()
    held: weakref.WeakSet[_Saved] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Saved:
        # Detached, because a node that saves its own output would hold itself alive through it.
        saved = _Saved(tensor.detach())
        held.add(saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        output = forward()
    storages = [part.untyped_storage() for saved in held for part in _parts(saved.tensor)]
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    # The graph hangs on the output.
    del output
    return float(sum(sizes.values()))


def _parts(tensor: Tensor) -> tuple[Tensor, ...]:
    if tensor.layout == torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return (tensor,)
