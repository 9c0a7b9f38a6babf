"""Operations from outside the package, found by entry points of the group `spectralbench.operations`.

    [project.entry-points."spectralbench.operations"]
    box_blur = "my_package.box_blur"      # a module that declares OPERATION
    mine = "my_package.operations"        # or a folder of such modules, walked like ours

They are listed, run, profiled and reported like ours, by name: `run` without names measures ours alone, because what
the commit of a record says nothing of must not stand beside what it does. One that is broken is left out and named.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Iterator, Set
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # it would import torch, which asking who is there does not need
    from spectralkernels.declare import Operation

GROUP = "spectralbench.operations"


@dataclass(frozen=True, slots=True)
class Plugins:
    """operations: by name. broken: what was left out, each with its reason."""

    operations: dict[str, Operation]
    broken: tuple[str, ...]


@cache
def load(taken: frozenset[str]) -> Plugins:
    """Every operation that an installed package declares; `taken` names are ours and stay ours.

    An entry point that fails as a whole, or one of its operations, is left out, whatever it raised.
    """
    operations: dict[str, Operation] = {}
    broken = []
    for point in found():
        try:
            with contextlib.redirect_stdout(sys.stderr):  # stdout is data; whatever an import prints is talk
                declared = list(_declared(point))
            for operation in declared:
                _check(operation, taken | operations.keys())
                operations[operation.name] = operation
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # other people's code, pytest's skip among it, costs its own operations alone
            package = "" if point.dist is None else f" of {point.dist.name} {point.dist.version}"
            broken.append(f"{point.name} ({point.value}){package}: {type(error).__name__}: {error}")
    return Plugins(operations, tuple(broken))


def found() -> list[EntryPoint]:
    """The entry points of the group, in the order of their names; none of them is imported."""
    return sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value))


def digest() -> str | None:
    """Sixteen hex digits of the sources of all plug-ins, none of which is imported; None without any."""
    points = found()
    if not points:
        return None
    told = hashlib.sha256()
    for package in sorted({point.module.partition(".")[0] for point in points}):
        spec = importlib.util.find_spec(package)
        places = [] if spec is None else spec.submodule_search_locations or [spec.origin or ""]
        for place in map(Path, places):
            for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
                told.update(f"{path}\0".encode() + (path.read_bytes() if path.is_file() else b""))
    return told.hexdigest()[:16]


def _declared(point: EntryPoint) -> Iterator[Operation]:
    loaded = point.load()
    if isinstance(loaded, ModuleType) and not hasattr(loaded, "OPERATION"):
        walked = [module.name for module in pkgutil.iter_modules(getattr(loaded, "__path__", ()))]
        if not walked:
            raise AttributeError("it declares no OPERATION and is no folder of modules that do")
        for name in walked:
            yield importlib.import_module(f"{loaded.__name__}.{name}").OPERATION
    else:
        yield loaded.OPERATION if isinstance(loaded, ModuleType) else loaded


def _check(operation: Any, taken: Set[str]) -> None:
    """TypeError or ValueError unless its records can be written, read again and told from others."""
    from spectralbench.record import RECORD
    from spectralkernels.declare import Operation

    if not isinstance(operation, Operation):
        raise TypeError(f"OPERATION must be a spectralkernels.declare.Operation, got {type(operation).__name__}")
    if operation.name in taken:
        raise ValueError(f"the name {operation.name!r} belongs to another operation")
    fields: list[tuple[str, Any]] = [("operation", operation.name), ("operation_version", operation.version)]
    fields += [("implementation", one.name) for one in operation.subjects]
    fields += [("role", one.role) for one in operation.subjects]
    fields += [("case", dict(case.params)) for profile in operation.profiles for case, _ in operation.cases(profile)]
    for profile in operation.profiles:
        for case, _ in operation.cases(profile)[:1]:
            cost = operation.cost(case)
            fields += [
                ("cost", {"bytes": cost.bytes, "flops": cost.flops}),
                ("fft_size", list(operation.fft_size(case))),
            ]
    texts = [operation.summary, operation.source, *(one.source for one in operation.subjects)]
    fields += [("reason", text) for text in texts]
    fields += [("reason", why) for one in operation.subjects if (why := one.available("cpu")) is not None]
    for name, value in fields:
        if not RECORD[name].holds(value):
            said = "what it says of itself" if name == "reason" else name
            raise ValueError(f"{said} must be {RECORD[name].expected}, got {value!r}")
