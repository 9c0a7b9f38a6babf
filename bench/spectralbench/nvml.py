"""NVML: the GPU as the driver sees it, matched to torch's device by UUID, and a thread that samples it.

Indices of NVML and CUDA differ under CUDA_VISIBLE_DEVICES, so nothing here goes by index. Bindings differ by age: old
ones take and give bytes, or lack a function. Whatever one of them raises is a reason, never the end of a run.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, TypeVar

import torch

from spectralkernels.errors import Unsupported

Reading = TypeVar("Reading")

PERIOD = 2e-3
SECONDS = 0.3
MIN_READINGS = 10
# NVML counts in chunks of the driver; smaller growth may be served from one already taken.
VISIBLE_GROWTH = 4 << 20


@dataclass(frozen=True, slots=True)
class Device:
    """One GPU as NVML knows it; every reading that the driver refuses raises Unsupported.

    name: by which it was found, `GPU-<uuid>` or, for an instance of a divided one, `MIG-<uuid>`.
    """

    library: Any
    handle: Any
    name: str = ""

    @classmethod
    def current(cls) -> Device:
        """torch's current CUDA device, a whole GPU or an instance of a divided one (MIG); Unsupported says why there is
        no NVML, or no such device in it."""
        library = load()
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        uuid = getattr(properties, "uuid", None)
        if uuid is None:
            raise Unsupported(f"no NVML: torch {torch.__version__} does not tell the UUID of its device")
        names, reasons = (f"GPU-{uuid}", f"MIG-{uuid}"), []
        for asked, name in (*zip(names, names, strict=True), *((name.encode(), name) for name in names)):
            try:
                return cls(library, ask(library, "nvmlDeviceGetHandleByUUID", asked), name)
            except Unsupported as error:
                reasons.append(str(error))
        why = "; ".join(dict.fromkeys(reasons))
        raise Unsupported(f"no NVML: it does not know torch's device as {' or '.join(names)} ({why})")

    def used_bytes(self) -> int:
        return int(self._read("nvmlDeviceGetMemoryInfo").used)

    def process_bytes(self) -> int:
        for process in self._read("nvmlDeviceGetComputeRunningProcesses"):
            if process.pid == os.getpid() and process.usedGpuMemory is not None:
                return int(process.usedGpuMemory)
        raise Unsupported("NVML does not report this process's memory (in containers the driver often cannot)")

    def utilisation(self) -> tuple[float, float, float]:
        """Percent of the driver's last window (1/6 s to 1 s) in which a kernel ran, and in which the memory was busy;
        and percent of the memory that is taken."""
        rates, memory = self._read("nvmlDeviceGetUtilizationRates"), self._read("nvmlDeviceGetMemoryInfo")
        return float(rates.gpu), float(rates.memory), 100.0 * memory.used / memory.total

    def joules(self) -> float:
        return float(self._read("nvmlDeviceGetTotalEnergyConsumption")) * 1e-3

    def throttle_reasons(self) -> int | None:
        """Why the clocks are lower than asked for, as nvml.h's bits; None where the driver does not tell."""
        found = self._tell("nvmlDeviceGetCurrentClocksThrottleReasons", self.handle)
        return found if isinstance(found, int) else None

    def clocks_mhz(self) -> dict[str, float]:
        """The clocks of now, of those that the driver tells."""
        kinds = {"sm_clock": SM_CLOCK, "memory_clock": MEMORY_CLOCK}
        found = {name: self._tell("nvmlDeviceGetClockInfo", self.handle, kind) for name, kind in kinds.items()}
        return {name: float(value) for name, value in found.items() if isinstance(value, int)}

    def facts(self) -> dict[str, object]:
        """Driver and clocks for an environment, fit for JSON; what this driver does not tell is None."""
        facts: dict[str, object] = {"driver": self._tell("nvmlSystemGetDriverVersion")}
        for name, kind in {"sm": SM_CLOCK, "memory": MEMORY_CLOCK}.items():
            facts[f"gpu_{name}_clock_mhz"] = self._tell("nvmlDeviceGetClockInfo", self.handle, kind)
            facts[f"gpu_{name}_clock_max_mhz"] = self._tell("nvmlDeviceGetMaxClockInfo", self.handle, kind)
        facts["gpu_power_limit_mw"] = self._tell("nvmlDeviceGetEnforcedPowerLimit", self.handle)
        facts["gpu_temperature_c"] = self._tell("nvmlDeviceGetTemperature", self.handle, 0)
        facts["gpu_throttle_reasons"] = self._tell("nvmlDeviceGetCurrentClocksThrottleReasons", self.handle)
        return facts

    def _tell(self, name: str, *arguments: Any) -> object:
        try:
            found = ask(self.library, name, *arguments)
        except Unsupported:
            return None
        return found.decode(errors="replace") if isinstance(found, bytes) else found

    def _read(self, name: str) -> Any:
        return ask(self.library, name, self.handle)


