"""Clocks: the CPU's arithmetic on a fake counter, the CUDA clock's logic on a fake device, the fake clock itself."""

from __future__ import annotations

import gc
import threading
import time
from typing import Any

import pytest
import torch
from fake_cuda import FakeCuda, FakeFlush
from toy_operation import case, implementation, measure, product, toy

from spectralbench import calls
from spectralbench.clock import CpuClock, CudaClock, FakeClock, capture, clock_for, cpu_seconds_clock
from spectralbench.outcome import Failed, Measured, Skipped
from spectralkernels.errors import RangeError, Unsupported


class Ticker:
    """A counter that only moves when told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.nanoseconds = 0
        monkeypatch.setattr(time, "perf_counter_ns", lambda: self.nanoseconds)

    def run(self, cost: int) -> Any:
        def call() -> None:
            self.nanoseconds += cost

        return call


def test_cpu_time_is_seconds_per_call(monkeypatch: pytest.MonkeyPatch) -> None:
    ticker = Ticker(monkeypatch)
    assert CpuClock().time(ticker.run(2500), number=4) == pytest.approx(2.5e-6)


@pytest.mark.parametrize("cost", [0, 7, 900, 40_000, 5_000_000])
def test_cpu_calibration_makes_a_sample_long_enough(cost: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ticker = Ticker(monkeypatch)
    clock = CpuClock(min_sample=1e-4)
    if cost == 0:
        ticker.run(0)
        cost = 1
    number = clock.calibrate(ticker.run(cost))
    assert number * cost >= 100_000
    assert number * cost <= max(2 * 100_000 * 1.2, cost)


def test_a_slow_call_is_its_own_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    ticker = Ticker(monkeypatch)
    calls = []
    assert CpuClock().calibrate(lambda: calls.append(ticker.run(10**9)())) == 1
    assert len(calls) == 1


def test_the_cpu_clock_takes_real_time() -> None:
    clock = CpuClock()
    assert (clock.cache, clock.launch, clock.exposed(lambda: None)) == ("warm", "eager", False)
    before = clock.now()
    assert 0 < clock.time(lambda: sum(range(1000)), 10) <= clock.now() - before


def test_clocks_are_found_by_device() -> None:
    assert isinstance(clock_for("cpu"), CpuClock)
    with pytest.raises(RangeError, match="unknown device 'tpu'; known: cpu, cuda"):
        clock_for("tpu")
    with pytest.raises(RangeError, match="a CPU is timed with cache='warm', launch='eager'; got cache='cold'"):
        clock_for("cpu", cache="cold")


def test_no_cuda_clock_without_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Unsupported, match="torch finds no CUDA device"):
        clock_for("cuda")
    with pytest.raises(RangeError, match="knows warm and cold, got 'tepid'"):
        CudaClock(cache="tepid")


def test_the_fake_clock_repeats_its_durations_and_runs_what_it_is_given() -> None:
    ran = []

    class Named:
        name = "a"

        def __call__(self) -> None:
            ran.append(self.name)

    clock = FakeClock({"a": (1.0, 2.0)})
    assert [clock.time(Named(), 2) for _ in range(3)] == [1.0, 2.0, 1.0]
    assert len(ran) == 6
    assert clock.now() == 8.0
    assert clock.calls == ["a"] * 3
    assert FakeClock(0.5).time(lambda: None, 1) == 0.5


def clock_on(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, **options: str) -> CudaClock:
    cuda.install(monkeypatch)
    clock = CudaClock(device="cpu", **options)
    assert clock._flush_buffer().numel() == 2 * 1024, "twice the device's L2 cache"
    clock._flush = FakeFlush(cuda)  # type: ignore[assignment]
    return clock


def test_a_warm_sample_is_queued_behind_a_spin_between_two_events(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(cost=1e-5)
    clock = clock_on(cuda, monkeypatch, cache="warm")
    assert clock.time(cuda.call, 3) == pytest.approx(1e-5)
    assert cuda.log == ["spin", "event", "call", "call", "call", "event", "synchronize"]
    assert not clock.exposed(cuda.call)


def test_a_cold_sample_flushes_before_every_call_and_leaves_the_flush_out(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(cost=1e-5)
    clock = clock_on(cuda, monkeypatch, cache="cold")
    assert clock.time(cuda.call, 2) == pytest.approx(1e-5)
    assert cuda.log == ["spin", *["flush", "event", "call", "event"] * 2, "synchronize"]


def test_a_slow_host_makes_the_spin_longer_until_it_hides_the_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(cost=1e-6, host=1e-3)
    clock = clock_on(cuda, monkeypatch, cache="warm")
    call = cuda.call
    assert clock.time(call, 5) == pytest.approx(1e-6), "launch gaps of 1 ms would show"
    spins = cuda.log.count("spin")
    assert spins > 1
    assert clock.time(call, 5) == pytest.approx(1e-6)
    assert cuda.log.count("spin") == spins + 1, "the length that worked is remembered"


def test_a_call_that_waits_for_the_device_is_timed_with_its_gaps_and_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(cost=1e-5, host=1e-6)
    clock = clock_on(cuda, monkeypatch, cache="warm")

    def waits() -> None:
        cuda.call()
        torch.cuda.synchronize()
        cuda.host_now += 4e-5

    assert clock.time(waits, 2) == pytest.approx((2 * 1e-5 + 2 * 4e-5) / 2, rel=0.1)
    assert clock.exposed(waits)
    spins = cuda.log.count("spin")
    clock.time(waits, 2)
    assert cuda.log.count("spin") == spins, "no further attempt is made"


CAPTURE = ["side stream", *["call"] * 3, "synchronize", "capture"]


def test_a_graph_is_captured_once_and_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(cost=1e-6)
    clock = clock_on(cuda, monkeypatch, cache="warm", launch="graph")
    call = cuda.call
    assert clock.time(call, 4) == pytest.approx(1e-6), "the launch of the graph lies before the first event"
    assert cuda.log == [*CAPTURE, "event", *["call"] * 4, "event", "replay", "synchronize"]
    clock.time(call, 4)
    assert cuda.log.count("call") == 7 and not clock.exposed(call)


def test_a_cold_graph_holds_the_flushes_and_the_events_of_its_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(cost=1e-6)
    clock = clock_on(cuda, monkeypatch, cache="cold", launch="graph")
    call = cuda.call
    assert clock.time(call, 2) == pytest.approx(1e-6), "neither the flushes nor a launch"
    assert cuda.log[len(CAPTURE) :] == [*["flush", "event", "call", "event"] * 2, "replay", "synchronize"]
    cuda.log.clear()
    assert clock.time(call, 2) == pytest.approx(1e-6)
    assert cuda.log == ["replay", "synchronize"]


def test_warm_up_and_capture_share_a_side_stream_that_the_main_stream_waits_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cuda = FakeCuda().install(monkeypatch)
    streams = []
    was_enabled = []

    def run() -> None:
        streams.append(cuda.current)
        was_enabled.append((cuda.capturing, gc.isenabled()))

    capture(run, lambda: [run() for _ in range(2)], torch.cuda.Stream())
    side = streams[0]
    assert side is not cuda.main and streams == [side] * 5
    assert cuda.waits == [(side, cuda.main), (cuda.main, side)]
    assert was_enabled[3:] == [(True, False)] * 2, "no garbage collection while work is captured"
    assert gc.isenabled() and cuda.current is cuda.main


def test_a_training_step_is_captured_with_gradients_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call makes its gradients anew and accumulates none, so that a replay writes them and adds to nothing."""
    cuda = FakeCuda().install(monkeypatch)
    operation = toy(implementation("plain"))
    inputs = operation.make_inputs(case(), "cpu")
    question = calls.ask(operation, case(), "cpu", "both", inputs)
    bound = calls.bind(question, operation.implementation("plain"))
    seen = []

    def run() -> None:
        bound.run()
        seen.append((cuda.capturing, bound.run.latest.gradients["x"]))

    capture(run, lambda: [run() for _ in range(2)], torch.cuda.Stream())
    assert [captured for captured, _ in seen] == [False] * 3 + [True] * 2
    assert len({gradient.data_ptr() for _, gradient in seen}) == 5
    assert all(torch.equal(gradient, seen[0][1]) for _, gradient in seen)
    assert inputs["x"].grad is None and calls.fault(question, bound) is None


