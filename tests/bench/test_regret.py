"""The regret of auto, from made-up times: who is raced, what counts, and what is printed."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable

import pytest
import torch
from effort import draws

from spectralbench import regret
from spectralbench.regret import Row, draw, main, measure, race, serving, sizes_of, summary
from spectralkernels import autotuning
from spectralkernels.declare import Decision
from spectralkernels.ops import load_operation


class Clock:
    """Time passes only while a made-up run lasts."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def run(self, name: str, *lasting: float) -> Callable[[], None]:
        """The last duration repeats."""
        left = list(lasting)

        def call() -> None:
            self.calls.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return call


def row(regret_of: float = 1.0, auto: float = 1e7, other: float = 1e7, case: str = "size=8") -> Row:
    return Row("toy", case, "plain", {"plain": 2.0 * regret_of, "quick": 2.0}, {}, {"auto": auto, "torch_fft": other})


def test_the_least_time_counts_and_a_first_call_does_not():
    clock = Clock()
    runs = {"a": clock.run("a", 9.0, 3.0, 2.0, 4.0), "b": clock.run("b", 1.0, 5.0)}
    assert race(runs, 3, "a", clock) == {"a": 2.0, "b": 5.0}
    assert clock.calls == ["a", "b"] * 5  # one in turn after the other


def test_who_is_hopeless_is_asked_twice_and_the_choice_always():
    runs = {"quick": 1.0, "slow": 4.5, "choice": 50.0}
    clock = Clock()
    found = race({name: clock.run(name, lasting) for name, lasting in runs.items()}, 3, "choice", clock)
    assert found == runs
    assert [clock.calls.count(name) for name in runs] == [5, 2, 5]
    clock = Clock()  # milliseconds are raced however far apart
    race({"quick": clock.run("quick", 1e-3), "slow": clock.run("slow", 0.2)}, 3, "", clock)
    assert clock.calls.count("slow") == 5


def test_a_race_ends_when_its_time_is_over():
    clock = Clock()
    race({"a": clock.run("a", 1.0)}, 100, "a", clock, seconds=3.5)
    assert len(clock.calls) == 2 + 4


def test_regret_and_memory_of_a_row():
    found = row(1.5, auto=24 << 20, other=12 << 20)
    assert (found.fastest, found.regret, found.memory) == ("quick", 1.5, 2.0)
    assert row(auto=8 << 20, other=1.0).memory == 2.0  # a few bytes are no yardstick
    assert Row("toy", "size=8", "plain", {"plain": 1.0}).memory is None


def test_the_summary_has_quantiles_and_the_worst_rows():
    rows = [row(1.0 + number / 100, case=f"size={number}") for number in range(40)]
    text = summary([*rows, row(3.0, auto=1e9, case="size=77")])
    assert "41 shapes; auto takes the fastest in 1" in text
    assert "regret  median 1.20, p90 1.36, max 3.00; above 1.2: 20" in text
    assert "memory  median 1.00, p90 1.00, max 100.00 of torch_fft; above 4: 1" in text
    worst, heaviest = text.split("largest memory:")
    assert worst.count("toy[") == 10 and worst.index("size=77") < worst.index("size=39")
    assert heaviest.split() == ["100.00", "plain", "953.7", "MiB,", "torch_fft", "9.5", "MiB", "toy[size=77]"]
    assert summary([]) == "no shape was measured"
    assert "memory" not in summary([Row("toy", "size=8", "plain", {"plain": 1.0})])


@pytest.mark.parametrize("number", draws(40))
def test_shapes_are_within_what_is_stated(number: int, seed: int):
    case = draw(random.Random(seed + number))
    params, sizes = dict(case.params), sizes_of(case)
    assert 1 <= params["kernel_size"] <= 63 and 0.0 <= params["compression"] <= 0.95 and 1 <= params["batch"] <= 32
    assert 1 <= params["in_channels"] <= 512 and 1 <= params["out_channels"] <= 512
    assert params["in_channels"] % params["groups"] == params["out_channels"] % params["groups"] == 0
    assert all(4 <= params[side] <= 1024 for side in ("height", "width") if side in params)
    assert 16 <= params.get("length", 16) <= 65536
    cost = load_operation(case.operation).cost(case)
    assert cost.bytes <= regret.MOST_BYTES and cost.flops <= regret.MOST_FLOPS
    assert sum(sizes.planes) > 0 and sizes.band.compression == params["compression"]


