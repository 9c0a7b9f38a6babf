"""The measuring core on toy operations under a fake clock: who is timed, in what order, how often; what is skipped."""

from __future__ import annotations

import gc
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from toy_operation import (
    FailsLater,
    case,
    failed,
    implementation,
    measure,
    product,
    times,
    toy,
    twin,
)

from spectralbench.clock import CpuClock, FakeClock
from spectralbench.collector import short_collections
from spectralbench.failures import failure, requested_bytes
from spectralbench.measure import Budget, forget_compilations, measure_case
from spectralbench.outcome import Failed, Measured, Measurement, Skipped
from spectralbench.timing import relative_uncertainty, unknown, warm_up
from spectralkernels.errors import RangeError, Unsupported


def test_every_round_times_every_implementation_once_in_changing_order(seed: int) -> None:
    clock = FakeClock()
    names = ["a", "b", "c"]
    outcomes = measure(*map(implementation, names), clock=clock, budget=Budget(30, 30), case=case(seed))
    rounds = [clock.calls[start : start + 3] for start in range(0, 90, 3)]
    assert all(sorted(found) == names for found in rounds)
    assert len({tuple(found) for found in rounds}) > 1, "the order never changed"
    assert list(outcomes) == names


def test_the_order_is_a_function_of_the_seed(seed: int) -> None:
    clocks = FakeClock(), FakeClock()
    for clock in clocks:
        measure(implementation("a"), implementation("b"), clock=clock, case=case(seed), budget=Budget(9, 9))
    assert clocks[0].calls == clocks[1].calls


def test_all_samples_are_kept_and_belong_to_their_implementation() -> None:
    clock = FakeClock({"a": (1.0, 2.0, 3.0, 4.0), "b": 7.0})
    outcomes = measure(implementation("a"), implementation("b", twin), clock=clock, budget=Budget(4, 4, seconds=99))
    assert times(outcomes["a"]) == (1.0, 2.0, 3.0, 4.0)
    assert times(outcomes["b"]) == (7.0,) * 4


def test_it_stops_at_the_minimum_when_all_medians_are_known() -> None:
    outcomes = measure(implementation("a"), implementation("b"), clock=FakeClock(1e-4), budget=Budget(6, 50))
    assert len(times(outcomes["a"])) == len(times(outcomes["b"])) == 6


def test_one_noisy_implementation_keeps_all_in_the_race_until_its_median_is_known() -> None:
    budget = Budget(min_rounds=4, max_rounds=500, target=0.02, seconds=1e9)
    noisy = (1.0, 1.2, 1.1, 1.3)
    outcomes = measure(implementation("calm"), implementation("noisy"), clock=FakeClock({"calm": 1.0, "noisy": noisy}),
                       budget=budget)  # fmt: skip
    found = times(outcomes["noisy"])
    assert 4 < len(found) < 500
    assert len(times(outcomes["calm"])) == len(found)
    assert relative_uncertainty(found) <= 0.02 < relative_uncertainty(found[:-1])


def test_it_stops_when_the_seconds_of_the_case_are_spent_but_never_below_the_minimum() -> None:
    noisy = FakeClock((1.0, 3.0))
    assert len(times(measure(implementation("a"), clock=noisy, budget=Budget(3, 99, seconds=20.0))["a"])) == 10
    noisy = FakeClock((1.0, 3.0))
    assert len(times(measure(implementation("a"), clock=noisy, budget=Budget(3, 99, seconds=0.1))["a"])) == 3


def test_the_uncertainty_of_normal_noise_is_close_to_the_standard_error_of_the_median() -> None:
    generator = torch.Generator().manual_seed(0)
    samples = (10 + torch.randn(100_001, generator=generator, dtype=torch.float64)).tolist()
    standard_error = math.sqrt(math.pi / 2 / len(samples)) / 10
    assert relative_uncertainty(samples) == pytest.approx(1.076 * standard_error, rel=0.03)
    assert relative_uncertainty([0.0, 0.0]) == math.inf
    assert relative_uncertainty([3.0]) == 0.0


