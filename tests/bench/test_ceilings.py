"""The floor under every believable time, and the marks on times that say little."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from toy_operation import (
    failed,
    implementation,
    measure,
    times,
    toy,
)

from spectralbench.ceilings import Ceilings, floor, measure_ceilings
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
