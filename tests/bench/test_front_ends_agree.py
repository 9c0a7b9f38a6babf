"""The command line, asv and pytest-benchmark give the same number for the same case under the same fake clock."""

from __future__ import annotations

import json
import math
import os
import runpy
import statistics
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import fake_clock
import pytest
import torch
from asv_spectral import operations
from fake_cuda import FakeCuda
from planted_clone import ROOT

from spectralbench import ceilings, measure, sweep, timing
from spectralbench.clock import usual_cache
from spectralbench.environment import capture
from spectralbench.metrics import load_metrics
from spectralbench.outcome import Outcome, Skipped
from spectralbench.worker import Sources, State, Task, Timers, answer
from spectralkernels.ops import load_operation

OPERATION = "threshold_spectrum"
Numbers = dict[tuple[str, str], dict[str, float]]


@pytest.fixture(scope="module")
def by_command_line(tmp_path_factory: pytest.TempPathFactory) -> Numbers:
    """What `spectralbench run` stores, from its worker process: medians by implementation and case."""
    request = sweep.Request((OPERATION,), profile="asv", sources=Sources(clock="fake_clock:clock_of_a_worker"))
    with pytest.MonkeyPatch.context() as patch:
        # To be put back: a worker's clock is made in this process, too.
        patch.setattr(timing, "INSPECTIONS", timing.INSPECTIONS)
        done = sweep.run(request, tmp_path_factory.mktemp("results"), capture(ROOT))
    assert done.records
    return {
        (record.implementation, record.case_id): {found.metric: found.median for found in record.measurements}
        for record in done.records
        if record.status == "measured"
    }


@pytest.fixture(scope="module")
def by_asv(tmp_path_factory: pytest.TempPathFactory) -> Numbers:
    """What the methods return that asv calls."""
    suite: Any = operations.suite(load_operation(OPERATION), load_metrics())()
    methods = {name.removeprefix("track_"): getattr(suite, name) for name in dir(suite) if name.startswith("track_")}
    numbers: Numbers = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "clock_for", fake_clock.clock_for)
        patch.setattr(timing, "INSPECTIONS", fake_clock.LOOKS)
        patch.chdir(tmp_path_factory.mktemp("asv"))
        for case, _ in load_operation(OPERATION).cases("asv"):
            varying = [case[name] for name in suite.param_names[1:]]
            for implementation in suite.params[0]:
                found = {name: method(implementation, *varying) for name, method in methods.items()}
                medians = {name: _median(value) for name, value in found.items()}
                if not math.isnan(medians["device_time"]):  # a kernel that does not run here
                    numbers[implementation, case.id] = medians
    return numbers


@pytest.fixture(scope="module")
def by_pytest(tmp_path_factory: pytest.TempPathFactory) -> Numbers:
    """What pytest-benchmark writes as JSON."""
    pytest.importorskip("pytest_benchmark")
    written = tmp_path_factory.mktemp("pytest") / "numbers.json"
    command = ("-p", "fake_clock", "-p", "no:cacheprovider", "bench/pytest_spectral", "-k", OPERATION)
    paths = os.pathsep.join(str(ROOT / part) for part in ("kernels", "bench", "tests/bench"))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *command, f"--benchmark-json={written}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {
        (found["params"]["implementation"], found["params"]["case"]): {
            "device_time": found["stats"]["median"],
            **{name: value for name, value in found["extra_info"].items() if name not in ("units", "unavailable")},
        }
        for found in json.loads(written.read_text())["benchmarks"]
    }


@pytest.mark.slow
def test_the_three_front_ends_know_the_same_cases(
    by_command_line: Numbers, by_asv: Numbers, by_pytest: Numbers
) -> None:
    assert by_command_line.keys() == by_asv.keys() == by_pytest.keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    "metric", ["device_time", "rounding_error", "approximation_error", "stored_bytes", "kept_fraction"]
)
def test_the_three_front_ends_give_the_same_number(
    metric: str, by_command_line: Numbers, by_asv: Numbers, by_pytest: Numbers
) -> None:
    values = set()
    for key, numbers in by_asv.items():
        # Records keep six digits.
        assert by_command_line[key][metric] == pytest.approx(numbers[metric], rel=1e-5), key
        assert by_pytest[key][metric] == pytest.approx(numbers[metric], rel=1e-12), key
        values.add(numbers[metric])
    assert len(values) > 1, "numbers that are all equal show nothing"


def test_the_three_front_ends_time_a_gpu_with_the_same_cache_against_the_same_ceilings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    FakeCuda().install(monkeypatch)
    monkeypatch.setattr(ceilings, "measure_ceilings", lambda clock, device, dtype: (clock.cache, device, dtype))
    seen: list[tuple[Any, ...]] = []

    def measure_states(operation: Any, case: Any, names: Any, timers: Any, **rest: Any) -> list[dict[str, Outcome]]:
        seen.extend((clock.cache, clock.launch, ceiling, rest["device"]) for clock, ceiling in timers)
        return [dict.fromkeys(names, Skipped("not wanted")) for _ in timers]

    monkeypatch.setattr(measure, "measure_states", measure_states)
    request = sweep.Request((OPERATION,), profile="asv", device="cuda", states=(State("eager", usual_cache("cuda")),))
    item, setup = sweep.plan(request)[0], sweep.setup_of(request)
    task = Task(OPERATION, item.case, item.pass_, item.implementations, item.states)
    answer(task, {OPERATION: item.operation}, setup, Timers(setup))
    operations._measure(operations._grid(item.operation, tuple(load_metrics())), item.case, item.pass_)
    options = {"spectral_profile": "asv", "spectral_impl": [], "spectral_device": "cuda", "spectral_cases": None}
    front_end = runpy.run_path(str(ROOT / "bench/pytest_spectral/conftest.py"))
    core = front_end["Core"](SimpleNamespace(getoption=options.__getitem__))
    row = next(row for row in core.rows() if row[0] == OPERATION)
    core.select(*row)
    core.outcome(*row)
    assert seen == [("cold", "eager", ("cold", "cuda", torch.float16), "cuda")] * 3


def _median(value: Any) -> float:
    return statistics.median(value["samples"]) if isinstance(value, dict) else value