def test_the_garbage_collector_is_off_while_timing_and_on_again_after() -> None:
    seen = []

    class Watching(FakeClock):
        def time(self, run: Callable[[], object], number: int) -> float:
            seen.append(gc.isenabled())
            return super().time(run, number)

    frozen = gc.get_freeze_count()
    measure(implementation("a"), clock=Watching())
    assert seen == [False] * 4
    assert gc.isenabled()
    assert abs(gc.get_freeze_count() - frozen) < 100, "what is frozen is left alone; a frozen object may be freed"


def test_what_is_older_than_a_case_is_set_aside_and_let_go() -> None:
    gc.unfreeze()
    try:
        with short_collections():
            assert gc.get_freeze_count() > 1000
            with short_collections():
                pass
            assert gc.get_freeze_count() > 1000, "it is for who froze it to let it go"
        assert gc.get_freeze_count() == 0
    finally:
        gc.freeze()  # as the run has it


def test_forward_runs_without_autograd_on_inputs_prepared_once() -> None:
    prepared: list[int] = []
    states = Counter[bool]()

    def prepare(x: Tensor, w: Tensor) -> dict[str, Tensor]:
        prepared.append(1)
        return {"x": x, "w_scaled": 0.75 * w}

    def call(x: Tensor, w_scaled: Tensor) -> Tensor:
        states[torch.is_grad_enabled()] += 1
        return x * w_scaled

    outcome = measure(implementation("ready", call, prepare=prepare))["ready"]
    assert len(times(outcome)) == 4
    assert len(prepared) == 2, "once for either input set"
    assert set(states) == {False}


def test_without_a_time_among_the_metrics_nothing_is_timed() -> None:
    clock = FakeClock()
    outcome = measure(implementation("a"), clock=clock, metrics=("rounding_error",))["a"]
    assert isinstance(outcome, Measured)
    assert [found.metric for found in outcome.measurements] == ["rounding_error"]
    assert clock.calls == []


def test_the_process_wide_switches_are_set_while_measuring_and_restored() -> None:
    seen = []

    def call(x: Tensor, w: Tensor) -> Tensor:
        seen.append((torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark))
        return product(x, w)

    before = torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    measure(implementation("a", call))
    assert set(seen) == {(False, True)}
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark) == before


def test_what_cannot_run_is_skipped_with_its_reason() -> None:
    def unable(**inputs: Any) -> dict[str, Any]:
        raise Unsupported("prepare cannot")

    outcomes = measure(
        implementation("elsewhere", available=lambda device: f"not on {device}"),
        implementation("unsuited", supports=lambda **inputs: "odd sizes only"),
        implementation("unprepared", prepare=unable),
        implementation("good"),
    )
    assert outcomes["elsewhere"] == Skipped("not on cpu")
    assert outcomes["unsuited"] == Skipped("odd sizes only")
    assert outcomes["unprepared"] == Skipped("prepare cannot")
    assert times(outcomes["good"])


def test_supports_is_asked_about_prepared_inputs() -> None:
    outcome = measure(
        implementation(
            "a",
            lambda x, half: x * half,
            prepare=lambda x, w: {"x": x, "half": 0.75 * w},
            supports=lambda x, half: None if half.shape else "no",
        )
    )["a"]
    assert times(outcome)


def test_inputs_that_need_a_missing_package_skip_the_case() -> None:
    def no_photos(found: Any, device: str) -> dict[str, Any]:
        raise Unsupported("input='photo' needs scikit-learn")

    outcomes = measure(operation=toy(implementation("a"), implementation("b"), make_inputs=no_photos))
    assert set(outcomes.values()) == {Skipped("input='photo' needs scikit-learn")}


def test_no_cuda_is_a_reason_not_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    outcomes = measure_case(toy(implementation("a")), case(), ["a"], device="cuda")
    assert outcomes == {"a": Skipped("torch finds no CUDA device")}


