"""Clocks: how long one call takes, on the host, on a CUDA device, or as a test wants it.

A clock measures one sample at a time; what to time, in which order and how often is the business of `measure`. Whether
caches were warm and whether work was launched eagerly or replayed from a CUDA graph are facts of the clock, and part of
a record's identity.
"""

from __future__ import annotations

import itertools
import math
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from spectralbench.collector import no_garbage_collection
from spectralkernels.errors import RangeError, Unsupported

Cache = Literal["warm", "cold"]
Launch = Literal["eager", "graph"]
Work = Callable[[], object]


class Clock(Protocol):
    """What `measure` asks of a clock."""

    cache: str
    launch: str

    def time(self, run: Work, number: int) -> float:
        """Seconds per call over `number` back-to-back calls."""

    def calibrate(self, run: Work) -> int:
        """Calls per sample that make a sample long against the clock's resolution; warms `run` up on the way."""

    def now(self) -> float:
        """Seconds since some fixed moment, for budgets."""

    def exposed(self, run: Work) -> bool:
        """Whether samples of `run` contain gaps in which the device waited for the host."""


def usual_cache(device: str) -> Cache:
    """What every front end times with where nobody asks for more: cold on a GPU, whose caches hold whole cases."""
    return "cold" if device == "cuda" else "warm"


def clock_for(device: str, cache: str | None = None, launch: str = "eager") -> Clock:
    """The clock of "cpu" or "cuda", by default with the device's usual cache.

    Raises: RangeError on an unknown device, or on a cache or launch that it does not have.
    """
    cache = cache or usual_cache(device)
    if device == "cuda":
        return CudaClock(cache=cache, launch=launch)
    if device != "cpu":
        raise RangeError(f"unknown device {device!r}; known: cpu, cuda")
    if (cache, launch) != ("warm", "eager"):
        raise RangeError(f"a CPU is timed with cache='warm', launch='eager'; got cache={cache!r}, launch={launch!r}")
    return CpuClock()


def cpu_seconds_clock(device: str, cache: str | None = None, launch: str = "eager") -> Clock:
    """The clock of CPU seconds. Raises: RangeError on any device but a CPU."""
    clock_for("cpu", cache, launch)
    if device != "cpu":
        raise RangeError(f"CPU seconds say nothing of work on {device}")
    return CpuSecondsClock()


class CpuClock:
    """Wall clock of the host, for synchronous work.

    A sample lasts at least `min_sample` seconds: a thousand times the cost of reading the clock and looping, and short
    enough that a preempted sample spoils few calls.
    """

    cache = "warm"
    launch = "eager"

    def __init__(self, min_sample: float = 1e-3) -> None:
        self.min_sample = min_sample

    def time(self, run: Work, number: int) -> float:
        calls = itertools.repeat(None, number)
        start = self._nanoseconds()
        for _ in calls:
            run()
        return (self._nanoseconds() - start) * 1e-9 / number

    def calibrate(self, run: Work) -> int:
        number = 1
        while True:
            elapsed = self.time(run, number) * number
            if elapsed >= self.min_sample:
                return number
            # At most tenfold, because the first calls are slow and would promise too much.
            grown = math.ceil(number * 1.2 * self.min_sample / max(elapsed, 1e-9))
            number = min(max(grown, number + 1), 10 * number)

    def now(self) -> float:
        return self._nanoseconds() * 1e-9

    def exposed(self, run: Work) -> bool:
        return False

    def _nanoseconds(self) -> int:
        return time.perf_counter_ns()


class CpuSecondsClock(CpuClock):
    """CPU seconds of all threads of the process: what others take of a busy host's processors is in no sample.

    For one thread: several would wait for each other in loops that count.
    """

    def _nanoseconds(self) -> int:
        return time.process_time_ns()


