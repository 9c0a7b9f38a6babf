"""What follows from a geometry alone: tensors, such as DFT matrices, made once, in no mode, bounded in bytes.

Plans follow from it, too; they hold no tensor and are bounded in number.

A tensor that is made while the caller is in inference mode, under a default device, in FakeTensorMode, in a transform
of torch.func or in an export belongs to that mode, and would break every later call that meets it. All of these belong
to a thread, so that a thread of its own is in none of them.
"""

from __future__ import annotations

import dataclasses
import itertools
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any, Generic, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

MOST_BYTES = 128 << 20
"""Of all constants together: the transforms of a ResNet on maps of 224 x 224 take 3 MB."""
AT_ONCE = 16
"""Copies that may be held beyond MOST_BYTES, on average, before the oldest go."""
ALWAYS_KEPT = 8
"""The newest constants, whatever their size: as many as one call needs."""

MOST_PLANS = 4096
"""Of one function that makes plans: a few hundred bytes each, those of whole calls 3 kB."""

_Arguments = ParamSpec("_Arguments")
_Made = TypeVar("_Made")


@dataclass(slots=True)
class _Entry:
    value: Any  # None once it is forgotten
    size: int
    used: int


_entries: dict[Any, _Entry] = {}
_clock = itertools.count()
_in_builder = threading.local()


