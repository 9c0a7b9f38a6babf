"""`impl="auto"` by measuring: whoever serves a call as exactly as any is run, and the fastest one is remembered.

Estimates of times are fitted on some machines and there are none for a GPU; what cuDNN does with
`torch.backends.cudnn.benchmark` does away with both. It is asked for, because it costs some calls of everyone and
because two machines, or two runs, may then round differently.
"""

from __future__ import annotations

import dataclasses
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from spectralkernels.constants import Plans, traced
from spectralkernels.declare import Decision, Implementation, Operation
from spectralkernels.errors import Unsupported
from spectralkernels.launch import forget_plans
from spectralkernels.operators import nothing_traces

ROUNDS, SECONDS = 50, 0.5
"""Calls of everyone after the first, at most, and how long they may take together."""
SURE, PATIENCE, HOPELESS = 3, 2.0, 20.0
"""From so many calls on, who takes so many times as long as the fastest drops out; before, who is hopeless does."""

_racing = ContextVar("racing", default=False)
_measured: Plans[Decision] = Plans()


@contextmanager
def autotune() -> Iterator[None]:
    """Inside, the first call of a kind races whoever serves it, and `impl="auto"` takes the fastest from then on.

        with sk.autotune():
            model(x).sum().backward()       # once, as it will be called
        train(model)

    A kind of call is an operation with its sizes, strides, dtypes, device, options, gradients wanted and number of
    threads. Its gradients are raced with it. What was found holds in this process, after the block too; no answer is
    coarser for it, but it may be rounded differently. `dft_native` is compiled for it where a compiler is. Operations
    that choose a format by `optimise`, and calls that torch traces or captures, are left to the estimates.
    """
    forget_plans()  # of calls whose choice was estimated
    token = _racing.set(True)
    try:
        yield
    finally:
        _racing.reset(token)


def forget() -> None:
    """Forget every choice that was measured, so that `impl="auto"` estimates again."""
    _measured.forget()
    forget_plans()


def measured(
    operation: Operation, device: str, inputs: Mapping[str, Any], serves: Callable[[Implementation], bool], look: bool
) -> Decision | None:
    """What was measured to be the fastest for such a call, or is now, inside `autotune`; None: it is estimated.

    serves: whether an implementation can take this call. look: whether nothing may be run.
    """
    if operation.aims or not nothing_traces() or not (_racing.get() or _measured):
        return None
    kind = (operation.name, torch.get_num_threads(), torch.is_grad_enabled(), *_facts(tuple(inputs.items())))
    known = _measured.get(kind)
    if known is not None:
        # What tensors hold may decide who serves: a mask of ones is no mask.
        return known if serves(operation.implementation(known.name)) else None
    if look or not _racing.get() or traced(*_tensors(inputs)) or _captures(device):
        return None
    runs = {found.name: _run(found, inputs) for found in _contenders(operation, inputs, serves)}
    fastest = _fastest(runs, device)
    return None if fastest is None else _measured.keep(kind, fastest)


def _contenders(
    operation: Operation, inputs: Mapping[str, Any], serves: Callable[[Implementation], bool]
) -> Iterator[Implementation]:
    """Whoever serves as exactly as the operation asks, of ours, at once; of few of them if the operation says so."""
    among = None if operation.contenders is None else operation.contenders(**inputs)
    for found in operation.implementations:
        if found.compiled or found.foreign or (among is not None and found.name not in among):
            continue
        if operation.as_exact(found) and serves(found):
            yield found


def _run(implementation: Implementation, inputs: Mapping[str, Any]) -> Callable[[], object]:
    """A call on tensors of the same numbers that belong to no graph, with the gradients that the call will want."""
    own = {
        name: given.detach().requires_grad_(given.requires_grad) if isinstance(given, Tensor) else given
        for name, given in inputs.items()
    }
    wanted = [each for each in _tensors(own) if each.requires_grad]

    def run() -> object:
        y = implementation.call(**own)
        if not (wanted and torch.is_grad_enabled() and y.requires_grad):
            return y
        return torch.autograd.grad(y, wanted, torch.ones_like(y), allow_unused=True)

    return run


def _fastest(runs: Mapping[str, Callable[[], object]], device: str) -> Decision | None:
    """The one with the least seconds, calls taking turns; the first call of each makes its constants and kernels.

    Who has no compiler or no memory after all is left out with a warning.
    """
    least: dict[str, float] = {}
    for name, run in runs.items():
        try:
            run()
            least[name] = math.inf
        except (Unsupported, torch.OutOfMemoryError) as error:
            warnings.warn(f"autotune leaves out {name!r}: {error}", stacklevel=2)
    if not least:
        return None
    racing, start = list(least), clock()
    for calls in range(1, ROUNDS + 1):
        for name in racing:
            least[name] = min(least[name], _seconds(runs[name], device))
        patience = (PATIENCE if calls >= SURE else HOPELESS) * min(least.values())
        racing = [name for name in racing if least[name] <= patience]
        if len(racing) == 1 or (calls >= SURE and clock() - start > SECONDS):
            break
    first, *others = sorted(least, key=lambda name: least[name])
    because = f"it was measured to be the fastest: {least[first]:.2g} s"
    return Decision(first, because + "".join(f", {name} {least[name]:.2g} s" for name in others[:1]))


clock = time.perf_counter


def _seconds(run: Callable[[], object], device: str) -> float:
    """Of one call until its answer is there."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def _facts(given: Any) -> Any:
    """What the time of a call follows from: numbers of tensors do not count, everything else does."""
    if isinstance(given, Tensor):
        return given.shape, given.stride(), given.dtype, given.device, given.requires_grad
    if isinstance(given, tuple):
        return tuple(_facts(each) for each in given)
    if dataclasses.is_dataclass(given):
        return type(given), *(_facts(getattr(given, field.name)) for field in dataclasses.fields(given))
    return type(given), given


def _tensors(inputs: Mapping[str, Any]) -> list[Tensor]:
    return [each for each in inputs.values() if isinstance(each, Tensor)]


def _captures(device: str) -> bool:
    """Whether a CUDA graph records what is run, so that no clock sees it."""
    return device == "cuda" and torch.cuda.is_current_stream_capturing()
