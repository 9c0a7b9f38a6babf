"""The sweep expands what is asked for, stores what it measured, and never measures twice."""

from __future__ import annotations

import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from fake_operations import SOURCES
from sweeps import ENVIRONMENT, SMOKE, by_name, files, request

from spectralbench import sweep
from spectralbench.journal import Journal
from spectralbench.measure import Budget
from spectralbench.outcome import Skipped
from spectralbench.record import from_outcome
from spectralbench.worker import State
from spectralkernels.declare import PROFILES
from spectralkernels.errors import RangeError

# What is asked for


def test_a_plan_is_operations_times_cases_times_implementations() -> None:
    items = sweep.plan(request("steady"))
    assert [item.case.id for item in items] == [
        f"size={size},rate={rate},exact=True,grid=tight" for size in (1, 2) for rate in (0, 0.5)
    ]
    assert {item.implementations for item in items} == {("plain", "twin", "gpu_only")}


def test_without_names_every_operation_is_planned() -> None:
    assert {item.operation.name for item in sweep.plan(SMOKE)} == set(sweep.resolve(SOURCES.operations)())


def test_processes_default_to_the_profile_and_repeat_the_whole_list() -> None:
    assert {item.replicate for item in sweep.plan(request("steady"))} == {0}
    items = sweep.plan(request("steady", profile="study"))
    assert [item.replicate for item in items] == sorted([0, 1, 2, 3, 4] * 4)
    assert len(sweep.plan(request("steady", processes=3))) == 12


def test_overrides_take_the_type_of_the_parameter() -> None:
    overrides = {"rate": "1,0.25", "size": "7", "exact": "false", "grid": "fast"}
    items = sweep.plan(request("steady", overrides=overrides, seed=11))
    values = [dict(item.case.params) for item in items]
    assert values == [{"size": 7, "rate": rate, "exact": False, "grid": "fast"} for rate in (1.0, 0.25)]
    assert [type(value["rate"]) for value in values] == [float, float]
    same = sweep.plan(request("steady", overrides={"rate": "0.0"}))
    assert {item.case.id for item in same} < {item.case.id for item in sweep.plan(request("steady"))}
    assert {item.case.seed for item in items} == {11}


def test_an_implementation_narrows_the_plan() -> None:
    assert {item.implementations for item in sweep.plan(request("steady", implementations=("twin",)))} == {("twin",)}
    names = {item.operation.name for item in sweep.plan(replace(SMOKE, implementations=("segfault",)))}
    assert names == {"crashing"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"operations": ("steady", "fourier")}, r"unknown operation 'fourier'; known: steady, crashing"),
        (
            {"operations": ("steady",), "implementations": ("cuda",)},
            r"unknown implementation 'cuda'; known: plain, twin",
        ),
        (
            {"operations": ("steady",), "overrides": {"beta": "1"}},
            r"unknown parameter 'beta'.*known: size, rate, exact",
        ),
        ({"profile": "huge"}, r"unknown profile 'huge'; known: smoke, quick"),
        ({"metrics": ("speed",)}, r"unknown metric 'speed'; known: .*device_time"),
        ({"operations": ("steady",), "overrides": {"size": "1.5"}}, r"size takes integers, such as 1, got '1.5'"),
        ({"operations": ("steady",), "overrides": {"rate": "half"}}, r"rate takes numbers, such as 0, got 'half'"),
        ({"operations": ("steady",), "overrides": {"exact": "maybe"}}, r"exact takes true or false, got 'maybe'"),
        ({"operations": ("steady",), "profile": "quick"}, r"nothing to run: profile 'quick' of steady"),
    ],
    ids=["operation", "implementation", "parameter", "profile", "metric", "integer", "number", "truth", "nothing"],
)
def test_a_wrong_name_is_answered_with_the_known_ones(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RangeError, match=message):
        sweep.plan(replace(SMOKE, **changes))


def test_a_clock_that_the_device_has_not_is_refused_before_anything_runs() -> None:
    sources = replace(SOURCES, clock="spectralbench.clock:clock_for")
    with pytest.raises(RangeError, match="cold"):
        sweep.plan(request("steady", sources=sources, states=(State(cache="cold"),)))


def test_an_unknown_or_absent_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spectralbench.environment.device_kind", lambda: "cpu")
    assert sweep.choose_device(None) == "cpu"
    with pytest.raises(RangeError, match="unknown device 'tpu'; known: cpu, cuda"):
        sweep.choose_device("tpu")
    with pytest.raises(RangeError, match="no CUDA device here; use --device cpu"):
        sweep.choose_device("cuda")


def test_every_profile_has_processes_and_a_budget() -> None:
    assert set(PROFILES) == set(sweep.PROCESSES) == set(sweep.BUDGETS)
    for fields in sweep.BUDGETS.values():
        Budget(**fields)  # type: ignore[arg-type]


# What is measured and stored


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """Results of one sweep, and the environment it ran in."""
    environment = {**ENVIRONMENT, "device": "cpu", "cores": 2, "threads": 2, "torch": "2.13.0", "onednn": "3.12.0",
                   "cpu_flags": "avx avx2 bmi1 f16c fma"}  # fmt: skip
    results = tmp_path_factory.mktemp("here")
    sweep.run(request("talking"), results, environment)
    return results, environment


