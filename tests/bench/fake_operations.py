"""Operations without mathematics and a measuring core without a clock, for tests of the sweep and its worker.

Each implementation does to its process what its name says. Spawned workers import this module by name.
"""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from spectralbench import at_work
from spectralbench.failures import failure
from spectralbench.outcome import Failed, Measured, Measurement, Outcome, Skipped
from spectralbench.worker import Sources
from spectralkernels.declare import Block, Cost, Decision, Implementation, Operation, Tolerance
from spectralkernels.tuning import Site, noted_choices

SOURCES = Sources("fake_operations:load_operations", "fake_operations:measure_states", "fake_operations:clock_for")


def _plain(size: int, rate: float) -> float:
    return size * rate


def _crash(size: int, rate: float) -> float:
    os.kill(os.getpid(), signal.SIGSEGV)
    return 0.0


def _hang(size: int, rate: float) -> float:
    time.sleep(600)
    return 0.0


def _greedy(size: int, rate: float) -> float:
    raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4000000000000000 bytes.")


def _slow(size: int, rate: float) -> float:
    """Slow enough to be killed inside; leaves its process id where a test asks for it."""
    if "FAKE_PID_FILE" in os.environ:
        Path(os.environ["FAKE_PID_FILE"]).write_text(str(os.getpid()))
    time.sleep(0.3)
    return 0.0


def _talkative(size: int, rate: float) -> float:
    print("this is talk, not data")
    return 0.0


def _raises(size: int, rate: float) -> float:
    raise ValueError("size does not suit me")


class Spoiled(Exception):
    """The process is of no use any more."""


def _spoils(size: int, rate: float) -> float:
    raise Spoiled("an illegal memory access")


@dataclass(frozen=True)
class _Tile:
    warps: int


def _tiled(size: int, rate: float) -> float:
    _SITE.choose({"size": size}, _Tile(4), 0)
    return 0.0


_SITE = Site("fake.site", {"warps": (1, 8)})


def _no_gpu(device: str) -> str | None:
    return None if device == "cuda" else "needs CUDA"


def _operation(name: str, *implementations: Implementation, sizes: tuple[int, ...] = (1, 2)) -> Operation:
    block = Block({"size": sizes, "rate": (0, 0.5), "exact": (True,), "grid": ("tight",)})
    return Operation(
        name=name,
        summary="size [times] rate",
        version=3,
        source="nowhere",
        profiles={"smoke": (block,), "study": (block,)},
        make_inputs=lambda case, device: {"size": case["size"], "rate": case["rate"]},
        reference=_plain,
        cost=lambda case: Cost(8, 8, case["size"]),
        fft_size=lambda case: (case["size"],),
        tolerance=Tolerance({"float32": 0.0}, "exact"),
        implementations=implementations,
        auto=lambda **inputs: Decision("plain", "a test"),
    )


PLAIN = Implementation("plain", "baseline", _plain, "here")
TWIN = Implementation("twin", "kernel", _plain, "here")


def load_operations() -> dict[str, Operation]:
    """Every fake operation by name."""
    found = [
        _operation("steady", PLAIN, TWIN, Implementation("gpu_only", "kernel", _plain, "here", available=_no_gpu)),
        _operation("crashing", PLAIN, Implementation("segfault", "kernel", _crash, "here"), TWIN, sizes=(1,)),
        _operation("hanging", PLAIN, Implementation("hang", "kernel", _hang, "here"), TWIN, sizes=(1,)),
        _operation("spoiling", PLAIN, Implementation("spoils", "kernel", _spoils, "here"), TWIN, sizes=(1,)),
        _operation("greedy", PLAIN, Implementation("wants_all", "kernel", _greedy, "here"), sizes=(1,)),
        _operation("raising", PLAIN, Implementation("raises", "kernel", _raises, "here"), sizes=(1,)),
        _operation("slow", Implementation("sleeps", "kernel", _slow, "here"), PLAIN, sizes=(1, 2, 3)),
        _operation("tiled", Implementation("tiled", "kernel", _tiled, "here"), sizes=(1,)),
        _operation("talking", Implementation("talks", "kernel", _talkative, "here"), sizes=(1,)),
    ]
    return {operation.name: operation for operation in found}


def load_narrow_operations() -> dict[str, Operation]:
    """The fake operations, where the smoke profile of `steady` runs `plain` alone."""
    found = load_operations()
    (block,) = found["steady"].profiles["smoke"]
    profiles = {**found["steady"].profiles, "smoke": (replace(block, implementations=("plain",)),)}
    return {**found, "steady": replace(found["steady"], profiles=profiles)}


def clock_for(device: str, cache: str, launch: str) -> str:
    """Stands for a clock."""
    return f"{device} {cache} {launch}"


class WornClock(str):
    """Stands for a clock in whose process a capture broke off."""

    damaged = True


def worn_clock_for(device: str, cache: str, launch: str) -> str:
    """Stands for a clock that is damaged by its first use."""
    return WornClock(clock_for(device, cache, launch))


def measure_states(
    operation: Operation,
    case: Any,
    implementations: tuple[str, ...],
    timers: Any,
    *,
    device: str,
    pass_: str,
    metrics: Any,
    budget: Any,
) -> list[dict[str, Outcome]]:
    """By timer, one outcome per implementation; the time says how many were measured together."""
    assert all(clock.startswith(device) and ceilings is None for clock, ceilings in timers)
    return [_measured(operation, case, implementations, device, metrics or ()) for _ in timers]


def _measured(
    operation: Operation, case: Any, implementations: tuple[str, ...], device: str, metrics: Any
) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    for name in implementations:
        implementation = operation.implementation(name)
        if reason := implementation.available(device):
            outcomes[name] = Skipped(reason)
            continue
        at_work.begin(name)
        try:
            with noted_choices() as choices:
                implementation.call(**operation.make_inputs(case, device))
        except Spoiled as error:
            left = Failed("crash", f"{name} spoiled it", innocent=True)
            return {**dict.fromkeys(implementations, left), **outcomes, name: Failed("crash", str(error))}
        except Exception as error:
            outcomes[name] = failure(error)
            continue
        finally:
            at_work.end()
        together = float(len(implementations))
        times = Measurement("device_time", 1, "second", (together, together, together * 2))
        process = Measurement("host_peak", 1, "byte", (float(os.getpid()),))
        tiles = {label: choice.recorded for label, choice in choices.items()}
        error = [Measurement("rounding_error", 1, "1", (0.0,))] * ("rounding_error" in metrics)
        outcomes[name] = Measured((times, process, *error), (("nvml_memory", "no NVML here"),), tiles)
    return outcomes
