"""What a Triton kernel really moves: bytes loaded and stored per launch and argument, counted under the interpreter.

A kernel that waits for memory is as fast as its traffic is near the floor, each input read once and each output written
once. The interpreter executes every load and store, so under it the traffic is a number to assert and no estimate: no
GPU, no profiler, no noise. All accesses of a kernel (masked or not, by block pointer or descriptor, atomic) end in four
functions of Triton's `interpreter` module, and those are counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from spectralkernels.errors import Unsupported
from spectralkernels.launch import HAS_TRITON, interpreted


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes that one launch moved through one pointer; lanes that a mask switches off move none.

    loaded, stored: summed over programs and instructions. Lanes of one instruction that name the same byte count once:
        on a GPU they share a transaction.
    loaded_distinct, stored_distinct: bytes touched at least once; loaded / loaded_distinct is how often a byte is read.
    lanes_loaded: as `loaded`, each lane counted: what threads ask for.
    atomics: lanes of atomic instructions; their bytes count as loaded and as stored.
    """

    loaded: int = 0
    stored: int = 0
    loaded_distinct: int = 0
    stored_distinct: int = 0
    lanes_loaded: int = 0
    atomics: int = 0

    @property
    def bytes(self) -> int:
        return self.loaded + self.stored

    @property
    def distinct(self) -> int:
        return self.loaded_distinct + self.stored_distinct


@dataclass(frozen=True, slots=True)
class LaunchTraffic:
    """The traffic of one launch.

    arguments: by parameter name, every tensor and tensor descriptor of the launch. Bytes that two of them share belong
        to the first. values: all other arguments, sizes and tiles. outside: bytes moved beyond all arguments, which a
        correct kernel never does.
    """

    kernel: str
    grid: tuple[int, ...]
    arguments: Mapping[str, Traffic]
    values: Mapping[str, Any]
    outside: int

    @property
    def bytes(self) -> int:
        """Loaded and stored through all arguments."""
        return sum(moved.bytes for moved in self.arguments.values())

    def total(self, *names: str) -> int:
        """Bytes loaded and stored through these arguments."""
        return sum(self.arguments[name].bytes for name in names)


@contextmanager
def counted_traffic() -> Iterator[list[LaunchTraffic]]:
    """Count the traffic of every Triton launch made inside; the list grows by one entry as each launch ends.

    Raises: Unsupported outside Triton's interpreter, or without triton.
    """
    if not interpreted():
        raise Unsupported(
            "traffic is counted under Triton's interpreter only; start a new process with TRITON_INTERPRET=1"
        )
    if not HAS_TRITON:
        raise Unsupported("counting traffic needs triton (pip install triton)")
    from triton.runtime import interpreter

    made: list[LaunchTraffic] = []
    counter = _Counter(interpreter._interpreter)
    inner_call, inner_arguments = interpreter.GridExecutor.__call__, interpreter.GridExecutor._init_args_hst

    def call(self: Any, *arguments: Any, **keywords: Any) -> None:
        inner_call(self, *arguments, **keywords)
        made.append(counter.finished())

    def host_arguments(self: Any, arguments: Any, keywords: Any) -> Any:
        found = inner_arguments(self, arguments, keywords)
        # These are the tensors whose addresses the kernel sees; a tensor on a GPU was copied.
        named = {**dict(zip(self.arg_names, found[0], strict=False)), **found[1]}
        ordered = {name: named[name] for name in self.arg_names if name in named}
        grid = self.grid(ordered) if callable(self.grid) else self.grid
        counter.start(self.fn.__name__, tuple(grid), ordered)
        return found

    before = interpreter._interpreter
    interpreter._interpreter = counter
    interpreter.GridExecutor.__call__ = call
    interpreter.GridExecutor._init_args_hst = host_arguments
    try:
        yield made
    finally:
        interpreter._interpreter = before
        interpreter.GridExecutor.__call__ = inner_call
        interpreter.GridExecutor._init_args_hst = inner_arguments


class _Argument:
    """The bytes of one tensor: where they lie, what was moved, and which were touched."""

    def __init__(self, tensor: Tensor) -> None:
        reach = sum((side - 1) * stride for side, stride in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        self.start = tensor.data_ptr()
        self.size = reach * tensor.element_size() if tensor.numel() else 0
        self.read = np.zeros(self.size, dtype=bool)
        self.written = np.zeros(self.size, dtype=bool)
        self.loaded = self.stored = self.lanes_loaded = self.atomics = 0

    def traffic(self) -> Traffic:
        return Traffic(
            loaded=self.loaded,
            stored=self.stored,
            loaded_distinct=int(self.read.sum()),
            stored_distinct=int(self.written.sum()),
            lanes_loaded=self.lanes_loaded,
            atomics=self.atomics,
        )


class _Counter:
    """Stands for the interpreter's extension module: counts accesses to memory and passes everything on."""

    def __init__(self, module: Any) -> None:
        self._module = module
        self._kernel = ""
        self._grid: tuple[int, ...] = ()
        self._arguments: dict[str, _Argument] = {}
        self._values: dict[str, Any] = {}
        self._outside = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def start(self, kernel: str, grid: tuple[int, ...], arguments: Mapping[str, Any]) -> None:
        # A descriptor's base is its tensor.
        tensors = {name: getattr(value, "base", value) for name, value in arguments.items()}
        self._kernel, self._grid, self._outside = kernel, grid, 0
        self._arguments = {name: _Argument(value) for name, value in tensors.items() if isinstance(value, Tensor)}
        self._values = {name: value for name, value in tensors.items() if not isinstance(value, Tensor)}

    def finished(self) -> LaunchTraffic:
        moved = {name: argument.traffic() for name, argument in self._arguments.items()}
        return LaunchTraffic(self._kernel, self._grid, moved, self._values, self._outside)

    def load(self, addresses: Any, mask: Any, other: Any, dtype: Any) -> Any:
        self._count(addresses, mask, np.dtype(dtype).itemsize, load=True)
        return self._module.load(addresses, mask, other, dtype)

    def store(self, addresses: Any, values: Any, mask: Any) -> Any:
        self._count(addresses, mask, values.itemsize, store=True)
        return self._module.store(addresses, values, mask)

    def atomic_cas(self, addresses: Any, expected: Any, values: Any, order: Any) -> Any:
        self._count(addresses, np.ones(np.shape(addresses), dtype=bool), values.itemsize, load=True, store=True)
        return self._module.atomic_cas(addresses, expected, values, order)

    def atomic_rmw(self, operation: Any, addresses: Any, values: Any, mask: Any, order: Any) -> Any:
        self._count(addresses, mask, values.itemsize, load=True, store=True)
        return self._module.atomic_rmw(operation, addresses, values, mask, order)

    def _count(self, addresses: Any, mask: Any, itemsize: int, load: bool = False, store: bool = False) -> None:
        active = np.asarray(addresses)[np.asarray(mask, dtype=bool)].astype(np.int64)
        for argument in self._arguments.values():
            inside = (active >= argument.start) & (active + itemsize <= argument.start + argument.size)
            mine, active = active[inside], active[~inside]
            if not mine.size:
                continue
            distinct = np.unique(mine) - argument.start
            # An atomic serves its lanes one by one.
            moved = itemsize * (mine.size if load and store else distinct.size)
            touched = (distinct[:, None] + np.arange(itemsize)).ravel()
            if load:
                argument.loaded += moved
                argument.lanes_loaded += itemsize * mine.size
                argument.read[touched] = True
            if store:
                argument.stored += moved
                argument.written[touched] = True
            argument.atomics += mine.size * (load and store)
        self._outside += itemsize * active.size
