"""Operations of the harness, that are none of the library: found by walking this folder for their `OPERATION`."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from spectralbench import plugins
from spectralkernels import ops
from spectralkernels.declare import Operation


@cache
def ours() -> dict[str, Operation]:
    """Every operation of the library, and then every workload, by name."""
    found = dict(ops.load_operations())
    for module_info in pkgutil.iter_modules(__path__):
        operation: Operation = importlib.import_module(f"{__name__}.{module_info.name}").OPERATION
        found[operation.name] = operation
    return found


def outside() -> plugins.Plugins:
    """The operations that other packages declare, and what is wrong with the others of theirs."""
    return plugins.load(frozenset(ours()))


def load_operations() -> dict[str, Operation]:
    """Ours and then those of other packages, by name."""
    return {**ours(), **outside().operations}