class CudaClock:
    """CUDA events around work that was queued before the device could start it.

    Every eager sample first puts a kernel on the stream that only spins; the host queues flushes, events and calls
    behind it, so neither Python nor launches fall between two events. The sample is trusted if the first event had
    still not happened when the host was done; else the spin is doubled and the sample taken again. A call that waits
    for the device itself (`nonzero`, `item`) can never be queued ahead: once the spin reaches `MAX_SPIN` its samples
    are taken as they are, because every user pays for those gaps, and `exposed` says so.

    cache: "warm" times `number` calls between one pair of events; "cold" overwrites a buffer of twice the L2 cache
    before every call and gives each call its own pair.
    launch: "eager", or "graph": all calls of a sample are captured once in a CUDA graph and replayed, and where the
    cache is cold the flushes and events with them, so that no sample contains the launch of a graph; Unsupported if
    they cannot be captured. `damaged` says that a capture broke off: torch's allocator is then not fit for another.

    The spin is `torch.cuda._sleep`, PyTorch's own test kernel: private, but present in every release, and the only one
    that needs no compiler; its argument is in device cycles, which the doubling makes irrelevant.
    """

    MIN_SAMPLE = 2e-4  # Events resolve about half a microsecond.
    MAX_NUMBER = 50
    FIRST_SPIN = 1 << 20  # Cycles: about half a millisecond.
    MAX_SPIN = 1 << 28  # About 0.15 s, longer than any honest queueing of MAX_NUMBER calls.

    def __init__(self, cache: str = "cold", launch: str = "eager", device: str = "cuda") -> None:
        for value, known in ((cache, ("warm", "cold")), (launch, ("eager", "graph"))):
            if value not in known:
                raise RangeError(f"a CUDA clock knows {' and '.join(known)}, got {value!r}")
        if not torch.cuda.is_available():
            raise Unsupported("torch finds no CUDA device")
        self.cache = cache
        self.launch = launch
        self._device = device
        self._flush: torch.Tensor | None = None
        self._spins: weakref.WeakKeyDictionary[Work, int] = weakref.WeakKeyDictionary()
        self._exposed: weakref.WeakSet[Work] = weakref.WeakSet()
        self._graphs: weakref.WeakKeyDictionary[Work, dict[int, _Captured]] = weakref.WeakKeyDictionary()
        self._side: torch.cuda.Stream | None = None
        self.damaged = False

    def time(self, run: Work, number: int) -> float:
        if self.launch == "graph":
            captured = self._captured(run, number)
            captured.graph.replay()
            torch.cuda.synchronize()
            return _seconds(captured.pairs) / number
        while True:
            spin = 0 if run in self._exposed else self._spins.get(run, self.FIRST_SPIN)
            if spin:
                torch.cuda._sleep(spin)
            pairs = self._queue(run, number)
            queued_in_time = not pairs[0][0].query()
            # The whole device, not one stream: work on another stream must end before the next sample starts.
            torch.cuda.synchronize()
            if queued_in_time or spin == 0:
                return _seconds(pairs) / number
            self._spins[run] = 2 * spin
            if 2 * spin > self.MAX_SPIN:
                self._exposed.add(run)

    def calibrate(self, run: Work) -> int:
        self.time(run, 1)
        seconds = self.time(run, 1)
        return max(1, min(self.MAX_NUMBER, math.ceil(self.MIN_SAMPLE / max(seconds, 1e-9))))

    def now(self) -> float:
        return time.perf_counter()

    def exposed(self, run: Work) -> bool:
        return run in self._exposed

    def _queue(self, run: Work, number: int, external: bool = False) -> list[Pair]:
        """Queue a sample's calls with their events and flushes. external: the events are nodes of a graph."""
        pairs = [(_event(external), _event(external)) for _ in range(number if self.cache == "cold" else 1)]
        flush = self._flush_buffer() if self.cache == "cold" else None
        if flush is None:
            start, end = pairs[0]
            start.record()
            for _ in range(number):
                run()
            end.record()
        else:
            for start, end in pairs:
                flush.zero_()
                start.record()
                run()
                end.record()
        return pairs

    def _captured(self, run: Work, number: int) -> _Captured:
        graphs = self._graphs.setdefault(run, {})
        if number not in graphs:
            # One stream for every capture: libraries keep a workspace for each stream they have seen.
            self._side = self._side or torch.cuda.Stream()
            self._flush_buffer()
            pairs: list[Pair] = []
            try:
                graph = capture(run, lambda: pairs.extend(self._queue(run, number, external=True)), self._side)
            except CaptureBroken:
                self.damaged = True
                raise
            graphs[number] = _Captured(graph, pairs)
        return graphs[number]

    def _flush_buffer(self) -> torch.Tensor:
        if self._flush is None:
            size = 2 * torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
            self._flush = torch.empty(size, dtype=torch.int8, device=self._device)
        return self._flush


