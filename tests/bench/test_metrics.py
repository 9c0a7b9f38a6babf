"""Each metric gives the number that its file promises, or says why there is none."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_cuda import FakeAllocator
from torch import Tensor
from toy_operation import case, implementation, product, toy

from spectralbench.clock import FakeClock
from spectralbench.measure import Budget, measure_case
from spectralbench.metrics import Metric, Trial, Unavailable, columns, host_peak, load_metrics
from spectralbench.outcome import Measured

ROOT = Path(__file__).resolve().parents[2]
SI = {"second", "byte", "joule", "1"}
EXPECTED = {
    "device_time", "saved_bytes", "peak_allocated", "peak_reserved", "nvml_memory", "nvml_process_memory", "host_peak",
    "rounding_error", "rounding_error_max", "approximation_error", "approximation_error_sym", "achieved_compression",
    "kept_fraction", "stored_bytes", "energy", "saved_behind_relu", "parameter_bytes", "host_time",
}  # fmt: skip


def of(name: str, operation: Any = None, size: int = 24, **options: Any) -> tuple[float, ...] | str:
    """Samples of one metric for the first implementation of an operation, or the reason why there are none."""
    operation = operation or toy(implementation("a"))
    first = operation.implementations[0].name
    outcome = measure_case(
        operation, case(size=size), [first], metrics=[name], clock=FakeClock(), budget=Budget(2, 2), **options
    )[first]
    assert isinstance(outcome, Measured), outcome
    reasons = dict(outcome.unavailable)
    return reasons[name] if name in reasons else outcome.measurements[0].samples


def on_gpu(run: Callable[[], object] = lambda: None, times: tuple[float, ...] = ()) -> Trial:
    """A trial that claims to have run on a GPU; only what a test of a GPU metric reads."""
    return Trial(
        operation=toy(), case=case(), implementation=implementation("a"), device="cuda", pass_="forward", inputs={},
        run=run, forward=None, output=None, dense=torch.empty(0), expected=torch.empty(0), ideal=lambda: None,
        times=times,
    )  # fmt: skip


def test_every_file_declares_a_metric_with_si_unit_and_version() -> None:
    folder = Path(sys.modules["spectralbench.metrics"].__path__[0])
    found = load_metrics()
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == found.keys() == EXPECTED
    for name, metric in found.items():
        assert isinstance(metric, Metric)
        assert metric.name == name
        assert metric.unit in SI
        assert metric.version == 1
        assert 0 < metric.rule.practical < 1 and metric.axis.words


def test_columns_stand_by_their_place_and_one_may_hold_the_memory_of_either_device() -> None:
    titles = dict(columns())
    assert list(titles) == ["saved", "peak memory", "rounding error", "approx. error", "achieved c", "kept"]
    assert titles["peak memory"] == ("peak_allocated", "host_peak")
    places = [metric.column for metric in load_metrics().values() if metric.column]
    assert len({column.place for column in places}) == len(places), "no two metrics ask for one place"


def test_errors_are_two_and_the_symmetric_one_is_bounded() -> None:
    rounding, approximation, symmetric = of("rounding_error"), of("approximation_error"), of("approximation_error_sym")
    assert not isinstance(rounding, str) and 0 < rounding[0] < 1e-6
    assert approximation == (pytest.approx(0.25),)
    assert symmetric == (pytest.approx(0.25 / 1.75),)
    assert of("rounding_error_max")[0] < 1e-6  # type: ignore[operator]


def test_errors_against_nothing_say_so() -> None:
    lossless = toy(implementation("a"), ideal=None)
    for name in ("approximation_error", "approximation_error_sym"):
        assert of(name, lossless) == "toy loses nothing, so it has no uncompressed answer"
    zero = toy(implementation("a"), ideal=lambda x, w: 0.0 * (x.double() * w.double()))
    assert "zero" in str(of("approximation_error", zero))
    assert of("approximation_error_sym", zero) == (1.0,)


def test_facts_of_the_output_come_from_the_operation() -> None:
    facts = {"achieved_compression": 0.25, "kept_fraction": 0.75, "stored_bytes": 96, "parameter_bytes": 64}
    operation = toy(implementation("a"), observe=lambda found, output: facts)
    for name, value in facts.items():
        assert of(name, operation) == (float(value),)
        assert of(name) == "toy does not report it"


def saved(call: Callable[[Tensor, Tensor], Tensor], reference: Any, **options: Any) -> Any:
    return of("saved_bytes", toy(implementation("a", call, **options), reference=reference, ideal=None))


def test_t34_saved_bytes_count_each_storage_once_and_whole() -> None:
    x, w, half = 2 * 24 * 4, 24 * 4, 24 * 4
    assert saved(lambda x, w: x * w, lambda x, w: x.double() * w.double()) == (x + w,)
    assert saved(lambda x, w: x * x, lambda x, w: x.double() ** 2) == (x,)
    assert saved(lambda x, w: x.sigmoid(), lambda x, w: x.double().sigmoid()) == (x,)
    assert saved(lambda x, w: x + w, lambda x, w: x.double() + w.double()) == (0,)
    assert saved(lambda x, w: x[:1] * w, lambda x, w: x[:1].double() * w.double()) == (x + w,), "a view keeps all"
    assert saved(lambda x, w: x[:1].clone() * w, lambda x, w: x[:1].double() * w.double()) == (half + w,)


def test_saved_bytes_leave_out_branches_that_lead_nowhere() -> None:
    def call(x: Tensor, w: Tensor) -> Tensor:
        x.exp()
        return x * w

    assert saved(call, lambda x, w: x.double() * w.double()) == (2 * 24 * 4 + 24 * 4,)


def test_saved_bytes_are_those_of_training_whatever_the_pass() -> None:
    for pass_ in ("forward", "both", "backward"):
        assert of("saved_bytes", pass_=pass_) == of("saved_bytes")


def test_what_is_saved_behind_a_relu_counts_its_answer_once() -> None:
    """What keeps the map itself costs nothing more; what keeps something made of it pays for both."""
    x, w = 2 * 24 * 4, 24 * 4

    def behind(call: Callable[[Tensor, Tensor], Tensor]) -> Any:
        return of("saved_behind_relu", toy(implementation("a", call), reference=call_in_double(call), ideal=None))

    def call_in_double(call: Callable[[Tensor, Tensor], Tensor]) -> Any:
        return lambda x, w: call(x.double(), w.double())

    assert behind(lambda x, w: x * w) == (x + w,)
    assert behind(lambda x, w: (2 * x) * w) == (x + x + w,)
    assert behind(lambda x, w: x + w) == (x,)
    assert "differentiates no map x" in str(of("saved_behind_relu", toy(implementation("a", gradients=("w",)))))


def test_saved_bytes_of_sparse_tensors_are_their_parts() -> None:
    def call(x: Tensor, w: Tensor) -> Tensor:
        index = torch.tensor([[0, 1], [1, 0]])
        rows = torch.sparse_coo_tensor(index, torch.tensor([2.0, 3.0]), (2, 2), check_invariants=True)
        return torch.sparse.mm(rows.coalesce(), x)

    def reference(x: Tensor, w: Tensor) -> Tensor:
        return torch.stack((2 * x[1], 3 * x[0])).double()

    assert saved(call, reference) == (2 * 2 * 8 + 2 * 4,)


def test_saved_bytes_leave_out_what_is_prepared_once() -> None:
    def prepare(x: Tensor, w: Tensor) -> dict[str, Tensor]:
        return {"x": x, "w": w, "frozen": (0.75 * w.detach()).sigmoid()}

    def reference(x: Tensor, w: Tensor) -> Tensor:
        return x.double() * (0.75 * w.double()).sigmoid()

    assert saved(lambda x, w, frozen: x * frozen, reference, prepare=prepare, gradients=("x",)) == (24 * 4,)


def test_saved_bytes_count_once_what_every_step_prepares() -> None:
    def prepare(x: Tensor, w: Tensor) -> dict[str, Tensor]:
        return {"x": x, "gate": w.sigmoid()}

    def reference(x: Tensor, w: Tensor) -> Tensor:
        return x.double() * w.double().sigmoid()

    assert saved(lambda x, gate: x * gate, reference, prepare=prepare) == (2 * 24 * 4 + 24 * 4,)


def test_saved_bytes_need_something_to_differentiate() -> None:
    assert of("saved_bytes", toy(implementation("a", gradients=()))) == "a has nothing to differentiate"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_host_peak_sees_what_a_call_allocates_and_frees_again() -> None:
    size = 1 << 22

    def hungry(x: Tensor, w: Tensor) -> Tensor:
        scratch = torch.ones(8 * size)
        return product(x, w) * scratch[0]

    samples = of("host_peak", toy(implementation("a", hungry)))
    assert len(samples) == host_peak.REPEATS
    assert min(samples) == pytest.approx(8 * size * 4, rel=0.05)  # type: ignore[type-var]
    assert max(of("host_peak")) < size  # type: ignore[type-var]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def crumbs(x: Tensor, w: Tensor) -> Tensor:
    scratch = [torch.ones(1 << 14) for _ in range(200)]  # 64 KiB each, far below what malloc maps apart
    return product(x, w) * scratch[-1][0]


@pytest.mark.slow
def test_host_peak_sees_memory_that_the_allocator_would_have_kept() -> None:
    """In a fresh process, as a sweep's worker is: other tests would have left this one's heap in pieces."""
    program = "import test_metrics as t; print(*t.of('host_peak', t.toy(t.implementation('a', t.crumbs))))"
    paths = os.pathsep.join(str(ROOT / part) for part in ("kernels", "bench", "tests/bench"))
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    samples = [float(text) for text in done.stdout.split()]
    assert min(samples) == pytest.approx(200 << 16, rel=0.15)


def test_host_peak_says_where_it_cannot_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path, *arguments: Any, **options: Any) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "write_text", denied)
    assert "cannot be reset here ([Errno 13] Permission denied); it needs Linux" in str(of("host_peak"))


def test_gpu_metrics_say_why_there_are_none_on_a_cpu() -> None:
    for name in ("peak_allocated", "peak_reserved"):
        assert of(name) == "CUDA only; on a CPU see host_peak"
    for name in ("nvml_memory", "nvml_process_memory", "energy"):
        assert str(of(name)).startswith("no NVML: ")
    with pytest.raises(Unavailable, match="on a GPU see peak_allocated"):
        load_metrics()["host_peak"].sample(on_gpu())


@pytest.mark.parametrize("name", ["peak_allocated", "peak_reserved"])
def test_t34_gpu_peaks_are_over_what_was_held_before(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    allocator = FakeAllocator(monkeypatch)
    assert load_metrics()[name].sample(on_gpu(allocator.call)) == [300.0]


@pytest.mark.cuda
def test_gpu_metrics_on_a_real_device() -> None:
    def hungry(x: Tensor, w: Tensor) -> Tensor:
        scratch = torch.ones(1 << 26, device=x.device)  # 256 MiB
        return product(x, w) * scratch[0]

    operation = toy(implementation("a", hungry))
    names = ["peak_allocated", "peak_reserved", "nvml_memory", "energy"]
    outcome = measure_case(operation, case(), ["a"], device="cuda", metrics=names, budget=Budget(2, 2))["a"]
    assert isinstance(outcome, Measured)
    found = {each.metric: each.median for each in outcome.measurements}
    assert found["peak_allocated"] >= 1 << 28
    assert found["peak_reserved"] >= 1 << 28
    for name in ("nvml_memory", "energy"):
        assert found.get(name, 1.0) > 0, dict(outcome.unavailable)