def test_a_kernel_under_the_interpreter_is_checked_and_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    from spectralkernels.launch import interpreted

    def kernels_only(device: str) -> str | None:
        return None if interpreted() else "needs a GPU"

    monkeypatch.setenv("TRITON_INTERPRET", "1")
    clock = FakeClock()
    outcomes = measure(
        implementation("right", available=kernels_only),
        implementation("wrong", lambda x, w: x, available=kernels_only),
        implementation("torch"),
        clock=clock,
    )
    right = outcomes["right"]
    assert isinstance(right, Skipped)
    assert "interpreter" in right.reason and "never timed" in right.reason
    assert failed(outcomes["wrong"]).kind == "wrong"
    assert set(clock.calls) == {"torch"}
    assert interpreted()


def test_an_exception_fails_its_implementation_alone() -> None:
    def broken(x: Tensor, w: Tensor) -> Tensor:
        raise KeyError("nothing here")

    outcomes = measure(implementation("broken", broken), implementation("good"))
    assert outcomes["broken"] == Failed("error", "KeyError: 'nothing here'")
    assert times(outcomes["good"])


@pytest.mark.parametrize("at", ["prepare", "gate", "timing"])
def test_out_of_memory_is_typed_with_the_bytes_asked_for(at: str) -> None:
    def hungry(*arguments: Any, **inputs: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 4.5 GiB free.")

    wanting = {
        "prepare": implementation("hungry", prepare=hungry),
        "gate": implementation("hungry", hungry),
        "timing": implementation("hungry", FailsLater(4, hungry)),  # two of the gate, one to calibrate, one sample
    }[at]
    outcomes = measure(wanting, implementation("good"))
    assert failed(outcomes["hungry"]).kind == "oom"
    assert failed(outcomes["hungry"]).requested_bytes == 20 * 2**30
    assert times(outcomes["good"])


def test_a_real_cpu_allocation_that_cannot_be_had_is_out_of_memory() -> None:
    found = failed(measure(implementation("huge", lambda x, w: torch.empty(2**48)))["huge"])
    assert (found.kind, found.requested_bytes) == ("oom", 2**50)


def test_inputs_out_of_memory_fail_every_implementation_as_such() -> None:
    def huge(found: Any, device: str) -> dict[str, Any]:
        return {"x": torch.empty(2**48), "w": torch.empty(1)}

    outcomes = measure(operation=toy(implementation("a"), implementation("b"), make_inputs=huge))
    assert {failed(outcome).kind for outcome in outcomes.values()} == {"oom"}


def test_the_bytes_of_an_allocation_are_read_from_its_message() -> None:
    assert requested_bytes("Tried to allocate 512.00 MiB (GPU 0; 2.00 GiB total)") == 512 * 2**20
    assert requested_bytes("you tried to allocate 40000 bytes. Error code 12") == 40000
    assert requested_bytes("Unable to allocate 7.5 TiB for an array with shape") == round(7.5 * 2**40)
    assert requested_bytes("out of memory") is None
    assert failure(MemoryError()) == Failed("oom", "MemoryError", None)
    assert failure(ValueError("no")).kind == "error"


def test_a_metric_that_gives_no_finite_number_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    operation = toy(implementation("a"), observe=lambda found, output: {"kept_fraction": math.nan})
    found = failed(measure(operation=operation, metrics=("kept_fraction",))["a"])
    assert found.error == "ValueError: the metric kept_fraction must give finite numbers, got [nan]"


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    operation = toy(implementation("a"), implementation("b"))
    with pytest.raises(RangeError, match="no implementation 'c'; known: a, b"):
        measure_case(operation, case(), ["c"])
    with pytest.raises(RangeError, match=r"unknown metric 'speed'; known: .*device_time"):
        measure_case(operation, case(), ["a"], metrics=["speed"])
    with pytest.raises(RangeError, match="unknown pass 'sideways'; known: forward, backward, both"):
        measure_case(operation, case(), ["a"], pass_="sideways")  # type: ignore[arg-type]
    with pytest.raises(RangeError, match="unknown device 'tpu'; known: cpu, cuda"):
        measure_case(operation, case(), ["a"], device="tpu")
    with pytest.raises(RangeError, match="1 <= min_rounds <= max_rounds, got 3, 2"):
        Budget(min_rounds=3, max_rounds=2)


def test_a_dtype_without_tolerance_fails_by_name() -> None:
    from dataclasses import replace

    found = failed(measure(implementation("a"), case=replace(case(), dtype="float16"))["a"])
    assert "toy declares no tolerance for float16; it has float32" in found.error


def test_a_case_measured_for_real_has_every_cpu_metric() -> None:
    operation = toy(implementation("a"), implementation("b", twin))
    outcomes = measure_case(
        operation, case(size=1000), ["a", "b"], clock=CpuClock(1e-5), budget=Budget(2, 3, seconds=0.1)
    )
    for outcome in outcomes.values():
        assert isinstance(outcome, Measured)
        found = {each.metric: each for each in outcome.measurements}
        assert {"device_time", "saved_bytes", "rounding_error", "approximation_error"} <= found.keys()
        assert isinstance(found["device_time"], Measurement) and found["device_time"].median > 0
        reasons = dict(outcome.unavailable)
        assert "kept_fraction" in reasons
        assert not reasons.keys() & found.keys()
        assert not {"peak_allocated", "nvml_memory", "energy"} & (reasons.keys() | found.keys())


def test_a_metric_of_another_device_says_why_when_asked_for() -> None:
    asked = ["peak_allocated", "peak_reserved", "nvml_memory", "nvml_process_memory", "energy"]
    outcome = measure_case(toy(implementation("a")), case(), ["a"], metrics=asked)["a"]
    assert isinstance(outcome, Measured)
    assert dict(outcome.unavailable).keys() == set(asked)
    assert all("CUDA" in why or "NVML" in why for _, why in outcome.unavailable)


@pytest.mark.slow
def test_every_case_compiles_for_its_own_shapes() -> None:
    counter = CompileCounter()
    double = torch.compile(lambda x: 2 * x, backend=counter)
    for size in range(2, 14):
        forget_compilations()
        double(torch.ones(size))
    # Without it: two, of which the second is for shapes in general.
    assert counter.frame_count == 12


def test_a_slow_start_is_thrown_away_and_does_not_stop_the_race() -> None:
    """Four slow samples and a fast one look like a median known to a thousandth, 200 times too long."""
    slow_start = (4159e-6, 4160e-6, 4156e-6, 4158e-6, *[19e-6] * 1000)
    budget = Budget(min_rounds=5, max_rounds=200)
    clock = FakeClock({"slow_start": slow_start, "steady": 1e-3})
    outcomes = measure(implementation("slow_start"), implementation("steady"), clock=clock, budget=budget)
    assert times(outcomes["slow_start"]) == (19e-6,) * 5
    assert times(outcomes["steady"]) == (1e-3,) * 5, "of the same rounds"


def test_warm_up_is_a_slow_beginning_and_not_a_lucky_sample() -> None:
    assert warm_up([1.2, 1.0, 1.0, 1.0]) == 1
    assert warm_up([4.0, 4.0, 4.0, 1.0]) == 3
    assert warm_up([1.0, 1.05, 1.0, 1.02]) == 0
    assert warm_up([1.0, 1.0, 1.0, 1.0, 0.8, 1.0, 1.0]) == 0
    assert warm_up([1.0, 3.0, 1.0]) == 0
    assert warm_up([1.0]) == warm_up([]) == 0


def test_a_precision_that_was_not_reached_is_a_remark() -> None:
    noisy = FakeClock({"calm": 1.0, "noisy": (1.0, 1.05, 1.1, 1.15)})
    budget = Budget(4, 8, target=0.01, seconds=1e9)
    outcomes = measure(implementation("calm"), implementation("noisy"), clock=noisy, budget=budget)
    calm, found = outcomes["calm"], outcomes["noisy"]
    assert isinstance(calm, Measured) and isinstance(found, Measured)
    assert calm.unavailable == ()
    missed = "the median is known to 0.025 of itself, asked was 0.01, after 8 samples"
    assert dict(found.unavailable) == {"precision": missed}
    assert "no level yet" in str(unknown([1.05, 1.05, 1.05, 1.0, 1.0, 1.0] * 1, 0.02))