@pytest.mark.slow
def test_what_cannot_be_captured_is_unsupported_but_out_of_memory_stays_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    clock = clock_on(cuda, monkeypatch, cache="warm", launch="graph")

    def fails(error: Exception, broken: bool = False) -> Any:
        def call() -> None:
            if cuda.capturing:
                cuda.broken = broken
                raise error

        return call

    with pytest.raises(Unsupported, match="cannot be captured in a CUDA graph: operation not permitted"):
        clock.time(fails(RuntimeError("operation not permitted when stream is capturing")), 1)
    with pytest.raises(Unsupported, match="cannot be captured in a CUDA graph: operation not permitted"):
        clock.time(fails(RuntimeError("operation not permitted when stream is capturing\nmore"), broken=True), 1)
    assert cuda.current is cuda.main, "the end of a broken capture leaves its own stream behind"
    assert clock.damaged, "torch's allocator does not survive it, so its process is replaced"
    cuda.broken = False
    with pytest.raises(torch.OutOfMemoryError):
        clock.time(fails(torch.OutOfMemoryError("CUDA out of memory")), 1)
    assert gc.isenabled()


def test_what_waits_for_the_device_is_found_before_it_breaks_a_capture(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    clock = clock_on(cuda, monkeypatch, cache="warm", launch="graph")
    with pytest.raises(Unsupported, match="cannot be captured in a CUDA graph: called a synchronizing CUDA operation"):
        clock.time(cuda.item, 1)
    assert "capture" not in cuda.log and not clock.damaged and cuda.sync_mode == 0

    def wrong() -> None:
        if cuda.sync_mode == 2:
            raise RuntimeError("sizes do not match")

    with pytest.raises(RuntimeError, match="sizes do not match"):
        clock.time(wrong, 1)
    assert cuda.sync_mode == 0 and clock.time(cuda.call, 1) == pytest.approx(1e-5)


@pytest.mark.slow
def test_a_case_that_cannot_be_captured_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    clock = clock_on(cuda, monkeypatch, cache="warm", launch="graph")

    def waits(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        if cuda.capturing:
            raise RuntimeError("operation not permitted when stream is capturing")
        cuda.call()
        return product(x, w)

    def queues(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        cuda.call()
        answer = product(x, w)
        if cuda.capturing:
            cuda.replayed.append(lambda: answer.copy_(product(x, w)))
        return answer

    found = measure(implementation("waits", waits), implementation("queues", queues), clock=clock)
    assert found["waits"] == Skipped(
        "cannot be captured in a CUDA graph: operation not permitted when stream is capturing"
    )
    left = found["queues"]  # its capture would meet an allocator that the broken one left damaged
    assert isinstance(left, Failed) and left.innocent and "measure it again in a new process" in left.error
    anew = clock_on(cuda, monkeypatch, cache="warm", launch="graph")
    assert isinstance(measure(implementation("queues", queues), clock=anew)["queues"], Measured)


@pytest.mark.parametrize(("cost", "number"), [(1e-3, 1), (1e-5, 20), (1e-7, 50)])
def test_cuda_calibration_fills_a_sample_within_bounds(
    cost: float, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = FakeCuda(cost=cost)
    assert clock_on(cuda, monkeypatch, cache="warm").calibrate(cuda.call) == number


@pytest.mark.cuda
@pytest.mark.parametrize("launch", ["eager", "graph"])
@pytest.mark.parametrize("cache", ["warm", "cold"])
def test_a_real_device_is_timed(cache: str, launch: str) -> None:
    clock = CudaClock(cache=cache, launch=launch)
    x = torch.randn(1 << 22, device="cuda")
    out = torch.empty_like(x)

    def run() -> None:
        torch.add(x, 1.0, out=out)

    number = clock.calibrate(run)
    seconds = clock.time(run, number)
    # 32 MiB cross memory; no device moves 50 TB/s, and none needs a millisecond.
    assert 2 * x.nbytes / 50e12 < seconds < 1e-3
    assert not clock.exposed(run)


def test_cpu_seconds_leave_out_waiting_and_count_every_thread() -> None:
    clock = clock_for("cpu"), cpu_seconds_clock("cpu")

    def work() -> None:
        end = time.process_time() + 0.02
        while time.process_time() < end:
            pass

    def elsewhere() -> None:
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()

    wall, cpu = (one.time(lambda: time.sleep(0.05), 2) for one in clock)
    assert cpu < 0.025 < 0.05 <= wall
    assert clock[1].time(elsewhere, 2) >= 0.02
    with pytest.raises(RangeError, match="CPU seconds say nothing of work on cuda"):
        cpu_seconds_clock("cuda")
