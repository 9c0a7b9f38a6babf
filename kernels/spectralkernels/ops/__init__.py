"""The operations: one file or folder each, found by walking this folder for its `OPERATION`."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

import torch

from spectralkernels.checks import check_choice
from spectralkernels.declare import Operation
from spectralkernels.dispatch import Availability
from spectralkernels.errors import RangeError


@cache
def load_operations() -> dict[str, Operation]:
    """Every operation by name; adding a file adds it everywhere, deleting the file removes it everywhere."""
    found = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        operation: Operation = module.OPERATION
        found[operation.name] = operation
    return found


def load_operation(name: str) -> Operation:
    """The operation of that name; RangeError lists the known ones."""
    operations = load_operations()
    if not isinstance(name, str) or name not in operations:
        raise RangeError(f"unknown operation {name!r}; known: {', '.join(operations)}")
    return operations[name]


def implementations(name: str, device: str | None = None) -> tuple[Availability, ...]:
    """Names and roles of an operation's implementations, and why each is or is not available on this machine.

    device: "cpu" or "cuda"; default is "cuda" where torch finds it, else "cpu".
    """
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device is None else device
    check_choice("device", device, ("cpu", "cuda"))
    return tuple(
        Availability(found.name, found.role, found.available(device)) for found in load_operation(name).implementations
    )
