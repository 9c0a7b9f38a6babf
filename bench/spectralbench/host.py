"""`python -m spectralbench.host`: what Python adds to the torch operations of one eager call.

A call of a small map takes as long as its Python. `Recorded` lists the torch operations that a call makes, inside our
operators too, and makes them again alone; what the call takes beyond that is the host's time: arguments, geometry, the
choice of an implementation, plans and bookkeeping. Triton launches are left out, so that their paths run anywhere up to
the launch. An operation is what Python asks torch for that returns or sets tensors; reading a shape is not one.

Printed for every path of `band_limited_conv2d` and `...1d`, with a stride and without, and of `masked_conv2d`, on one
plane of 8 x 8 (a series of 64): microseconds, and the calls of Python functions and the changes of file on the way.
`floor` is what torch's dispatcher takes for empty operators, as many as the path has of ours, registered by
`torch.library` as PyTorch's manual does it: a path that took no time of ours and went by it would take that. Ours pass
it by where nothing looks on, so that a path may be quicker.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

import spectralkernels as sk
from spectralkernels import dispatch
from spectralkernels.convolution import prepared
from spectralkernels.declare import Implementation
from spectralkernels.launch import Launch, forget_plans
from spectralkernels.operators import Operator

TRIES, SAMPLES = 50, 20
"""Calls of which the quickest counts, because a busy machine only adds; samples."""


@contextmanager
def without_launches() -> Iterator[None]:
    """Inside, a Triton launch is prepared and not made, and Triton implementations serve every device."""
    launch, why_not = Launch._launch, dispatch.why_not

    def supported(implementation: Implementation, device: str, inputs: dict[str, Any]) -> str | None:
        triton = implementation.engine == "triton"
        return implementation.supports(**inputs) if triton else why_not(implementation, device, inputs)

    Launch._launch, dispatch.why_not = lambda self: None, supported  # type: ignore[method-assign]
    try:
        yield
    finally:
        Launch._launch, dispatch.why_not = launch, why_not  # type: ignore[method-assign]
        forget_plans()  # of calls that only serve inside


class Recorded(TorchFunctionMode):
    """The torch operations of a call that is made inside, those within our operators as well.

    unseen: of a call as nobody looks at it, which passes our operators by where it can.
    """

    def __init__(self, unseen: bool = False) -> None:
        super().__init__()
        self.unseen = unseen
        self.operators = 0
        self.operations: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        if _has_tensors(found) or getattr(func, "__name__", "") == "__setitem__":
            self.operations.append((func, args, kwargs))
        return found

    def __enter__(self) -> Recorded:
        self._call, self._nothing_watches = Operator.__call__, prepared.nothing_watches

        def counted(operator: Operator, *arguments: Any) -> Any:
            self.operators += 1
            return operator.compute(*arguments)

        Operator.__call__ = counted  # type: ignore[method-assign, assignment]
        if self.unseen:
            prepared.nothing_watches = lambda: True
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        Operator.__call__ = self._call  # type: ignore[method-assign]
        prepared.nothing_watches = self._nothing_watches

    def again(self) -> None:
        """Make the operations again."""
        for operation, args, kwargs in self.operations:
            operation(*args, **kwargs)


def _has_tensors(found: Any) -> bool:
    return isinstance(found, Tensor) or (isinstance(found, tuple | list) and any(map(_has_tensors, found)))


@dataclass(frozen=True, slots=True)
class HostTime:
    """Seconds of a call and of its torch operations alone, sample by sample, and how many operations those are.

    operators: of ours on the way.
    """

    calls: tuple[float, ...]
    operations: tuple[float, ...]
    count: int
    operators: int

    @property
    def samples(self) -> tuple[float, ...]:
        """What Python adds; never less than nothing, which the operations of a call may seem to leave."""
        return tuple(max(0.0, call - alone) for call, alone in zip(self.calls, self.operations, strict=True))


def host_time(
    call: Callable[[], object], samples: int = SAMPLES, now: Callable[[], float] = time.perf_counter
) -> HostTime:
    """Time a forward call, launches left out, against its torch operations, in turns."""
    with without_launches(), torch.no_grad():
        call()  # makes and keeps what later calls find
        with Recorded() as seen:
            call()
        with Recorded(unseen=True) as recorded:
            call()
        turns = [(_quickest(call, now), _quickest(recorded.again, now)) for _ in range(samples)]
    calls, operations = zip(*turns, strict=True)
    return HostTime(calls, operations, len(recorded.operations), seen.operators)


def empty_operator(samples: int = SAMPLES, now: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of a call of an operator of x, a weight and a bias that does nothing."""
    output = torch.empty(())

    def nothing(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return output

    library = torch.library.Library("spectralbench", "FRAGMENT")
    library.define("nothing" + torch.library.infer_schema(nothing, mutates_args=()))
    library.impl("nothing", nothing, "CompositeExplicitAutograd")
    operator, tensor = torch.ops.spectralbench.nothing.default, torch.zeros(())
    with torch.no_grad():
        return min(_quickest(lambda: operator(tensor, tensor, None), now) for _ in range(samples))


def _quickest(call: Callable[[], object], now: Callable[[], float]) -> float:
    found = []
    for _ in range(TRIES):
        start = now()
        call()
        found.append(now() - start)
    return min(found)


def steps(call: Callable[[], object]) -> tuple[int, int]:
    """Calls of Python functions in a forward call, and how often the next one lies in another file."""
    files: list[str] = []

    def see(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            files.append(frame.f_code.co_filename)

    with without_launches(), torch.no_grad():
        for _ in range(2):
            call()  # the second finds what the first kept
        before = sys.getprofile()
        sys.setprofile(see)
        try:
            call()
        finally:
            sys.setprofile(before)
    seen = [file for file in files if file != __file__]
    return len(seen), sum(one != other for one, other in pairwise(seen))


# --- the paths ------------------------------------------------------------------------------------------------------


def paths() -> dict[str, Callable[[], Tensor]]:
    """The public call of every path, by name: one sample, one channel, half of the spectrum dropped."""
    torch.manual_seed(0)
    plane, taps, offset = torch.randn(1, 1, 8, 8), torch.randn(1, 1, 3, 3), torch.randn(1)
    series, filters = torch.randn(1, 1, 64), torch.randn(1, 1, 3)
    frozen = sk.weight_spectrum(taps, (8, 8), compression=0.5)

    grid = sk.masks.fft_grid((8, 8), (3, 3))
    window = sk.masks.rectangular(grid, 0.5).float()
    modes = sk.masks.mode_list(window, grid)
    frozen_modes = sk.masked_weight_spectrum(taps, modes, (8, 8))

    def of_map(impl: str, weight: Any = taps, compression: float | None = 0.5, stride: int = 1) -> Callable[[], Tensor]:
        return lambda: sk.band_limited_conv2d(plane, weight, offset, compression=compression, stride=stride, impl=impl)

    def of_series(impl: str, stride: int = 1) -> Callable[[], Tensor]:
        return lambda: sk.band_limited_conv1d(series, filters, offset, compression=0.5, stride=stride, impl=impl)

    def masked(impl: str, weight: Any = taps, modes: sk.masks.ModeList | None = modes) -> Callable[[], Tensor]:
        return lambda: sk.masked_conv2d(plane, weight, window, offset, modes=modes, impl=impl)

    return {
        **{name: of_map(name) for name in ("auto", "dft_gemm", "dft_native", "torch_fft")},
        "dft_gemm_frozen": of_map("dft_gemm_frozen", frozen, None),
        "direct": of_map("direct", compression=0.0),
        **{name: of_map(name) for name in ("dft_triton", "fused_depthwise", "cufft_triton")},
        "dft_triton_frozen": of_map("dft_triton_frozen", frozen, None),
        "implicit_gemm_triton": of_map("implicit_gemm_triton", compression=0.0),
        "dft_gemm 1-D": of_series("dft_gemm"),
        "dft_triton 1-D": of_series("dft_triton"),
        "fused_series 1-D": of_series("fused_series"),
        **{f"{name} strided": of_map(name, stride=2) for name in ("auto", "dft_gemm", "dft_native", "torch_fft")},
        **{f"{name} strided 1-D": of_series(name, stride=2) for name in ("dft_gemm", "dft_native")},
        **{f"{name} masked": masked(name) for name in ("auto", "dft_gemm", "dft_native", "torch_fft", "dft_triton")},
        **{f"{name} masked": masked(name, frozen_modes, None) for name in ("dft_gemm_frozen", "dft_native_frozen")},
        "dft_gemm by mask": masked("dft_gemm", modes=None),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a line per path."""
    parser = argparse.ArgumentParser(prog="python -m spectralbench.host", description=__doc__)
    parser.add_argument("--only", action="append", metavar="PATH", help="of these paths; may be repeated")
    parser.add_argument("--samples", type=int, default=SAMPLES, metavar="N", help=f"default {SAMPLES}")
    asked = parser.parse_args(arguments)
    known = paths()
    for name in asked.only or ():
        if name not in known:
            parser.error(f"unknown path {name!r}; known: {', '.join(known)}")
    if asked.samples < 1:
        parser.error(f"--samples must be at least 1, got {asked.samples}")
    torch.set_num_threads(1)
    print(
        f"{'path':22}{'call us':>9}{'torch us':>10}{'host us':>9}{'floor':>7}{'torch ops':>11}{'calls':>7}{'files':>7}"
    )
    dispatched = 1e6 * empty_operator(asked.samples)
    for name in asked.only or known:
        found = host_time(known[name], asked.samples)
        call, alone = 1e6 * min(found.calls), 1e6 * min(found.operations)
        calls, files = steps(known[name])
        times = f"{call:9.1f}{alone:10.1f}{call - alone:9.1f}{dispatched * found.operators:7.1f}"
        print(f"{name:22}{times}{found.count:11}{calls:7}{files:7}", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