def test_the_same_seed_draws_the_same_shapes():
    first, second = ([draw(chance) for _ in range(5)] for chance in (random.Random(3), random.Random(3)))
    assert first == second != [draw(random.Random(4)) for _ in range(5)]


def test_who_is_raced_serves_and_is_ours(monkeypatch: pytest.MonkeyPatch):
    operation = load_operation("band_limited_conv1d")
    case = next(case for case, _ in operation.cases("smoke") if case["compression"] == 0.5)
    inputs = operation.make_inputs(case, "cpu")
    names = {found.name for found in serving(operation, case, inputs, "torch_fft")}
    assert {"torch_fft", "dft_gemm", "direct_lowpass"} <= names
    assert not names & {"direct", "torch_fft_compile", "fft_conv_pytorch", "dft_gemm_frozen", "direct_lowpass_tf32"}
    given = {"torch_fft": 0.1, "dft_gemm": 0.7}
    monkeypatch.setattr(regret, "seconds", lambda name, sizes, training: 0.0 if training else given.get(name, 0.9))
    assert {found.name for found in serving(operation, case, inputs, "torch_fft")} == {"torch_fft", "dft_gemm"}
    assert "direct_lowpass" in {found.name for found in serving(operation, case, inputs, "direct_lowpass")}
    assert {found.name for found in serving(operation, case, inputs, "torch_fft", training=True)} == names


@pytest.mark.parametrize("number", draws(3))
def test_masked_shapes_are_of_every_kind_and_within_their_bounds(number: int, seed: int):
    cases = [draw(random.Random(seed + each), masked=True) for each in range(8)]
    assert len({case["mask"] for case in cases}) > 1
    for case in cases:
        assert case.operation == "masked_conv2d" and 0.0 <= case["rate"] < 1.0
        assert max(case["height"], case["width"]) <= 128 and sum(sizes_of(case).planes) > 0


@pytest.mark.parametrize(
    ("training", "operation"), [(False, "band_limited_conv2d"), (True, "band_limited_conv2d"), (False, "masked_conv2d")]
)
def test_a_shape_is_measured(training: bool, operation: str):
    case, _ = load_operation(operation).cases("smoke")[0]
    found = measure(case, 1, 1.0, weighed=True, training=training)
    assert found.chosen in found.seconds and found.seconds.keys() >= {"torch_fft", "dft_gemm"}
    assert found.regret >= 1.0 and found.bytes.keys() == {"auto", "torch_fft"}


def test_the_command_prints_and_judges(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    threads = torch.get_num_threads()
    given = [row(), row(1.1)]
    clocks: list[tuple[object, ...]] = []
    monkeypatch.setattr(regret, "measure", lambda *arguments: clocks.append(arguments[-2:]) or given[0])  # type: ignore
    asked = ["--shapes", "3", "--seed", "5", "--threads", str(threads)]
    assert main(asked) == 0
    found = capsys.readouterr()
    assert found.out.startswith("3 shapes; auto takes the fastest in 3\n") and "seed 5" in found.err
    assert main([*asked, "--json"]) == 0
    assert [json.loads(line)["chosen"] for line in capsys.readouterr().out.splitlines()] == ["plain"] * 3
    assert main([*asked, "--cpu-time"]) == 0
    assert main([*asked, "--autotune"]) == 0
    assert (
        clocks == [(time.perf_counter, False)] * 6 + [(time.process_time, False)] * 3 + [(time.perf_counter, True)] * 3
    )
    capsys.readouterr()
    for bad in (row(1.3), row(auto=5e7)):
        given[0] = bad
        assert main(asked) == 1
    assert main([*asked, "--time-budget", "-1"]) == 0
    found = capsys.readouterr()
    assert "no shape was measured" in found.out and "out of time after 0 of 3 shapes" in found.err


def test_the_regret_of_what_was_measured(monkeypatch: pytest.MonkeyPatch):
    def takes_torch_fft(runs, device):
        return Decision("torch_fft", f"planted among {len(runs)}")

    monkeypatch.setattr(autotuning, "_fastest", takes_torch_fft)
    case = load_operation("band_limited_conv2d").cases("smoke")[0][0]
    try:
        assert measure(case, 1, 0.0, False, tuned=True).chosen == "torch_fft"
    finally:
        autotuning.forget()
    assert measure(case, 1, 0.0, False).chosen != "torch_fft"