def test_a_sweep_stores_every_outcome_with_its_identity(tmp_path: Path) -> None:
    done = sweep.run(request("steady", processes=2), tmp_path, ENVIRONMENT)
    (file,) = files(tmp_path)
    assert (file.path, file.damage, done.stopped, done.left) == (done.path, (), None, [])
    assert file.records == tuple(done.records)
    assert len(file.records) == 2 * 4 * 3
    first, _, skipped = file.records[:3]
    assert (first.operation, first.operation_version, first.implementation, first.role) == (
        "steady",
        3,
        "plain",
        "baseline",
    )
    assert dict(first.case) == {"size": 1, "rate": 0, "exact": True, "grid": "tight"}
    assert (first.fft_size, first.pass_, first.profile, first.seed) == ((1,), "forward", "smoke", 0)
    assert first.cost == {"bytes_read": 8, "bytes_written": 8, "flops": 1}
    assert (skipped.status, skipped.reason) == ("skipped", "needs CUDA")
    # One process per replicate, kept warm from case to case, and not this one.
    pids = {(r.replicate, r.metric("host_peak").samples[0]) for r in file.records if r.status == "measured"}  # type: ignore[union-attr]
    assert len(pids) == 2
    assert float(os.getpid()) not in {pid for _, pid in pids}


def test_running_again_measures_only_what_is_missing(tmp_path: Path) -> None:
    sweep.run(request("steady", overrides={"size": "1"}), tmp_path, ENVIRONMENT)
    todo = sweep.preview(request("steady"), tmp_path, ENVIRONMENT)
    assert [item.case["size"] for item in todo.left] == [2, 2]
    assert todo.reused == 6
    sweep.run(request("steady"), tmp_path, ENVIRONMENT)
    again = sweep.run(request("steady"), tmp_path, ENVIRONMENT)
    assert (again.left, again.reused, again.path) == ([], 12, None)
    (file,) = files(tmp_path)
    assert len(file.records) == 12
    for change in ({"commit": "fedcba"}, {"dirty": "0123"}):
        assert len(sweep.preview(request("steady"), tmp_path, {**ENVIRONMENT, **change}).left) == 4
    assert len(sweep.preview(request("steady", seed=1), tmp_path, ENVIRONMENT).left) == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"threads": 1}, "threads 2 -> 1"),
        ({"torch": "2.14.0", "cores": 1}, "cores 2 -> 1, torch 2.13.0 -> 2.14.0"),
        ({"cpu_flags": "avx avx2 bmi1 fma avx512f"}, "cpu_flags +avx512f -f16c"),
        ({"device": "cuda", "gpu_uuid": "GPU-1"}, "device cpu -> cuda, gpu_class none -> GPU"),
        ({"onednn": None}, "onednn 3.12.0 -> none"),
    ],
    ids=["threads", "upgrade", "flags", "device", "unknown"],
)
def test_what_was_measured_in_other_conditions_does_not_serve(
    here: tuple[Path, dict[str, Any]], change: dict[str, Any], words: str
) -> None:
    results, environment = here
    found = sweep.preview(request("talking"), results, {**environment, **change})
    assert (len(found.left), found.reused, dict(found.elsewhere)) == (2, 0, {words: 2})


def test_what_moves_no_number_serves_and_remeasure_asks_again(here: tuple[Path, dict[str, Any]]) -> None:
    results, environment = here
    same = {**environment, "load": 9.9, "gpu_uuid": "GPU-2", "started_at": "2026-11-29T00:00:00+00:00"}
    found = sweep.preview(request("talking"), results, same)
    assert (found.left, found.reused, found.elsewhere) == ([], 2, {})
    again = sweep.preview(request("talking", remeasure=True), results, environment)
    assert (len(again.left), again.reused, again.left[0].apart) == (2, 0, ())


def test_another_card_of_the_same_class_goes_on_where_the_first_stopped(tmp_path: Path) -> None:
    card = {**ENVIRONMENT, "device": "cuda", "gpu_uuid": "GPU-1", "gpu_power_limit_mw": 700000}
    item, *_ = sweep.plan(request("talking"))
    record = from_outcome(
        Skipped("made up"),
        **{**asdict(item.identity(item.implementations[0], State())), "case": dict(item.case.params)},
        role="baseline", replicate=0, profile="smoke", recorded_at="2026-11-28T00:00:00+00:00",
    )  # fmt: skip
    with Journal.open(tmp_path / "records" / "m", card) as journal:
        journal.append([record])

    def reused(**change: Any) -> int:
        return sweep.preview(request("talking"), tmp_path, {**card, **change}).reused

    assert (reused(), reused(gpu_uuid="GPU-2")) == (1, 1)
    assert (reused(gpu_uuid="MIG-3"), reused(gpu_power_limit_mw=500000)) == (0, 0)


def test_a_metric_that_was_not_taken_before_is_taken_now(tmp_path: Path) -> None:
    sweep.run(request("talking"), tmp_path, ENVIRONMENT)
    assert sweep.preview(request("talking", metrics=("device_time", "nvml_memory")), tmp_path, ENVIRONMENT).left == []
    assert sweep.preview(request("talking", metrics=("saved_bytes",)), tmp_path, ENVIRONMENT).left


def test_an_implementation_measured_later_says_that_it_was_not_interleaved(tmp_path: Path) -> None:
    sweep.run(request("steady", implementations=("plain",)), tmp_path, ENVIRONMENT)
    later = by_name(sweep.run(request("steady"), tmp_path, ENVIRONMENT).records)
    assert later["twin"].reason == "not interleaved with plain, stored by an earlier run"
    assert later["plain"].reason is None
