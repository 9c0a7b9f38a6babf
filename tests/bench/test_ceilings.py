"""The floor under every believable time, and the marks on times that say little."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from toy_operation import (
    failed,
    implementation,
    measure,
    times,
    toy,
)

from spectralbench.ceilings import Ceilings, Roofs, floor, measure_ceilings, measure_roofs, roof_floor
from spectralbench.clock import FakeClock
from spectralbench.outcome import Measured
from spectralkernels.declare import Cost

CEILINGS = Ceilings(bytes_per_second=1e9, flops_per_second=1e9, launch_seconds=1e-6)


def test_a_time_below_the_physical_floor_is_refused() -> None:
    heavy = Cost(bytes_read=10**6, bytes_written=10**6, flops=1000)
    operation = toy(implementation("liar"), implementation("honest"), cost=lambda found: heavy)
    clock = FakeClock({"liar": 1e-4, "honest": 2e-3}, cache="cold")
    outcomes = measure(operation=operation, clock=clock, ceilings=CEILINGS)
    assert failed(outcomes["liar"]).kind == "wrong"
    assert failed(outcomes["liar"]).error.startswith("faster than physics: 0.0001 s, but 1000000 bytes read")
    assert times(outcomes["honest"]) == (2e-3,) * 4
    assert times(measure(operation=operation, clock=FakeClock(1e-4), ceilings=CEILINGS)["liar"]), (
        "warm caches hide bytes"
    )


def test_arithmetic_has_a_floor_in_warm_caches_too_and_a_lone_backward_none() -> None:
    operation = toy(implementation("a"), cost=lambda found: Cost(0, 0, 10**6))
    assert failed(measure(operation=operation, clock=FakeClock(1e-4), ceilings=CEILINGS)["a"]).kind == "wrong"
    assert times(measure(operation=operation, clock=FakeClock(1e-4), ceilings=CEILINGS, pass_="backward")["a"])
    assert floor(Cost(0, 0, 10**6), CEILINGS, "warm") == pytest.approx(0.8e-3)


def test_a_time_close_to_an_empty_launch_is_marked() -> None:
    clock = FakeClock({"tiny": 1.5e-6, "long": 1e-3})
    outcomes = measure(implementation("tiny"), implementation("long"), clock=clock, ceilings=CEILINGS)
    tiny, long = outcomes["tiny"], outcomes["long"]
    assert isinstance(tiny, Measured) and isinstance(long, Measured)
    assert "empty launch (1e-06 s)" in dict(tiny.unavailable)["launch_bound"]
    assert long.unavailable == ()


def test_gaps_of_the_device_are_marked() -> None:
    class Exposing(FakeClock):
        def exposed(self, run: Callable[[], object]) -> bool:
            return True

    outcome = measure(implementation("a"), clock=Exposing())["a"]
    assert isinstance(outcome, Measured)
    assert "waits for the device" in dict(outcome.unavailable)["launch_gaps"]


def test_ceilings_are_what_the_clock_says() -> None:
    found = measure_ceilings(FakeClock(0.5), "cpu", side=16)
    assert found == Ceilings(2 * 16 * 16 * 4 / 0.5, 2 * 16**3 / 0.5, 0.5)


ROOFS = Roofs(
    bytes_per_second={"memory": 1e9, "l2": 4e9},
    flops_per_second={"bf16": 8e9, "tf32": 4e9, "fp32": 1e9},
    launch_seconds={"eager": 1e-6},
    l2_bytes=1000,
    missing={},
)
FP32 = (("fp32", 1.0), ("tf32", 3.0))


def test_roofs_are_measured_on_random_data_by_the_clock_of_their_launch() -> None:
    seen: list[torch.Tensor] = []

    class Watching(FakeClock):
        def time(self, run: Callable[[], object], number: int) -> float:
            done = run()
            if isinstance(done, torch.Tensor):
                seen.append(done)
            return super().time(run, number)

    reads: list[int] = []
    clocks = {"eager": Watching(0.5), "graph": FakeClock(0.25)}
    found = measure_roofs(clocks, "cpu", lambda: (lambda: reads.append(1), 4000), side=16, copied=64)
    assert found.bytes_per_second == {"memory": 2 * 64 * 4 / 0.5, "l2": 4000 / 0.5}
    assert found.flops_per_second == dict.fromkeys(("bf16", "fp16", "fp32"), 2 * 16**3 / 0.5)
    assert found.launch_seconds == {"eager": 0.5, "graph": 0.25}
    assert found.missing == {"tf32": "TF32 is a mode of CUDA's tensor cores"}
    assert reads and all(tensor.any() for tensor in seen), "zeros are faster than data"
    without = measure_roofs({"eager": FakeClock(0.5)}, "cpu", side=16, copied=64)
    assert "l2" in without.missing and "l2" not in without.bytes_per_second


def test_the_floor_is_bytes_or_arithmetic_whichever_takes_longer() -> None:
    heavy, hard = Cost(600, 600, 1), Cost(1, 1, 3000)
    assert roof_floor(heavy, ROOFS, FP32, "cold", "forward") == pytest.approx(1200 / 1e9)
    assert roof_floor(hard, ROOFS, FP32, "cold", "forward") == pytest.approx(3000 / (4e9 / 3)), "three TF32 products"
    assert roof_floor(hard, ROOFS, (("tf32", 1.0),), "cold", "forward") == pytest.approx(3000 / 4e9)
    with pytest.raises(KeyError, match="none of the products fp16 was measured"):
        roof_floor(hard, ROOFS, (("fp16", 1.0),), "cold", "forward")


def test_a_warm_pass_that_fits_the_cache_is_bound_by_the_cache() -> None:
    small = Cost(300, 300, 1)
    assert roof_floor(small, ROOFS, FP32, "warm", "forward") == pytest.approx(600 / 4e9)
    assert roof_floor(small, ROOFS, FP32, "cold", "forward") == pytest.approx(600 / 1e9)
    # A training step touches twice as much, which no longer fits.
    assert roof_floor(small, ROOFS, FP32, "warm", "both") == pytest.approx(1200 / 1e9)
