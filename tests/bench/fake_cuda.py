"""Stands for torch.cuda where there is none: its memory counters, and a stream in host time."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch


class FakeAllocator:
    """torch.cuda's memory counters."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000
        self.peak = 5000
        for name, value in {
            "synchronize": lambda: None,
            "empty_cache": lambda: None,
            "reset_peak_memory_stats": self.reset,
            "memory_allocated": lambda: self.now,
            "memory_reserved": lambda: self.now,
            "max_memory_allocated": lambda: self.peak,
            "max_memory_reserved": lambda: self.peak,
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)

    def reset(self) -> None:
        self.peak = self.now

    def call(self) -> None:
        self.peak = max(self.peak, self.now + 300)


class FakeCuda:
    """A CUDA stream in host time: work is queued at once, and runs when the device gets to it.

    host: seconds of host time per queued item. A call takes `cost` seconds on the device, a flush `flush` seconds.
    """

    def __init__(self, cost: float = 1e-5, flush: float = 5e-5, host: float = 1e-6, cycles: float = 1e9) -> None:
        self.host_now = 0.0
        self.device_free = 0.0
        self.cost = cost
        self.flush = flush
        self.host = host
        self.cycles = cycles
        self.launch = 2e-6
        self.log: list[str] = []
        self.capturing = False
        self.captured: list[tuple[float, Any]] = []
        self.replayed: list[Callable[[], object]] = []
        self.sync_mode = 0
        self.broken = False
        self.main: Any = None
        self.current: Any = None
        self.waits: list[tuple[Any, Any]] = []

    def queue(self, kind: str, seconds: float, event: Any = None) -> None:
        self.log.append(kind)
        self.host_now += self.host
        if self.capturing:
            self.captured.append((seconds, event))
        else:
            self.device_free = max(self.device_free, self.host_now) + seconds

    def install(self, monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
        outer = self

        class Event:
            def __init__(self, enable_timing: bool, external: bool) -> None:
                assert enable_timing
                self.at = 0.0
                self.external = external

            def record(self) -> None:
                assert self.external == outer.capturing, "an event inside a graph is a node of it"
                outer.queue("event", 0.0, self)
                self.at = outer.device_free

            def query(self) -> bool:
                return outer.host_now >= self.at

            def elapsed_time(self, end: Event) -> float:
                return (end.at - self.at) * 1e3

        class Graph:
            def __init__(self) -> None:
                self.work: list[tuple[float, Any]] = []

            def replay(self) -> None:
                outer.queue("replay", outer.launch)
                for write in outer.replayed:
                    write()
                for seconds, event in self.work:
                    outer.device_free += seconds
                    if event is not None:
                        event.at = outer.device_free

        class Stream:
            def wait_stream(self, other: Stream) -> None:
                outer.waits.append((self, other))

        class Capture:
            """As torch.cuda.graph: a broken capture raises at its end and leaves its stream the current one."""

            def __init__(self, graph: Graph, stream: Stream) -> None:
                self.graph = graph
                self.stream = stream

            def __enter__(self) -> None:
                outer.log.append("capture")
                outer.current = self.stream
                outer.capturing, outer.captured = True, self.graph.work

            def __exit__(self, kind: object, *_: object) -> None:
                outer.capturing = False
                if outer.broken:
                    raise RuntimeError("operation failed due to a previous error during capture")
                outer.current = outer.main

        class Here:
            def __init__(self, stream: Stream) -> None:
                self.stream = stream

            def __enter__(self) -> None:
                outer.log.append("side stream")
                self.before, outer.current = outer.current, self.stream

            def __exit__(self, *_: object) -> None:
                outer.current = self.before

        def set_stream(stream: Stream) -> None:
            outer.current = stream

        self.main = self.current = Stream()
        for name, value in {
            "is_available": lambda: True,
            "Event": Event,
            "CUDAGraph": Graph,
            "graph": Capture,
            "Stream": Stream,
            "stream": Here,
            "current_stream": lambda: self.current,
            "set_stream": set_stream,
            "current_device": lambda: 0,
            "synchronize": self.synchronize,
            "get_sync_debug_mode": lambda: self.sync_mode,
            "set_sync_debug_mode": self.set_sync_mode,
            "_sleep": lambda cycles: self.queue("spin", cycles / self.cycles),
            "get_device_properties": lambda device: SimpleNamespace(L2_cache_size=1024),
        }.items():
            monkeypatch.setattr(torch.cuda, name, value)
        return self

    def set_sync_mode(self, mode: int | str) -> None:
        self.sync_mode = {"error": 2}.get(mode, mode) if isinstance(mode, str) else mode

    def item(self) -> None:
        """What waits for the device, as torch's `item` does."""
        if self.sync_mode == 2:
            raise RuntimeError("called a synchronizing CUDA operation")
        if self.capturing:
            self.broken = True
            raise RuntimeError("operation not permitted when stream is capturing")
        self.synchronize()

    def synchronize(self) -> None:
        self.log.append("synchronize")
        self.host_now = max(self.host_now, self.device_free)

    def call(self) -> None:
        self.queue("call", self.cost)


class FakeFlush:
    """The flush buffer of a fake device."""

    def __init__(self, cuda: FakeCuda) -> None:
        self.cuda = cuda

    def zero_(self) -> None:
        self.cuda.queue("flush", self.cuda.flush)
