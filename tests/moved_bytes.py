"""For tests of traffic: count one launch, and compare what it moved with its tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from spectralkernels.traffic import LaunchTraffic, counted_traffic

STREAMING = 1.15
"""Largest traffic over floor of a kernel that reads each input once."""


def only(launches: list[LaunchTraffic]) -> LaunchTraffic:
    """The one launch, which kept to its arguments."""
    assert len(launches) == 1 and launches[0].outside == 0
    return launches[0]


def counted(launch: Callable[[], object]) -> LaunchTraffic:
    with counted_traffic() as launches:
        launch()
    return only(launches)


def ratio(moved: LaunchTraffic, **tensors: Tensor) -> float:
    """Bytes moved through these arguments over the bytes of the tensors, which are the floor."""
    for name, tensor in tensors.items():
        assert moved.arguments[name].distinct == tensor.nbytes, f"{name} was not read or written as a whole"
    return moved.total(*tensors) / sum(tensor.nbytes for tensor in tensors.values())


def complex_randn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex64)


def rereads(moved: LaunchTraffic, name: str) -> float:
    """How often each byte that is read at all is read."""
    return moved.arguments[name].loaded / moved.arguments[name].loaded_distinct


def ceil(size: int, block: int) -> int:
    return -(-size // block)
