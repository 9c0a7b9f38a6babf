"""The operations: one file or folder each, found by walking this folder for its `OPERATION`."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from spectralkernels.declare import Operation
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
