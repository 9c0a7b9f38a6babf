"""The gate: no wrong answer, stale answer, late fault or wrong gradient ever has a time."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_operation import (
    FailsLater,
    Packed,
    case,
    failed,
    implementation,
    measure,
    product,
    reference,
    times,
    toy,
    twin,
)

from spectralbench.clock import FakeClock
from spectralbench.gate import Expected, check, largest_error, relative_error
from spectralbench.outcome import Failed, Measured, Skipped
from spectralkernels.declare import Pass


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (lambda answer: answer * 1.001, "relative L2 error 0.001 against the float64 reference, allowed is 1e-05"),
        (lambda answer: torch.full_like(answer, float("nan")), "NaN or infinity"),
        (lambda answer: answer.index_fill(1, torch.tensor([3]), float("inf")), "NaN or infinity"),
        (lambda answer: torch.zeros_like(answer), "all zeros"),
        (lambda answer: answer[:1], r"shape \[1, 24\], the float64 reference has \[2, 24\]"),
        (lambda answer: answer.to(torch.complex64), "complex64"),
        (lambda answer: answer.roll(1, 0), "relative L2 error"),
    ],
    ids=["off", "nan", "inf", "zeros", "shape", "dtype", "rolled"],
)
@pytest.mark.parametrize("pass_", ["forward", "both"])
def test_a_wrong_answer_is_never_timed_and_loses_nothing_of_the_others(
    fault: Callable[[Tensor], Tensor], says: str, pass_: Pass
) -> None:
    clock = FakeClock()
    bad = implementation("bad", lambda x, w: fault(product(x, w)))
    outcomes = measure(implementation("good"), bad, implementation("other", twin), clock=clock, pass_=pass_)
    assert failed(outcomes["bad"]).kind == "wrong"
    assert re.search(says, failed(outcomes["bad"]).error)
    assert set(clock.calls) == {"good", "other"}
    assert times(outcomes["good"]) and times(outcomes["other"])


@pytest.mark.parametrize("good", [2, 3, 5])
def test_a_fault_that_appears_only_in_a_later_call_is_caught(good: int) -> None:
    late = implementation("late", FailsLater(good, lambda answer: answer + 1))
    outcomes = measure(late, implementation("good"))
    assert failed(outcomes["late"]).kind == "wrong"
    assert re.match(r"after \d timed samples?: the answer has relative L2 error", failed(outcomes["late"]).error)
    assert times(outcomes["good"])


def test_a_remembered_answer_is_caught_although_it_is_right() -> None:
    remembered: list[Tensor] = []

    def lazy(x: Tensor, w: Tensor) -> Tensor:
        remembered.append(product(x, w)) if not remembered else None
        return remembered[0]

    assert "NaN" in failed(measure(implementation("lazy", lazy))["lazy"]).error


def test_an_answer_that_is_its_input_is_not_overwritten() -> None:
    operation = toy(implementation("same", lambda x, w: x), reference=lambda x, w: x.double(), gradients=("x",))
    assert times(measure(operation=operation)["same"])


def test_an_implementation_that_writes_to_its_input_fails_and_the_next_one_gets_fresh_inputs() -> None:
    def greedy(x: Tensor, w: Tensor) -> Tensor:
        return x.mul_(0.75).mul_(w)

    outcomes = measure(implementation("greedy", greedy), implementation("good"))
    assert failed(outcomes["greedy"]) == Failed("wrong", "it writes to its input x")
    assert times(outcomes["good"])


def test_an_answer_of_zeros_passes_where_zero_is_right() -> None:
    operation = toy(
        implementation("zero", lambda x, w: 0 * product(x, w)),
        implementation("not_zero", product),
        reference=lambda x, w: 0 * reference(x, w),
    )
    outcomes = measure(operation=operation)
    assert times(outcomes["zero"])
    assert failed(outcomes["not_zero"]).error.startswith("the answer has relative L2 error inf")


def test_an_empty_answer_is_right() -> None:
    assert times(measure(implementation("a"), case=case(size=0))["a"])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda x, w: reference(x, w) / 0, "not finite"),
        (lambda x, w: product(x, w), "must compute in double precision, it gave torch.float32"),
    ],
)
def test_a_reference_that_cannot_judge_fails_every_implementation(wrong: Callable[..., Tensor], says: str) -> None:
    outcomes = measure(operation=toy(implementation("a"), implementation("b"), reference=wrong))
    assert all(failed(outcome).kind == "error" and says in failed(outcome).error for outcome in outcomes.values())


def test_outputs_that_are_no_tensors_are_compared_dense() -> None:
    def packed(x: Tensor, w: Tensor) -> Packed:
        return Packed(product(x, w).reshape(-1), x.shape)

    operation = toy(
        implementation("packed", packed),
        implementation("off", lambda x, w: Packed(packed(x, 2 * w).values, x.shape)),
        dense=Packed.to_dense,
    )
    for pass_ in ("forward", "both", "backward"):
        outcomes = measure(operation=operation, pass_=pass_)
        assert times(outcomes["packed"])
        assert failed(outcomes["off"]).kind == "wrong"


def test_relative_error_is_nan_safe_and_defined_for_zeros(seed: int) -> None:
    expected = torch.randn(3, 5, dtype=torch.float64)
    assert relative_error(expected * (1 + 1e-3), expected) == pytest.approx(1e-3)
    assert relative_error((expected * 1j).to(torch.complex64), expected * 1j) < 1e-7
    zero = torch.zeros_like(expected)
    for error in (relative_error, largest_error):
        assert math.isnan(error(torch.full_like(expected, float("nan")), expected))
        assert math.isnan(error(torch.full_like(expected, float("nan")), zero))
        assert error(zero, expected) == 1.0
        assert error(zero, zero) == 0.0
        assert error(expected, zero) == math.inf
        assert error(expected[:0], expected[:0]) == 0.0
    assert largest_error(expected + expected.abs().max() * torch.eye(3, 5), expected) == pytest.approx(1.0)


@pytest.mark.parametrize("pass_", ["backward", "both"])
def test_gradients_are_gated_against_float64(pass_: Pass) -> None:
    class HalfGradient(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
            ctx.save_for_backward(x, w)
            return product(x, w)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
            x, w = ctx.saved_tensors
            return 0.75 * gradient * w, 0.5 * 0.75 * (gradient * x).sum(0)

    half = implementation("half", lambda x, w: HalfGradient.apply(x, w))
    outcomes = measure(implementation("good"), half, pass_=pass_)
    assert times(outcomes["good"])
    assert failed(outcomes["half"]).error.startswith("the gradient of w has relative L2 error 0.5")
    assert "allowed is 4e-05" in failed(outcomes["half"]).error


def test_a_wrong_gradient_that_appears_later_is_caught() -> None:
    late = FailsLater(4, lambda answer: answer.detach() + 2 * (answer - answer.detach()))
    assert "gradient of x" in failed(measure(implementation("late", late), pass_="both")["late"]).error


def test_complex_gradients_are_gated_too(seed: int) -> None:
    def inputs(found: Any, device: str) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(found.seed)
        return {name: torch.randn(2, 9, generator=generator, dtype=torch.complex64) for name in ("x", "w")}

    operation = toy(
        implementation("conj", lambda x, w: x * w.conj()),
        implementation("flipped", lambda x, w: x * w.conj().detach() + 0 * w),
        make_inputs=inputs,
        reference=lambda x, w: x.to(torch.complex128) * w.to(torch.complex128).conj(),
    )
    outcomes = measure(operation=operation, pass_="both", case=case(seed))
    assert times(outcomes["conj"])
    assert failed(outcomes["flipped"]).error.startswith("the gradient of w is all zeros")


def test_a_gradient_that_shares_memory_with_the_cotangent_is_left_alone() -> None:
    operation = toy(
        implementation("sum", lambda x, w: x + w), reference=lambda x, w: x.double() + w.double(), gradients=("x",)
    )
    assert times(measure(operation=operation, pass_="both")["sum"])
    assert times(measure(operation=operation, pass_="backward")["sum"])


def test_passes_with_gradients_prepare_what_depends_on_them_inside_the_clock() -> None:
    prepared, called = Counter[str](), Counter[str]()

    def weight(x: Tensor, w: Tensor) -> dict[str, Tensor]:
        prepared["weight"] += 1
        return {"x": x, "w_scaled": 0.75 * w}

    def weighted(x: Tensor, w_scaled: Tensor) -> Tensor:
        called["weight"] += 1
        return x * w_scaled

    def constant(x: Tensor, w: Tensor) -> dict[str, Any]:
        prepared["constant"] += 1
        return {"x": x, "w": w, "factor": torch.tensor(0.75)}

    outcomes = measure(
        implementation("weight", weighted, prepare=weight),
        implementation("constant", lambda x, w, factor: factor * x * w, prepare=constant),
        pass_="both",
    )
    assert times(outcomes["weight"]) and times(outcomes["constant"])
    assert prepared["constant"] == 2, "once for either input set"
    # Once to find out; at least a forward and two calls of the gate, one of the calibration and four samples.
    assert prepared["weight"] == 1 + called["weight"] >= 1 + 3 + 1 + 4


def test_an_implementation_is_checked_on_the_gradients_that_it_has() -> None:
    frozen = implementation("frozen", lambda x, w: product(x, w.detach()), gradients=("x",))
    none = implementation("none", lambda x, w: product(x, w).detach(), gradients=())
    outcomes = measure(frozen, none, pass_="both")
    assert times(outcomes["frozen"])
    assert outcomes["none"] == Skipped("none differentiates nothing here, so it has no both pass")
    assert isinstance(measure(none)["none"], Measured)
    nothing = measure(operation=toy(implementation("a"), gradients=()), pass_="both")["a"]
    assert nothing == Skipped("toy has no input to differentiate, so no both pass")


def test_rivals_are_gated_against_the_ideal_and_timed_in_the_same_race() -> None:
    operation = toy(
        implementation("keeps", product),
        rivals=(implementation("whole", lambda x, w: x * w), implementation("not_whole", product)),
    )
    clock = FakeClock()
    outcomes = measure(
        operation=operation, clock=clock, pass_="both", metrics=("device_time", "approximation_error", "kept_fraction")
    )
    assert set(clock.calls) == {"keeps", "whole"}
    assert failed(outcomes["not_whole"]).kind == "wrong"
    values = {
        name: {found.metric: found.median for found in outcome.measurements}
        for name, outcome in outcomes.items()
        if isinstance(outcome, Measured)
    }
    assert values["keeps"]["approximation_error"] == pytest.approx(0.25)
    assert values["whole"]["approximation_error"] == 0.0
    whole = outcomes["whole"]
    assert isinstance(whole, Measured)
    assert dict(whole.unavailable) == {"kept_fraction": "a rival computes another answer"}


def test_a_rival_that_declares_its_own_reference_is_gated_against_that_one() -> None:
    def half(x: Tensor, w: Tensor) -> Tensor:
        return 0.5 * x.double() * w.double()

    def right(x: Tensor, w: Tensor) -> Tensor:
        return x * (0.5 * w)

    operation = toy(
        implementation("keeps", product),
        rivals=(
            implementation("halves", right, reference=half),
            implementation("ideal_but_declared_half", lambda x, w: x * w, reference=half),
            implementation("halves_undeclared", right),
        ),
    )
    outcomes = measure(operation=operation, pass_="both", metrics=("rounding_error", "approximation_error"))
    assert failed(outcomes["ideal_but_declared_half"]).kind == failed(outcomes["halves_undeclared"]).kind == "wrong"
    measured = outcomes["halves"]
    assert isinstance(measured, Measured)
    values = {found.metric: found.median for found in measured.measurements}
    assert values["rounding_error"] < 1e-6
    assert values["approximation_error"] == pytest.approx(0.5), "of its own answer"


def test_a_rival_with_nothing_to_check_it_against_fails_and_loses_nothing_of_the_others() -> None:
    operation = toy(implementation("keeps", product), ideal=None, rivals=(implementation("lost", product),))
    outcomes = measure(operation=operation)
    assert isinstance(outcomes["keeps"], Measured)
    assert failed(outcomes["lost"]).error == "RangeError: toy has rivals but no ideal to check them against"


def test_a_gradient_that_is_zero_but_for_rounding_is_judged_by_the_others() -> None:
    """Of a bias before a normalisation: its float64 value is a rounding too, of which nothing can be asked."""
    output, large = torch.ones(3, dtype=torch.float64), torch.linspace(1.0, 2.0, 40, dtype=torch.float64)
    expected = Expected(output, {"weight": large, "bias": torch.tensor([3e-17, -1e-17], dtype=torch.float64)})

    def judged(bias: list[float], floor: float) -> str | None:
        gradients = {"weight": large.float(), "bias": torch.tensor(bias)}
        return check(output.float(), gradients, expected, 1e-2, floor)

    assert "the gradient of bias has relative L2 error" in str(judged([2e-7, -1e-7], 0.0))
    assert judged([2e-7, -1e-7], 1e-3) is None
    assert judged([0.0, 0.0], 1e-3) is None
    assert "the gradient of bias is off by 0.01 at one element" in str(judged([0.01, 0.0], 1e-3))
    # No more is forgiven than that: one that is small, and above the floor, is held to its own size.
    small = Expected(output, {"weight": large, "bias": torch.tensor([0.02, -0.01], dtype=torch.float64)})
    gradients = {"weight": large.float(), "bias": torch.tensor([0.02, -0.012])}
    assert "the gradient of bias has relative L2 error" in str(check(output.float(), gradients, small, 1e-2, 1e-3))
