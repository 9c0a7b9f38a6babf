"""NVML: the right device, clean reasons, readings that are refused, and energy between two ticks."""

from __future__ import annotations

import builtins
import json
import os
import re
import sys
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fake_cuda import FakeAllocator

from spectralbench import nvml
from spectralbench.metrics import Unavailable, energy
from spectralkernels.errors import Unsupported


class FakeNvml:
    """The part of pynvml that is used."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM, NVML_CLOCK_MEM = 1, 2

    def __init__(self, **answers: Any) -> None:
        self.answers = answers

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def answer(*arguments: Any) -> Any:
            if name not in self.answers:
                raise self.NVMLError("Not Supported")
            found = self.answers[name]
            return found(*arguments) if callable(found) else found

        return answer


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(uuid="11111111-2222", name="NVIDIA H200")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)


def test_t36_nvml_is_matched_by_uuid(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def handle(uuid: str) -> str:
        if uuid != "GPU-11111111-2222":
            raise FakeNvml.NVMLError("Not Found")
        return "the handle"

    library = FakeNvml(nvmlInit=None, nvmlDeviceGetHandleByUUID=handle)
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert nvml.Device.current().handle == "the handle"
    library.answers["nvmlDeviceGetHandleByUUID"] = lambda uuid: handle("another")
    why = "as GPU-11111111-2222 or MIG-11111111-2222 (NVML: nvmlDeviceGetHandleByUUID: Not Found)"
    with pytest.raises(Unsupported, match=re.escape(f"no NVML: it does not know torch's device {why}")):
        nvml.Device.current()


@pytest.mark.parametrize("prefix", ["GPU", "MIG"])
@pytest.mark.parametrize("takes", [str, bytes])
def test_a_device_is_found_whole_or_divided_by_bindings_of_any_age(
    gpu: None, monkeypatch: pytest.MonkeyPatch, prefix: str, takes: type
) -> None:
    """Old bindings pass their argument on to C as it is, which refuses a str with a TypeError."""

    def handle(uuid: str | bytes) -> str:
        if not isinstance(uuid, takes):
            raise TypeError("bytes or integer address expected instead of str instance")
        if uuid not in (f"{prefix}-11111111-2222", f"{prefix}-11111111-2222".encode()):
            raise FakeNvml.NVMLError("Not Found")
        return "the handle"

    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(nvmlInit=None, nvmlDeviceGetHandleByUUID=handle))
    found = nvml.Device.current()
    assert (found.handle, found.name) == ("the handle", f"{prefix}-11111111-2222")


def test_a_torch_that_tells_no_uuid_is_a_clean_reason(gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(nvmlInit=None))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(name="a GPU"))
    with pytest.raises(Unsupported, match=r"no NVML: torch .* does not tell the UUID"):
        nvml.Device.current()


@pytest.mark.parametrize("error", [TypeError("bytes expected"), AttributeError(), ValueError("a struct"), OSError(1)])
def test_whatever_a_binding_raises_is_a_reason(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        NVMLError = FakeNvml.NVMLError

        def __getattr__(self, name: str) -> Any:
            raise error

    device = nvml.Device(Broken(), "handle")
    for read in (device.used_bytes, device.process_bytes, device.joules):
        with pytest.raises(Unsupported, match=f"^NVML: nvmlDevice.*: {re.escape(str(error)) or 'AttributeError'}$"):
            read()
    assert set(device.facts().values()) == {None}
    monkeypatch.setitem(sys.modules, "pynvml", Broken())
    with pytest.raises(Unsupported, match=r"^no NVML: nvmlInit: "):
        nvml.load()


def test_missing_nvml_is_a_clean_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    with pytest.raises(Unsupported, match=r"^no NVML: nvmlInit: Not Supported$"):
        nvml.load()
    real = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name == "pynvml":
            raise ImportError(name)
        return real(name, *arguments)

    monkeypatch.delitem(sys.modules, "pynvml")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(Unsupported, match=r"no NVML: nvidia-ml-py is not installed \(pip install"):
        nvml.load()


def test_readings_of_nvml_are_bytes_and_joules_or_reasons() -> None:
    processes = [SimpleNamespace(pid=1, usedGpuMemory=7), SimpleNamespace(pid=os.getpid(), usedGpuMemory=99)]
    device = nvml.Device(
        FakeNvml(
            nvmlDeviceGetMemoryInfo=SimpleNamespace(used=123, total=246),
            nvmlDeviceGetComputeRunningProcesses=processes,
            nvmlDeviceGetTotalEnergyConsumption=1500,
            nvmlDeviceGetUtilizationRates=SimpleNamespace(gpu=87, memory=20),
        ),
        "handle",
    )
    assert device.utilisation() == (87.0, 20.0, 50.0)
    assert (device.used_bytes(), device.process_bytes(), device.joules()) == (123, 99, 1.5)
    processes.pop()
    with pytest.raises(Unsupported, match="does not report this process's memory"):
        device.process_bytes()
    with pytest.raises(Unsupported, match="NVML: nvmlDeviceGetMemoryInfo: Not Supported"):
        nvml.Device(FakeNvml(), "handle").used_bytes()


@pytest.mark.parametrize("version", ["580.1", b"580.1"], ids=["str", "bytes"])
def test_what_the_driver_does_not_tell_is_none(version: str | bytes) -> None:
    facts = nvml.Device(FakeNvml(nvmlSystemGetDriverVersion=version, nvmlDeviceGetClockInfo=1980), "handle").facts()
    assert facts["driver"] == "580.1"
    assert json.loads(json.dumps(facts)) == facts
    assert facts["gpu_sm_clock_mhz"] == facts["gpu_memory_clock_mhz"] == 1980
    assert facts["gpu_power_limit_mw"] is None


def test_t35_the_sampler_counts_refreshes_not_readings() -> None:
    values = iter([5.0, 5.0, 7.0, 7.0, 7.0, 6.0])
    done = threading.Event()

    def read() -> float:
        value = next(values)
        if value == 6.0:
            done.set()
        return value

    with nvml.Sampler(read, period=1e-4) as sampler:
        done.wait(10)
        sampler._stop.set()
        sampler._thread.join()
    assert sampler.readings == [5.0, 5.0, 7.0, 7.0, 7.0, 6.0]
    assert sampler.refreshes == 3
    assert nvml.Sampler(read).refreshes == 0


def test_an_error_of_the_sampler_reaches_the_one_who_asked() -> None:
    def read() -> float:
        raise Unsupported("NVML: gone")

    with pytest.raises(Unsupported, match="NVML: gone"), nvml.Sampler(read) as sampler:
        sampler._thread.join()


@pytest.fixture
def quick_cuda(monkeypatch: pytest.MonkeyPatch) -> FakeAllocator:
    monkeypatch.setattr(torch.backends.cuda, "cufft_plan_cache", SimpleNamespace(clear=lambda: None))
    monkeypatch.setattr(nvml, "PERIOD", 1e-4)
    return FakeAllocator(monkeypatch)


def sampled(sampler_reads: int) -> tuple[Callable[[], None], Callable[[float], Callable[[], float]]]:
    """A run that lasts until enough readings were taken, and a maker of readers."""
    enough = threading.Event()
    count = [0]

    def reader(value: float) -> Callable[[], float]:
        def read() -> float:
            count[0] += 1
            if count[0] > sampler_reads:
                enough.set()
            return 1000.0 if count[0] == 1 else value

        return read

    return lambda: bool(enough.wait(10)) and None, reader


def test_t34_nvml_memory_is_the_peak_over_the_idle_reading(quick_cuda: FakeAllocator) -> None:
    run, reader = sampled(nvml.MIN_READINGS + 1)
    assert nvml.peak_over_baseline(run, reader(1700.0), seconds=1e-3) == 700.0


def test_t35_too_few_readings_are_no_measurement(quick_cuda: FakeAllocator) -> None:
    with pytest.raises(Unsupported, match=r"NVML gave \d readings in 0 s, fewer than 10"):
        nvml.peak_over_baseline(lambda: None, lambda: 1.0, seconds=0.0)


def test_t36_a_counter_that_stands_still_while_memory_is_taken_is_refused(quick_cuda: FakeAllocator) -> None:
    run, reader = sampled(nvml.MIN_READINGS + 1)

    def takes() -> None:
        run()
        quick_cuda.now = 1000 + (8 << 20)

    with pytest.raises(Unsupported, match=r"NVML stood still .* a stale counter, or another GPU's"):
        nvml.peak_over_baseline(takes, reader(1000.0), seconds=1e-3)


def test_energy_is_shared_out_between_two_ticks_of_the_counter() -> None:
    state = {"now": 0.0}

    def batch() -> int:
        state["now"] += 0.03
        return 5

    # 400 W, seen through a counter that ticks every 0.1 s: the ticks lie a whole number of batches apart.
    def joules() -> float:
        return 400.0 * 0.1 * int(state["now"] / 0.1 + 1e-9)

    found = energy.joules_per_call(batch, joules, seconds=3.0, now=lambda: state["now"])
    assert found == pytest.approx(400.0 * 0.03 / 5, rel=0.05)


def test_an_energy_counter_that_does_not_move_is_refused() -> None:
    state = {"now": 0.0}

    def batch() -> int:
        state["now"] += 0.1
        return 1

    with pytest.raises(Unavailable, match="did not move in 2 s of work"):
        energy.joules_per_call(batch, lambda: 1.0, seconds=1.0, now=lambda: state["now"])
