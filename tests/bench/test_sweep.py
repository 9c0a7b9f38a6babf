"""The sweep expands what is asked for, survives what a case does to its process, and never measures twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from fake_operations import SOURCES

from spectralbench import sweep
from spectralbench.journal import Journal
from spectralbench.measure import Budget
from spectralbench.outcome import Skipped
from spectralbench.record import Record, RecordFile, from_outcome, read_tree
from spectralbench.sweep import Item, Request
from spectralbench.worker import Setup, State, Task, Worker, WorkerBroken
from spectralkernels.declare import PROFILES
from spectralkernels.errors import RangeError

ENVIRONMENT: dict[str, Any] = {"machine": "m", "commit": "abcdef1234567890", "dirty": None}
SMOKE = Request(profile="smoke", sources=SOURCES, timeout=60.0)

DRIVER = """
import sys
from pathlib import Path
from fake_operations import SOURCES
from spectralbench import sweep

if __name__ == "__main__":
    request = sweep.Request(operations=("slow",), profile="smoke", sources=SOURCES, processes=int(sys.argv[2]))
    done = sweep.run(request, Path(sys.argv[1]), {"machine": "m", "commit": "abcdef1234567890", "dirty": None})
    print(done.stopped, len(done.left))
"""


def request(*operations: str, **changes: Any) -> Request:
    return replace(SMOKE, operations=operations, **changes)


def files(results: Path) -> list[RecordFile]:
    return list(read_tree(results / "records"))


def by_name(records: Sequence[Record]) -> dict[str, Record]:
    return {record.implementation: record for record in records}


def driver(tmp_path: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """A sweep of the slow operation in a process that a test can kill."""
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    path = os.pathsep.join(entry for entry in (*sys.path, str(Path(__file__).parent)) if entry)
    return subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "results"), *arguments],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def lines(results: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in results.glob("records/*/*.jsonl"))


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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_metric_that_was_not_taken_before_is_taken_now(tmp_path: Path) -> None:
    sweep.run(request("talking"), tmp_path, ENVIRONMENT)
    assert sweep.preview(request("talking", metrics=("device_time", "nvml_memory")), tmp_path, ENVIRONMENT).left == []
    assert sweep.preview(request("talking", metrics=("saved_bytes",)), tmp_path, ENVIRONMENT).left


@pytest.mark.slow
def test_an_implementation_measured_later_says_that_it_was_not_interleaved(tmp_path: Path) -> None:
    sweep.run(request("steady", implementations=("plain",)), tmp_path, ENVIRONMENT)
    later = by_name(sweep.run(request("steady"), tmp_path, ENVIRONMENT).records)
    assert later["twin"].reason == "not interleaved with plain, stored by an earlier run"
    assert later["plain"].reason is None


# What cases do to their process


@pytest.mark.slow
def test_a_crash_names_the_guilty_one_and_the_others_keep_their_numbers(tmp_path: Path) -> None:
    done = sweep.run(request("crashing", "steady", overrides={"rate": "0"}), tmp_path, ENVIRONMENT)
    found = by_name([record for record in done.records if record.operation == "crashing"])
    assert (found["segfault"].failure, found["segfault"].reason) == ("crash", "its process was killed by SIGSEGV")
    for name in ("plain", "twin"):
        assert found[name].status == "measured"
        assert found[name].metric("device_time").samples[0] == 1.0  # type: ignore[union-attr]
        assert "timed alone, not interleaved" in str(found[name].reason)
    assert [record.status for record in done.records if record.operation == "steady"].count("measured") == 4
    assert sweep.preview(request("crashing", overrides={"rate": "0"}), tmp_path, ENVIRONMENT).left == []
    retry = sweep.preview(request("crashing", overrides={"rate": "0"}, retry=("crash",)), tmp_path, ENVIRONMENT)
    assert [item.implementations for item in retry.left] == [("segfault",)]


@pytest.mark.slow
def test_a_case_that_hangs_is_killed_and_the_sweep_goes_on(tmp_path: Path) -> None:
    began = time.monotonic()
    slim = request("hanging", overrides={"rate": "0"}, timeout=1.0)
    found = by_name(sweep.run(slim, tmp_path, ENVIRONMENT).records)
    assert (found["hang"].failure, found["plain"].status) == ("timeout", "measured")
    assert "no result within 1 s" in str(found["hang"].reason)
    assert time.monotonic() - began < 60


@pytest.mark.slow
def test_an_out_of_memory_says_how_much_was_asked_for(tmp_path: Path) -> None:
    done = sweep.run(request("greedy", "talking"), tmp_path, ENVIRONMENT)
    found = by_name(done.records)
    assert (found["wants_all"].failure, found["wants_all"].requested_bytes) == ("oom", 4 * 10**15)
    assert found["plain"].status == "measured"
    # An out-of-memory costs its process: the next case ran in another.
    pids = {record.metric("host_peak").samples[0] for record in done.records if record.status == "measured"}  # type: ignore[union-attr]
    assert len(pids) == 3


@pytest.mark.slow
def test_an_exception_fails_its_implementation_alone(tmp_path: Path) -> None:
    found = by_name(sweep.run(request("raising"), tmp_path, ENVIRONMENT).records)
    assert (found["raises"].failure, found["raises"].reason) == ("error", "ValueError: size does not suit me")
    assert (found["plain"].status, found["plain"].reason) == ("measured", None)


@pytest.mark.slow
def test_a_worker_that_cannot_start_says_why() -> None:
    setup = Setup(replace(SOURCES, operations="fake_operations:no_such_name"), "cpu", None, None)
    case = sweep.plan(request("steady"))[0].case
    with Worker(setup) as worker, pytest.raises(WorkerBroken, match=r"did not start: AttributeError.*no_such_name"):
        worker.measure(Task("steady", case, "forward", ("plain",)), 60.0)


# What the outside does to a sweep


@pytest.mark.slow
def test_the_time_budget_stops_before_a_case_and_says_what_is_left(tmp_path: Path) -> None:
    done = sweep.run(request("steady", time_budget=0.0), tmp_path, ENVIRONMENT)
    assert (done.stopped, len(done.left), done.records) == ("time budget", 4, [])
    assert sweep.run(request("steady", time_budget=600.0), tmp_path, ENVIRONMENT).stopped is None


class _Interrupting:
    """Presses Ctrl-C when the second case starts."""

    def start(self, item: Item, done: int, total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    def finish(self, item: Item, records: Sequence[Record]) -> None:
        assert records


@pytest.mark.slow
def test_an_interrupt_leaves_a_usable_file_and_says_what_is_left(tmp_path: Path) -> None:
    done = sweep.run(request("steady"), tmp_path, ENVIRONMENT, _Interrupting())
    assert (done.stopped, len(done.left)) == ("interrupt", 3)
    (file,) = files(tmp_path)
    assert (len(file.records), file.damage) == (3, ())
    resumed = sweep.run(request("steady"), tmp_path, ENVIRONMENT)
    assert (resumed.reused, len(resumed.records), resumed.stopped) == (3, 12, None)


@pytest.mark.slow
def test_kill_9_loses_the_case_in_flight_at_most_and_the_worker_dies_too(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    killed = driver(tmp_path, "1", FAKE_PID_FILE=str(pid_file))
    wait_for(lambda: lines(tmp_path / "results") >= 5)  # the environment and two cases of two implementations
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    (file,) = files(tmp_path / "results")
    assert file.damage == ()
    before = len(file.records)
    assert 4 <= before < 12
    worker = int(pid_file.read_text())
    wait_for(lambda: not _alive(worker))
    resumed = driver(tmp_path, "1")
    output, errors = resumed.communicate(timeout=120)
    assert output == "None 0\n", errors
    (file,) = files(tmp_path / "results")
    assert (len(file.records), file.damage) == (12, ())
    assert len({(record.case_id, record.implementation) for record in file.records}) == 12


@pytest.mark.slow
def test_a_run_beside_another_writes_a_file_of_its_own(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "records" / "m", ENVIRONMENT) as other:
        done = sweep.run(request("talking"), tmp_path, ENVIRONMENT)
        other.append(done.records)
    assert other.path != done.path
    assert [(len(file.records), file.damage) for file in files(tmp_path)] == [(2, ()), (2, ())]


@pytest.mark.slow
def test_two_processes_at_once_lose_nothing(tmp_path: Path) -> None:
    runs = [driver(tmp_path, "1"), driver(tmp_path, "1")]
    for one in runs:
        output, errors = one.communicate(timeout=120)
        assert output == "None 0\n", errors
    stored = [
        (record.case_id, record.implementation) for file in files(tmp_path / "results") for record in file.records
    ]
    assert len(set(stored)) == 12
    assert [file.damage for file in files(tmp_path / "results") if file.damage] == []


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