SM_CLOCK, MEMORY_CLOCK = 1, 2
"""nvmlClockType_t of nvml.h."""


def ask(library: Any, name: str, *arguments: Any) -> Any:
    """The binding's answer to one question; Unsupported with the question and what was raised instead of an answer."""
    try:
        return getattr(library, name)(*arguments)
    except Exception as error:  # each age of the binding has its own: NVMLError, TypeError of bytes, AttributeError
        raise Unsupported(f"NVML: {name}: {str(error) or type(error).__name__}") from error


def load() -> Any:
    """The initialised NVML binding; Unsupported("no NVML: ...") where it or the driver is missing."""
    try:
        import pynvml
    except ImportError as error:
        raise Unsupported("no NVML: nvidia-ml-py is not installed (pip install 'spectralbench[gpu]')") from error
    try:
        ask(pynvml, "nvmlInit")
    except Unsupported as error:
        raise Unsupported(f"no {error}") from error
    return pynvml


class Sampler(Generic[Reading]):
    """A thread that reads a value every `period` seconds inside a `with` block.

    readings: all of them. refreshes: how often the value differed from the one before, plus one: a value that the
    driver refreshes rarely is read often and still known rarely. A failing reading ends the thread and is raised at the
    end.
    """

    def __init__(self, read: Callable[[], Reading], period: float = PERIOD) -> None:
        self.readings: list[Reading] = []
        self._read = read
        self._period = period
        self._stop = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._loop, name="nvml-sampler", daemon=True)

    @property
    def refreshes(self) -> int:
        changes = sum(before != after for before, after in zip(self.readings, self.readings[1:], strict=False))
        return changes + bool(self.readings)

    def __enter__(self) -> Sampler[Reading]:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        if error is None and self._error is not None:
            raise self._error

    def _loop(self) -> None:
        while True:
            try:
                self.readings.append(self._read())
            except Exception as error:  # raised again in the thread that asked
                self._error = error
                return
            if self._stop.wait(self._period):
                return


def peak_over_baseline(run: Callable[[], object], read: Callable[[], float], seconds: float = SECONDS) -> float:
    """Largest reading while `run` is repeated for `seconds`, less the reading before, in bytes.

    Caches of the allocator and of cuFFT plans are emptied first, so that what a call needs must be taken again.
    Unsupported if fewer than MIN_READINGS were read, or if NVML stood still while torch took memory (a stale counter,
    or another GPU's).
    """
    torch.cuda.synchronize()
    gc.collect()
    torch.backends.cuda.cufft_plan_cache.clear()
    torch.cuda.empty_cache()
    reserved = torch.cuda.memory_reserved()
    before = read()
    with Sampler(read) as sampler:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            run()
            torch.cuda.synchronize()
    if len(sampler.readings) < MIN_READINGS:
        raise Unsupported(f"NVML gave {len(sampler.readings)} readings in {seconds:g} s, fewer than {MIN_READINGS}")
    grown = torch.cuda.memory_reserved() - reserved
    if sampler.refreshes == 1 and sampler.readings[0] == before and grown >= VISIBLE_GROWTH:
        raise Unsupported(
            f"NVML stood still through {len(sampler.readings)} readings while torch took {grown} bytes: "
            "a stale counter, or another GPU's"
        )
    return float(max(0.0, max(sampler.readings) - before))