def constant(make: Callable[_Arguments, _Made]) -> Callable[_Arguments, _Made]:
    """Decorator: remember what a function makes of hashable arguments; the least recently used is forgotten first.

    What torch.compile or torch.export traces is made in the graph, what meets fake tensors is fake: neither is kept.
    """

    @wraps(make)
    def remembered(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Made:
        if _tracing() or getattr(_in_builder, "active", False):
            return make(*args, **kwargs)
        key = (make, args, *kwargs.items())
        entry = _entries.get(key)
        value: _Made | None = None if entry is None else entry.value
        if entry is None or value is None:
            value = outside_every_mode(lambda: make(*args, **kwargs), (*args, *kwargs.values()))
            entry = _entries[key] = _Entry(value, _bytes(value), next(_clock))
            _forget()
        entry.used = next(_clock)
        return value

    return remembered


class Recalled(Generic[_Made]):
    """A constant that is asked for often: called, it is found without its arguments for as long as it is remembered.

    remembered: what `constant` made of a function. arguments: hashable, of that function.
    """

    __slots__ = ("_arguments", "_entry", "_remembered")

    def __init__(self, remembered: Callable[..., _Made], *arguments: Any) -> None:
        self._remembered, self._arguments = remembered, arguments
        self._entry: _Entry | None = None

    def __call__(self) -> _Made:
        entry = self._entry
        value: _Made | None = None if entry is None else entry.value
        if entry is None or value is None:
            value = self._remembered(*self._arguments)
            self._entry = _entries.get((self._remembered.__wrapped__, self._arguments))  # type: ignore[attr-defined]
            return value
        entry.used = next(_clock)
        return value


class Held:
    """A copy of a tensor on the host, which counts among the bytes of constants and is forgotten as they are."""

    def __init__(self, tensor: Tensor) -> None:
        copy, key = tensor.detach().to("cpu", copy=True), object()
        self._entry = _entries[key] = _Entry(copy, _bytes(copy), next(_clock))
        weakref.finalize(self, _drop, key).atexit = False
        if self._entry.used % AT_ONCE == 0:  # the oldest are looked for seldom: random masks are held one after another
            _forget()

    def holds(self, tensor: Tensor) -> bool:
        """Whether it is remembered, and a tensor of its shape and dtype on the host has the same numbers, no NaN."""
        copy: Tensor | None = self._entry.value
        if copy is None or not torch.equal(copy, tensor):
            return False
        self._entry.used = next(_clock)
        return True


def planned(make: Callable[_Arguments, _Made]) -> Callable[_Arguments, _Made]:
    """Decorator: remember what a function makes of hashable positional arguments, where no tensor is in it.

    1 and True are told apart, but not within a tuple. What is traced is made in the graph: its sizes may be symbols.
    """
    kept = lru_cache(maxsize=MOST_PLANS, typed=True)(make)

    @wraps(make)
    def remembered(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Made:
        if _tracing():
            return make(*args, **kwargs)
        found: _Made = kept(*args, **kwargs)  # type: ignore[arg-type]
        return found

    return remembered


class Plans(Generic[_Made]):
    """Plans by a key of the caller's, where the function that makes one is given more than its key; the oldest go.

    A key must tell 1 from True where one of them is refused.
    """

    def __init__(self) -> None:
        self._kept: dict[Any, _Made] = {}
        self.get = self._kept.get
        """The plan of a key, or None."""

    def keep(self, key: Any, plan: _Made) -> _Made:
        """The plan, which `get` finds from now on."""
        self._kept[key] = plan
        if len(self._kept) > MOST_PLANS:
            # Another thread may do the same.
            for oldest in list(self._kept)[: MOST_PLANS // 2]:
                self._kept.pop(oldest, None)
        return plan

    def forget(self) -> None:
        """Forget all of them."""
        self._kept.clear()

    def __bool__(self) -> bool:
        return bool(self._kept)


def kept_bytes() -> int:
    """Bytes of all constants that are remembered."""
    return sum(entry.size for entry in list(_entries.values()))


def forget() -> None:
    """Forget all constants."""
    for key in list(_entries):
        _drop(key)


def traced(*tensors: Tensor) -> bool:
    """Whether values cannot be read: torch.compile or export is tracing, or there are fake or meta tensors."""
    if _tracing():
        return True
    for each in tensors:
        if each.is_meta or (type(each) is not Tensor and isinstance(each, FakeTensor)):
            return True
    return False


def out_of_inference() -> AbstractContextManager[object]:
    """Inside, what is made to be kept may be saved for a later derivative, if the caller is in inference mode or not.

    Gradients are recorded inside if they were before, or the caller was in inference mode.
    """
    inside = not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()
    return torch.inference_mode(False) if inside else nullcontext()


def _tracing() -> bool:
    return torch.compiler.is_compiling() or torch._C._get_dispatch_mode(_FAKE) is not None


_FAKE = torch._C._TorchDispatchModeKey.FAKE


def _forget() -> None:
    spare = kept_bytes() - MOST_BYTES
    if spare <= 0:
        return
    by_age = sorted(list(_entries.items()), key=lambda item: item[1].used)
    for key, entry in by_age[:-ALWAYS_KEPT]:
        if spare <= 0:
            return
        _drop(key)
        spare -= entry.size


def _drop(key: Any) -> None:
    entry = _entries.pop(key, None)
    if entry is not None:
        entry.value = None


def outside_every_mode(make: Callable[[], _Made], arguments: tuple[Any, ...]) -> _Made:
    """What a function makes in a thread of its own, where nothing traces, transforms or records it.

    arguments: a CUDA device among them is that of its work, which is put on the caller's stream.
    """
    stream = _stream(arguments)
    made: list[_Made] = []
    errors: list[BaseException] = []

    def run() -> None:
        _in_builder.active = True
        try:
            with torch.no_grad(), torch.cuda.stream(stream) if stream else nullcontext():
                made.append(make())
        except BaseException as error:  # raised again in the thread that waits
            errors.append(error)

    thread = threading.Thread(target=run, name="spectralkernels constant")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return made[0]


def _stream(arguments: tuple[Any, ...]) -> torch.cuda.Stream | None:
    """The stream on which the caller will use the constant: a new thread has another."""
    cuda = [each for each in arguments if isinstance(each, torch.device) and each.type == "cuda"]
    return torch.cuda.current_stream(cuda[0]) if cuda else None


def _bytes(value: Any) -> int:
    """Of the distinct memory of every tensor in a constant."""
    storages = {tensor.untyped_storage()._cdata: tensor for tensor in _tensors(value)}
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values() if tensor.device.type != "meta")


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple):
        for each in value:
            yield from _tensors(each)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from _tensors(getattr(value, field.name))