class FakeClock:
    """A clock for tests: it runs what it is given, once per call, and reports the durations it was told.

    durations: seconds per call; a number, a sequence that is repeated for ever, or either of them per `run.name`.
    calls: the names of the runs in the order they were timed.
    """

    def __init__(
        self,
        durations: float | Sequence[float] | Mapping[str, float | Sequence[float]] = 1e-3,
        *,
        cache: str = "warm",
        launch: str = "eager",
    ) -> None:
        self.cache = cache
        self.launch = launch
        self.calls: list[str] = []
        self._now = 0.0
        self._named: dict[str, Iterator[float]] = {}
        self._all: Iterator[float] | None = None
        if isinstance(durations, Mapping):
            self._named = {name: _cycle(value) for name, value in durations.items()}
        else:
            self._all = _cycle(durations)

    def time(self, run: Work, number: int) -> float:
        name = getattr(run, "name", "")
        for _ in range(number):
            run()
        duration = next(self._all or self._named[name])
        self.calls.append(name)
        self._now += duration * number
        return duration

    def calibrate(self, run: Work) -> int:
        run()
        return 1

    def now(self) -> float:
        return self._now

    def exposed(self, run: Work) -> bool:
        return False


Pair = tuple[Any, Any]
"""The events before and after what is timed."""


class CaptureBroken(Unsupported):
    """Work could not be captured, and was found out only inside the capture."""


@dataclass(frozen=True, slots=True)
class _Captured:
    """A graph of a whole sample, and its events."""

    graph: Any
    pairs: list[Pair]


def _seconds(pairs: Sequence[Pair]) -> float:
    return sum(start.elapsed_time(end) for start, end in pairs) * 1e-3


def _event(external: bool) -> Any:
    return torch.cuda.Event(enable_timing=True, external=external)


WARM_UP_CALLS = 3
"""What torch documents for a graph with a backward pass: after three calls every lazy allocation has been made."""


def capture(run: Work, sample: Work, side: torch.cuda.Stream) -> Any:
    """A CUDA graph of `sample`, some calls of `run`, as torch documents the capture of a whole training step.

    Work that waits for the device breaks a capture and leaves torch's allocator damaged, so the last call of the
    warm-up refuses to wait.
    Warm-up and capture share the stream `side`, so that workspaces of libraries exist before the capture and backward
    nodes belong to the captured stream. Gradients must come from `torch.autograd.grad` or start as None, so that they
    are allocated inside and every replay writes them anew. A replay overwrites the answer of the last captured call.
    Raises: Unsupported with the first reason if the work cannot be captured, CaptureBroken if only the capture showed
    it; torch.OutOfMemoryError as it is.
    """
    before = torch.cuda.current_stream()
    side.wait_stream(before)
    with torch.cuda.stream(side):
        for _ in range(WARM_UP_CALLS - 1):
            run()
        with _no_waiting():
            run()
    before.wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with no_garbage_collection(), torch.cuda.graph(graph, stream=side):
            sample()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise CaptureBroken(f"cannot be captured in a CUDA graph: {_first_cause(error)}") from error
    finally:
        # A capture that was broken off raises at its end, before torch has put the stream back.
        torch.cuda.set_stream(before)
    return graph


@contextmanager
def _no_waiting() -> Iterator[None]:
    """Refuse what waits for the device: Unsupported with torch's reason."""
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except RuntimeError as error:
        if "synchronizing" not in str(error):
            raise
        raise Unsupported(f"cannot be captured in a CUDA graph: {_first_cause(error)}") from error
    finally:
        torch.cuda.set_sync_debug_mode(mode)


def _first_cause(error: BaseException) -> str:
    """The first line of the error that broke the capture: the end of a broken capture raises another one over it."""
    while error.__context__ is not None:
        error = error.__context__
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _cycle(value: float | Sequence[float]) -> Iterator[float]:
    return itertools.cycle(value) if isinstance(value, Sequence) else itertools.repeat(float(value))
