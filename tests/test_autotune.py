"""`impl="auto"` by measuring: the fastest of those that answer as exactly, by a clock that the test turns."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import spectralkernels as sk
from spectralkernels import autotuning
from spectralkernels.convolution.dft_native import build
from spectralkernels.declare import Decision, Implementation, Operation, Tolerance, fitting
from spectralkernels.dispatch import dispatch
from spectralkernels.errors import Unsupported
from spectralkernels.ops import load_operation, load_operations

NATIVE = pytest.mark.skipif(build.COMPILER is None, reason="no C++ compiler")


class Clock:
    """Seconds that pass only when a planted implementation says so."""

    def __init__(self) -> None:
        self.now, self.calls = 0.0, []

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    autotuning.forget()
    clock = Clock()
    monkeypatch.setattr(autotuning, "clock", clock)
    yield clock
    autotuning.forget()


def planted(clock: Clock, name: str, seconds: float, backward: float = 0.0, **facts: Any) -> Implementation:
    """Doubles x, in so many seconds, and its gradient in others."""

    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, dy):
            clock.now += backward
            return 2 * dy

    def call(x: Tensor) -> Tensor:
        clock.calls.append(name)
        clock.now += seconds
        return Doubled.apply(x)

    return Implementation(name, "kernel", call, "a test", **facts)


def operation(*implementations: Implementation, **facts: Any) -> Operation:
    """Whose estimate takes the first."""
    like = load_operation("dc_shift")
    first = implementations[0].name
    return replace(
        like,
        name="doubled",
        implementations=implementations,
        tolerance=Tolerance({"float32": 1e-6}, "a test"),
        auto=lambda **inputs: Decision(first, "it is estimated so"),
        **facts,
    )


def test_the_fastest_is_taken_from_then_on_and_only_for_such_calls(clock):
    doubled = operation(planted(clock, "slow", 3.0), planted(clock, "fast", 1.0), planted(clock, "middle", 1.5))
    x = torch.randn(3, 4)
    with sk.autotune():
        assert torch.equal(dispatch(doubled, "auto", "cpu", {"x": x}), 2 * x)
    assert clock.calls[-1] == "fast" and {"slow", "middle"} < set(clock.calls)
    for given, expected in ((x, "fast"), (torch.randn(3, 4), "fast"), (x.t(), "slow"), (x[:2], "slow")):
        clock.calls.clear()
        dispatch(doubled, "auto", "cpu", {"x": given})
        assert clock.calls == [expected]
    autotuning.forget()
    dispatch(doubled, "auto", "cpu", {"x": x})
    assert clock.calls[-1] == "slow"


def test_who_is_hopeless_is_not_called_again(clock):
    doubled = operation(
        planted(clock, "hopeless", 100.0), planted(clock, "fast", 0.001), planted(clock, "near", 0.0015)
    )
    with sk.autotune():
        dispatch(doubled, "auto", "cpu", {"x": torch.ones(2)})
    assert clock.calls.count("hopeless") == 2
    assert clock.calls.count("near") > autotuning.SURE


def test_no_choice_is_coarser_or_of_another_package_or_compiled_for_seconds(clock):
    coarse = Tolerance({"float32": 1e-3}, "a test")
    doubled = operation(
        planted(clock, "slow", 3.0),
        planted(clock, "coarse", 1.0, tolerance=coarse),
        planted(clock, "foreign", 1.0, foreign=True),
        planted(clock, "compiled", 1.0, compiled=True),
        planted(clock, "elsewhere", 1.0, available=lambda device: "not here"),
        planted(clock, "refusing", 1.0, supports=lambda **inputs: "not this"),
    )
    with sk.autotune():
        dispatch(doubled, "auto", "cpu", {"x": torch.ones(2)})
    assert set(clock.calls) == {"slow"}


def test_an_operation_says_among_whom(clock):
    doubled = operation(planted(clock, "slow", 3.0), planted(clock, "fast", 1.0), contenders=lambda **inputs: ("slow",))
    with sk.autotune():
        dispatch(doubled, "auto", "cpu", {"x": torch.ones(2)})
    assert set(clock.calls) == {"slow"}


def test_gradients_that_are_wanted_are_raced_too_and_leave_the_callers_graph_alone(clock):
    doubled = operation(planted(clock, "forward", 1.0, backward=5.0), planted(clock, "both", 2.0, backward=1.0))
    x = torch.ones(3, requires_grad=True)
    with sk.autotune():
        y = dispatch(doubled, "auto", "cpu", {"x": x})
        assert clock.calls[-1] == "both"
        with torch.no_grad():
            dispatch(doubled, "auto", "cpu", {"x": x})
        assert clock.calls[-1] == "forward"
    assert x.grad is None
    y.sum().backward()
    assert torch.equal(x.grad, torch.full((3,), 2.0))


def test_who_cannot_after_all_is_left_out_with_a_warning(clock):
    def call(x: Tensor) -> Tensor:
        raise Unsupported("the compiler failed")

    broken = replace(planted(clock, "broken", 0.1), call=call)
    with sk.autotune(), pytest.warns(UserWarning, match="'broken': the compiler failed"):
        dispatch(operation(planted(clock, "slow", 3.0), broken), "auto", "cpu", {"x": torch.ones(2)})
    assert clock.calls[-1] == "slow"


def test_an_error_of_the_call_comes_through_and_the_block_ends(clock):
    def call(x: Tensor) -> Tensor:
        raise ZeroDivisionError("a fault")

    with pytest.raises(ZeroDivisionError), sk.autotune():
        dispatch(operation(replace(planted(clock, "broken", 1.0), call=call)), "auto", "cpu", {"x": torch.ones(2)})
    doubled = operation(planted(clock, "slow", 3.0), planted(clock, "fast", 1.0))
    dispatch(doubled, "auto", "cpu", {"x": torch.ones(2)})
    assert clock.calls == ["slow"]


def test_a_name_runs_by_name_and_other_threads_estimate(clock):
    doubled = operation(planted(clock, "slow", 3.0), planted(clock, "fast", 1.0))
    with sk.autotune():
        dispatch(doubled, "slow", "cpu", {"x": torch.ones(2)})
        other = threading.Thread(target=lambda: dispatch(doubled, "auto", "cpu", {"x": torch.ones(2)}))
        other.start()
        other.join()
    assert clock.calls == ["slow", "slow"]


# --- the operations ---------------------------------------------------------------------------------------------------


@pytest.fixture
def estimates_again():
    autotuning.forget()
    yield
    autotuning.forget()


@pytest.mark.parametrize("compression", [0.0, 0.5])
def test_a_convolution_races_what_is_estimated_and_the_low_pass(compression, estimates_again, monkeypatch):
    raced: list[set[str]] = []
    monkeypatch.setattr(autotuning, "_fastest", lambda runs, device: raced.append(set(runs)))
    with sk.autotune():
        sk.band_limited_conv2d(torch.randn(2, 3, 12, 12), torch.randn(4, 3, 3, 3), compression=compression)
    only = {"direct", "direct_converted", "torch_fft_fast"} if compression == 0.0 else set()
    native = {"dft_native"} if build.COMPILER is not None else set()
    assert raced == [{"torch_fft", "dft_gemm", "direct_lowpass"} | only | native]


@NATIVE
@pytest.mark.parametrize("wanted", [False, True])
@pytest.mark.parametrize("options", [{}, {"compression": 0.5}, {"compression": 0.3, "stride": 2}, {"padding": 1}])
def test_a_convolution_is_right_and_explained_as_measured(options, wanted, estimates_again):
    x, weight = torch.randn(2, 5, 9, 7, dtype=torch.float64), torch.randn(3, 5, 3, 3, dtype=torch.float64)
    weight.requires_grad_(wanted)
    expected = sk.band_limited_conv2d(x, weight, impl="torch_fft", **options)
    assert "measured" not in sk.explain(sk.band_limited_conv2d, x, weight, **options).because
    with sk.autotune():
        assert "measured" not in sk.explain(sk.band_limited_conv2d, x, weight, **options).because  # it runs nothing
        found = sk.band_limited_conv2d(x, weight, **options)
    again = sk.band_limited_conv2d(x, weight, **options)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    assert torch.equal(found, again) and found.requires_grad == wanted
    assert "measured to be the fastest" in sk.explain(sk.band_limited_conv2d, x, weight, **options).because


def test_calls_that_were_prepared_before_are_measured_too(estimates_again, monkeypatch):
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    for _ in range(2):
        sk.band_limited_conv2d(x, weight, compression=0.5)
    monkeypatch.setattr(autotuning, "_fastest", lambda runs, device: Decision("torch_fft", "planted"))
    with sk.autotune():
        sk.band_limited_conv2d(x, weight, compression=0.5)
    assert sk.explain(sk.band_limited_conv2d, x, weight, compression=0.5).chosen == "torch_fft"


def test_a_mask_of_ones_does_not_choose_for_another(estimates_again, monkeypatch):
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    n = sk.masks.fft_grid((8, 8), (3, 3))
    ones = torch.ones(n[0], n[1] // 2 + 1)
    other = ones.clone()
    other[1:3, 1:3] = 0.5
    monkeypatch.setattr(autotuning, "_fastest", lambda runs, device: Decision("direct", "planted"))
    with sk.autotune():
        sk.masked_conv2d(x, weight, ones)
    assert sk.explain(sk.masked_conv2d, x, weight, ones).chosen == "direct"
    expected = sk.masked_conv2d(x, weight, other, impl="torch_fft")
    torch.testing.assert_close(sk.masked_conv2d(x, weight, other), expected)


def test_what_is_traced_or_has_no_numbers_is_estimated(estimates_again, monkeypatch):
    monkeypatch.setattr(autotuning, "_fastest", lambda runs, device: pytest.fail("it was raced"))
    x, weight = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3)
    convolve = lambda x: sk.band_limited_conv2d(x, weight, compression=0.5)  # noqa: E731
    with sk.autotune():
        torch.compile(convolve, backend="eager", fullgraph=True)(x)
        torch.func.jvp(convolve, (x,), (x,))
        torch.export.export(torch.nn.Conv2d(3, 4, 3), (x,))
        sk.band_limited_conv2d(x.to("meta"), weight.to("meta"), compression=0.5)
        fake = FakeTensorMode()  # and outside of it
        sk.band_limited_conv2d(fake.from_tensor(x), fake.from_tensor(weight), compression=0.5)


@pytest.mark.parametrize("name", load_operations())
@pytest.mark.parametrize("wanted", [False, True])
def test_every_operation_answers_as_before(name, wanted, estimates_again, monkeypatch):
    monkeypatch.setattr(autotuning, "ROUNDS", 1)
    found = load_operation(name)
    case = found.cases("smoke")[0][0]
    inputs = found.make_inputs(case, "cpu")
    for each in fitting(inputs, found.gradients) if wanted else ():
        inputs[each] = inputs[each].detach().requires_grad_()
    expected = found.dense(found.implementation(found.auto(**inputs).name).call(**inputs))
    with sk.autotune():
        answer = found.dense(dispatch(found, "auto", "cpu", inputs))
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-4)
    assert answer.requires_grad == expected.requires_grad
