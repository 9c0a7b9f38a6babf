"""The metrics: one file each, found by walking this folder for its `METRIC`."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from torch import Tensor

from spectralkernels.declare import Case, Implementation, Operation, Pass


@dataclass(frozen=True, slots=True)
class Trial:
    """One implementation that answered one case rightly; the only object that carries tensors, and it dies in the core.

    inputs: the operation's keywords. run: one call of the measured pass, its answer returned and not kept.
    forward: one forward pass that records for a backward pass; None where there is nothing to differentiate.
    output: the answer to the last timed call. dense: the same as one tensor. expected: the right answer in float64, of
    the same shape (see `Operation.reference_of`). ideal: computes the uncompressed float64 answer once per case, or
    None where the operation loses nothing. times: seconds per call, if timed.
    """

    operation: Operation
    case: Case
    implementation: Implementation
    device: str
    pass_: Pass
    inputs: Mapping[str, Any]
    run: Callable[[], object]
    forward: Callable[[], Any] | None
    output: Any
    dense: Tensor
    expected: Tensor
    ideal: Callable[[], Tensor | None]
    times: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Metric:
    """One kind of number: SI unit, smaller is better.

    `sample` returns one or more finite values, or raises Unsupported with the reason why there are none. `version`
    rises only when the meaning of the number changes. `devices`: where it is taken without being asked for by name.
    """

    name: str
    unit: str
    version: int
    sample: Callable[[Trial], Sequence[float]]
    devices: tuple[str, ...] = ("cpu", "cuda")


@cache
def load_metrics() -> dict[str, Metric]:
    """Every metric by name; adding a file adds it everywhere, deleting the file removes it everywhere."""
    found = {}
    for module_info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{module_info.name}")
        metric: Metric = module.METRIC
        found[metric.name] = metric
    return found
