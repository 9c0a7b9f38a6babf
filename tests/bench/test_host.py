"""What Python adds to a call: which operations are seen, that they can be made again, and the command."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from toy_operation import case, implementation, toy

import spectralkernels as sk
from spectralbench import host
from spectralbench.clock import FakeClock
from spectralbench.host import Recorded, host_time, main, paths, steps
from spectralbench.measure import Budget, measure_case
from spectralbench.outcome import Measured
from spectralkernels import dispatch
from spectralkernels.errors import Unsupported
from spectralkernels.launch import Launch


def test_operations_within_our_operators_are_seen_and_can_be_made_again(seed: int) -> None:
    x, w = torch.randn(1, 2, 7, 6), torch.randn(3, 2, 3, 3)
    with torch.no_grad():
        sk.band_limited_conv2d(x, w, compression=0.5, impl="dft_gemm")
        with Recorded() as recorded:
            y = sk.band_limited_conv2d(x, w, compression=0.5, impl="dft_gemm")
    assert [operation for operation, _, _ in recorded.operations].count(torch.bmm) >= 3
    wanted = y.clone()
    written = [kwargs["out"] for _, _, kwargs in recorded.operations if "out" in kwargs]
    for tensor in written:
        tensor.fill_(float("nan"))
    recorded.again()
    assert not any(tensor.isnan().any() for tensor in written)
    assert torch.equal(sk.band_limited_conv2d(x, w, compression=0.5, impl="dft_gemm"), wanted)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_time_that_no_operation_takes_is_the_hosts() -> None:
    clock, x = Clock(), torch.ones(3)

    def call() -> torch.Tensor:
        clock.now += 5.0
        return (x + 1).sum()

    found = host_time(call, samples=4, now=clock)
    assert found.count == 2 and found.operations == (0.0,) * 4
    assert found.samples == pytest.approx((5.0,) * 4)


def test_time_within_an_operation_is_not_the_hosts() -> None:
    clock = Clock()

    class Slow(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            clock.now += 2.0
            return super().__torch_function__(func, types, args, kwargs or {})

    x = torch.ones(3).as_subclass(Slow)
    assert host_time(lambda: x + 1, samples=2, now=clock).samples == pytest.approx((0.0, 0.0))


def test_launches_are_left_out_and_come_back() -> None:
    launch, why_not = Launch._launch, dispatch.why_not
    x, w = torch.randn(1, 1, 8, 8), torch.randn(1, 1, 3, 3)
    pytest.importorskip("triton")
    with host.without_launches():
        assert sk.band_limited_conv2d(x, w, compression=0.5, impl="dft_triton").shape == x.shape
        with pytest.raises(Unsupported, match="float64"):
            sk.band_limited_conv2d(x.double(), w.double(), compression=0.5, impl="dft_triton")
    with pytest.raises(Unsupported, match="CUDA device"):
        sk.band_limited_conv2d(x, w, compression=0.5, impl="dft_triton")
    assert (Launch._launch, dispatch.why_not) == (launch, why_not)


def test_operations_are_those_of_the_call_that_nobody_looks_at() -> None:
    pytest.importorskip("triton")
    x, w, made = torch.randn(1, 1, 8, 8), torch.randn(1, 1, 3, 3), {}
    with host.without_launches(), torch.no_grad():
        for unseen in (False, False, True):
            with Recorded(unseen) as recorded:
                sk.band_limited_conv2d(x, w, compression=0.5, impl="dft_triton")
            made[unseen] = (recorded.operators, len(recorded.operations))
    assert made[False][0] == 1 and made[True] == (0, 7), "two contiguous operands, a workspace, its three parts, y"


def test_steps_count_calls_and_changes_of_file() -> None:
    names: dict[str, Any] = {}
    for file, code in (("one.py", "def step(): pass"), ("two.py", "def call():\n step()\n step()\n step()")):
        exec(compile(code, file, "exec"), names)
    assert steps(names["call"]) == (4, 1)
    assert steps(lambda: names["call"]()) == (5, 2), "a function of another file on top"


def test_the_command_prints_a_line_per_path(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--only", "dft_gemm", "--only", "direct", "--samples", "1"]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.split()[7] == "floor"
    ours, library = (float(line.split()[4]) for line in lines)
    assert ours > 0.0 == library, "the library's convolution is no operator of ours"
    assert [line.split()[0] for line in lines] == ["dft_gemm", "direct"]
    assert all(
        len(line.split()) == len(heading.replace(" us", "_us").replace(" ops", "_ops").split()) for line in lines
    )
    with pytest.raises(SystemExit):
        main(["--only", "dft_gem"])
    assert "unknown path 'dft_gem'; known: auto, dft_gemm" in capsys.readouterr().err


def test_every_path_runs(seed: int) -> None:
    pytest.importorskip("triton")
    with host.without_launches(), torch.no_grad():
        shapes = {tuple(call().shape) for name, call in paths().items() if not name.startswith("dft_native")}
    assert shapes == {(1, 1, 8, 8), (1, 1, 64), (1, 1, 4, 4), (1, 1, 32)}, "with a stride of 2 and without"


def sampled(**options: object) -> Measured:
    found = measure_case(
        toy(implementation("a")), case(), ["a"], metrics=["host_time"], clock=FakeClock(), budget=Budget(2, 2),
        **options,  # type: ignore[arg-type]
    )["a"]  # fmt: skip
    assert isinstance(found, Measured)
    return found


def test_the_metric_is_positive_where_python_is_seen() -> None:
    (measurement,) = sampled().measurements
    assert measurement.metric == "host_time" and measurement.unit == "second" and min(measurement.samples) >= 0.0


def test_the_metric_refuses_what_it_cannot_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "forward pass only" in dict(sampled(pass_="both").unavailable)["host_time"]
    monkeypatch.setattr("spectralbench.metrics.host_time.LONGEST", 0.0)
    assert "take a smaller case" in dict(sampled().unavailable)["host_time"]
