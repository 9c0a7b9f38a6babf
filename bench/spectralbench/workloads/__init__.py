"""Operations of the harness, that are none of the library: found by walking this folder for their `OPERATION`."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from spectralkernels import ops
from spectralkernels.declare import Operation


@cache
def load_operations() -> dict[str, Operation]:
    """Every operation of the library, and then every workload, by name."""
    found = dict(ops.load_operations())
    for module_info in pkgutil.iter_modules(__path__):
        operation: Operation = importlib.import_module(f"{__name__}.{module_info.name}").OPERATION
        found[operation.name] = operation
    return found
