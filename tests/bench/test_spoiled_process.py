"""An implementation that spoils its process: what is said of it, and of those who are left to another process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from toy_operation import FailsLater, failed, implementation, make_inputs, measure, toy

from spectralbench.clock import CaptureBroken, FakeClock
from spectralbench.exchange import Exchange
from spectralbench.outcome import Skipped


@pytest.mark.slow
@pytest.mark.parametrize("good", [0, 5])
def test_a_lost_device_is_a_crash_of_the_culprit_and_the_rest_is_told_so(
    good: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[int] = []

    def breaks(answer: Tensor) -> Tensor:
        lost.append(1)
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def ask_the_device(*_: object) -> None:
        if lost:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    put = Exchange.put

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", ask_the_device)
    monkeypatch.setattr(Exchange, "put", lambda self, side: (ask_the_device(), put(self, side))[1])
    operation = toy(
        implementation("first"),
        implementation("breaks", FailsLater(good, breaks)),
        implementation("after"),
        make_inputs=lambda found, device: make_inputs(found, "cpu"),
    )
    outcomes = measure(operation=operation, device="cuda")
    assert {failed(outcome).kind for outcome in outcomes.values()} == {"crash"}
    assert "illegal memory access" in failed(outcomes["breaks"]).error
    assert failed(outcomes["after"]).error == failed(outcomes["first"]).error
    assert "breaks left the CUDA device unusable" in failed(outcomes["after"]).error
    assert [name for name, outcome in outcomes.items() if failed(outcome).innocent] == ["first", "after"]


def test_after_a_broken_capture_the_rest_is_left_to_another_process() -> None:
    class Capturing(FakeClock):
        damaged = False

        def calibrate(self, run: Any) -> int:
            if run.name == "breaks":
                self.damaged = True
                raise CaptureBroken("cannot be captured in a CUDA graph: not permitted")
            return super().calibrate(run)

    outcomes = measure(*map(implementation, ("first", "breaks", "after")), clock=Capturing())
    assert outcomes["breaks"] == Skipped("cannot be captured in a CUDA graph: not permitted")
    for name in ("first", "after"):
        assert failed(outcomes[name]).innocent
        assert "breaks left the process unfit for another CUDA graph" in failed(outcomes[name]).error
