"""What `spectralbench.gpu` does first: promises before breadth, graphs before eager, within the time it is given."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from spectralbench import sweep
from spectralbench.gpu import correctness
from spectralbench.gpu.budget import ENDS, StageBudget, hard_stop
from spectralbench.gpu.classes import CLASSES, PRODUCTS, accuracy_class, at_least_as_accurate
from spectralbench.gpu.plan import EAGER, GRAPHS, MEMORY_PROCESS, STAGES, Phase, select
from spectralbench.gpu.sweeping import measure_phases
from spectralbench.gpu.targets import PUBLISHED, TARGETS, Saved, SpeedUp, rank
from spectralbench.journal import Kept
from spectralbench.sweep import Request, Sweep
from spectralbench.worker import Sources, State
from spectralkernels.ops import load_operations

SOURCES = Sources(clock="test_gpu_plan:no_clock")
REQUEST = Request(profile="gpu", device="cuda", processes=1, sources=SOURCES)
ENVIRONMENT: dict[str, Any] = {"machine": "m", "commit": "abcdef1234567890", "dirty": None}


def no_clock(device: str, cache: str, launch: str) -> None:
    """A plan needs no clock."""


class Now:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture(scope="module")
def items() -> list[sweep.Item]:
    return sweep.plan(REQUEST)


def test_every_promise_has_a_case_in_the_gpu_profile_and_rivals_that_its_block_times(items: list[sweep.Item]) -> None:
    for target in (*TARGETS, *PUBLISHED):
        held = [
            item
            for item in items
            if target.place.holds(item.operation.name, dict(item.case.params), item.case.dtype, item.pass_)
        ]
        assert len(held) == 1, f"{target.name}: {[item.label for item in held]}"
        subjects = {item.operation.subject(name).role: name for item in held for name in item.implementations}
        assert "kernel" in subjects
        if isinstance(target, SpeedUp):
            assert set(target.rivals) <= set(held[0].implementations)
            for rival in target.rivals:
                accuracy = accuracy_class(held[0].operation, rival, held[0].case.dtype)
                assert at_least_as_accurate(accuracy, target.accuracy), (target.name, rival, accuracy)
        elif isinstance(target, Saved):
            assert {"kernel_size", "groups", "in_channels", "height"} <= dict(held[0].case.params).keys()


def test_the_promises_come_first_and_in_their_order(items: list[sweep.Item]) -> None:
    chosen = select(Phase("targets", GRAPHS), {}, items)
    ranks = [rank(item.operation.name, item.case, item.pass_) for item in chosen]
    assert ranks == sorted(ranks) and ranks[0] == 0 and max(ranks) < len(TARGETS)
    others = select(Phase("others", GRAPHS, 3), {}, items)
    weighed = select(Phase("weighed", GRAPHS), {}, items)
    assert weighed and all(item in chosen for item in weighed)
    for target in TARGETS:
        held = [target.place.holds(i.operation.name, dict(i.case.params), i.case.dtype, i.pass_) for i in weighed]
        assert any(held) or not isinstance(target, Saved), "what a network saves is weighed early"
    assert len(chosen) + len(others) == len(items)
    assert {item.replicate for item in others} == {3}
    assert select(Phase("everything", EAGER), {}, items)[: len(chosen)] == chosen


def test_phases_put_graphs_before_eager_and_promises_before_breadth() -> None:
    phases = [(stage, phase) for stage in ENDS for phase in STAGES["cuda"].get(stage, ())]
    assert phases[0] == ("targets", Phase("targets", GRAPHS))
    before_breadth = [phase for stage, phase in phases if stage != "breadth"]
    assert all(phase.which in ("targets", "weighed") for phase in before_breadth)
    timed = {phase.process for phase in before_breadth if phase.states == GRAPHS}
    assert timed == {0, 1, 2}, "three processes before breadth"
    assert set(STAGES["cuda"]) < set(ENDS), "every stage has a share of the time"
    weighing = {phase.process for _, phase in phases if "device_time" not in phase.metrics}
    timing = {phase.process for _, phase in phases if "device_time" in phase.metrics}
    assert max(timing) < MEMORY_PROCESS and not weighing & timing, "what weighs must not stand for what times"
    for device, stages in STAGES.items():
        every = [phase for chosen in stages.values() for phase in chosen]
        assert len(set(every)) == len(every), device


def test_what_compiles_for_seconds_waits_for_a_phase_of_its_own(items: list[sweep.Item]) -> None:
    plain = select(Phase("targets", GRAPHS), {}, items)
    late = select(Phase("targets", GRAPHS, compiled=True), {}, items)
    assert not any(item.operation.subject(name).compiled for item in plain for name in item.implementations)
    assert any(item.operation.subject(name).compiled for item in late for name in item.implementations)
    # It keeps the others in its items, so that records say what was not interleaved.
    assert all(set(p.implementations) <= set(q.implementations) for p, q in zip(plain, late, strict=True))


def test_an_excluded_implementation_is_not_timed_in_that_pass(items: list[sweep.Item]) -> None:
    excluded = {("band_limited_conv2d", "torch_fft", "both"): "wrong"}
    for item in select(Phase("everything", GRAPHS), excluded, items):
        if item.operation.name == "band_limited_conv2d" and item.pass_ == "both":
            assert "torch_fft" not in item.implementations
    assert any(
        "torch_fft" in item.implementations
        for item in select(Phase("targets", GRAPHS), excluded, items)
        if item.pass_ == "forward"
    )


def test_stages_end_in_order_and_leave_their_rest_to_the_next() -> None:
    now = Now()
    budget = StageBudget(100.0, now)
    assert list(ENDS.values()) == sorted(ENDS.values()) and list(ENDS.values())[-1] == 1.0
    assert budget.left("targets") == pytest.approx(100 * ENDS["targets"])
    now.seconds += 50
    assert budget.left("targets") == pytest.approx(100 * ENDS["targets"] - 50) and budget.left("targets") < 0
    assert budget.left("replicates") == pytest.approx(100 * ENDS["replicates"] - 50)
    assert budget.elapsed() == 50
    with pytest.raises(Exception, match="must be a number of seconds above 0, got -1"):
        StageBudget(-1.0)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [60.0, 200.0, 540.0])
def test_no_phase_is_begun_without_time(seconds: float, tmp_path: Path) -> None:
    now = Now()
    budget = StageBudget(seconds, now)
    asked: list[Request] = []

    def run(request: Request, out: Path, environment: Any, progress: Any, known: Kept) -> Sweep:
        assert request.time_budget is not None and request.time_budget >= 10.0
        assert request.time_budget <= budget.left("breadth") + 1e-9
        assert request.timeout <= request.time_budget
        asked.append(request)
        now.seconds += min(40.0, request.time_budget)
        return Sweep([], 0, [], [])

    phases = STAGES["cuda"]["breadth"]
    notes = measure_phases(
        "breadth", phases, REQUEST, budget, tmp_path, ENVIRONMENT, {}, Kept([], [], []), run=run, say=lambda text: None
    )
    assert budget.elapsed() <= ENDS["breadth"] * seconds + 1e-9
    assert [request.states for request in asked] == [phase.states for phase in phases[: len(asked)]]
    assert len(notes) == len(phases), "nothing was stored, so every phase has something left, and says so"
    assert sum("not begun, no time left" in note for note in notes) == len(phases) - len(asked)


def test_the_hard_stop_ends_work_that_would_not_end() -> None:
    before = signal.getsignal(signal.SIGALRM)
    began = time.monotonic()
    with hard_stop(0.05) as stop:
        time.sleep(30)
    assert stop.fired and time.monotonic() - began < 10
    with hard_stop(30) as stop:
        pass
    assert not stop.fired
    with pytest.raises(KeyboardInterrupt), hard_stop(30):
        raise KeyboardInterrupt
    assert signal.getsignal(signal.SIGALRM) == before


def test_classes_follow_from_tolerances() -> None:
    operations = load_operations()
    conv, multiply = operations["band_limited_conv2d"], operations["masked_multiply"]
    wanted = {
        ("torch_fft", "float32"): "fp32",
        ("dft_triton", "float32"): "fp32",
        ("direct_uncompressed_tf32", "float32"): "tf32",
        ("dft_triton_tf32", "float32"): "tf32",
        ("dft_triton_bf16x3", "float32"): "bf16x3",
        ("dft_triton_bf16", "float32"): "bf16",
        ("torch_fft", "bfloat16"): "bf16",
        ("fused_depthwise_bf16", "bfloat16"): "bf16",
    }
    names = {found.name for found in conv.subjects}
    for (name, dtype), accuracy in wanted.items():
        if name in names:
            assert accuracy_class(conv, name, dtype) == accuracy, name
    assert accuracy_class(multiply, "real_bmm_fp16", "complex64") == "tf32"
    assert accuracy_class(multiply, "real_bmm_fp16", "complex128") is None
    assert set(PRODUCTS) == set(CLASSES)


def test_only_as_accurate_or_finer_may_be_compared() -> None:
    assert at_least_as_accurate("fp32", "tf32") and at_least_as_accurate("tf32", "tf32")
    assert not at_least_as_accurate("bf16", "tf32")
    assert not at_least_as_accurate(None, "bf16") and not at_least_as_accurate("fp32", None)


def test_a_check_is_made_once_and_the_cases_of_every_operation_come_early() -> None:
    jobs = sweep.plan(correctness.checks(REQUEST))
    checks = [job.identity(name, State()) for job in jobs for name in job.implementations]
    assert len(set(checks)) == len(checks) > 10 * len(jobs), "a case is drawn and worked out once for all who answer it"
    operations = load_operations()
    assert len({job.operation.name for job in jobs[: len(operations)]}) == len(operations)
    shares = [correctness._uncompiled(jobs, start, 3) for start in range(3)]
    assert sorted(item.label for share in shares for item in share) == sorted(item.label for item in jobs)
    assert not any(operations[check.operation].subject(check.implementation).compiled for check in checks)


@pytest.mark.parametrize(("cores", "gigabytes", "wanted"), [(16, 139, 8), (16, 24, 2), (6, 80, 3), (1, 8, 1)])
def test_as_many_processes_check_as_cores_and_memory_allow(
    cores: int, gigabytes: int, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr("torch.cuda.current_device", lambda: 0)
    properties = SimpleNamespace(total_memory=gigabytes << 30)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda device: properties)
    assert correctness.processes("cuda") == wanted
    assert correctness.processes("cpu") == 1


def test_seeds_and_other_parameters_do_not_hide_a_promise(items: list[sweep.Item]) -> None:
    item = select(Phase("targets", GRAPHS), {}, items)[0]
    assert rank(item.operation.name, replace(item.case, seed=7), item.pass_) == 0
    assert rank("threshold_spectrum", item.case, item.pass_) == len(TARGETS)
