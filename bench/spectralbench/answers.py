"""The tensors inside an answer or an argument, however they are packed: to find, copy and spoil them.

Packed means: tensors in dataclasses, mappings, tuples and lists, and torch's sparse layouts.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

_PARTS = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}


def tensors_in(value: object) -> Iterator[Tensor]:
    """Every strided tensor inside `value`, in a fixed order."""
    if isinstance(value, Tensor):
        if value.layout == torch.strided:
            yield value
        else:
            yield from (getattr(value, part)() for part in _PARTS.get(value.layout, ()))
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, tuple | list):
        for part in value:
            yield from tensors_in(part)
    elif is_dataclass(value) and not isinstance(value, type):
        for part_of in fields(value):
            yield from tensors_in(getattr(value, part_of.name))


def snapshot(value: Any) -> Any:
    """The same with every tensor copied on the current stream, detached, nothing waited for.

    What another thread or stream has not written by now is not in the copy.
    """
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {name: snapshot(part) for name, part in value.items()}
    if type(value) in (tuple, list):
        return type(value)(snapshot(part) for part in value)
    if is_dataclass(value) and not isinstance(value, type):
        twin = copy.copy(value)
        for part in fields(value):
            # The dataclass may be frozen, and its constructor may compute.
            object.__setattr__(twin, part.name, snapshot(getattr(value, part.name)))
        return twin
    return value


def poison(output: object, keep: Sequence[object]) -> None:
    """Spoil an answer, packed or not, so that a call that writes nothing cannot pass with the bits of an earlier one.

    Floating-point numbers become NaN; bits and indices inside a packed answer become 0, which points nowhere outside.
    Left alone: what overlaps itself, or shares memory with anything in `keep`.
    """
    shared = {_address(tensor) for value in keep for tensor in tensors_in(value)}
    for tensor in tensors_in(output):
        if tensor.numel() == 0 or overlaps(tensor) or _address(tensor) in shared:
            continue
        with torch.no_grad():
            tensor.fill_(float("nan") if tensor.is_floating_point() or tensor.is_complex() else 0)


def overlaps(tensor: Tensor) -> bool:
    """Whether elements share memory, as in an expanded tensor."""
    return any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
