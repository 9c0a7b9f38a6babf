"""The sweep survives what a case does to its process, and what the outside does to the sweep."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fake_operations import SOURCES
from sweeps import ENVIRONMENT, by_name, files, request

from spectralbench import sweep
from spectralbench.journal import Journal
from spectralbench.record import Record
from spectralbench.sweep import Item
from spectralbench.worker import Setup, Task, Worker, WorkerBroken

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


def wait_for(condition: Any, seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def lines(results: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in results.glob("records/*/*.jsonl"))


# What cases do to their process


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


def test_those_whose_process_another_one_spoiled_are_measured_together_in_a_new_one(tmp_path: Path) -> None:
    names = ("spoils", "plain", "twin")
    done = sweep.run(request("spoiling", overrides={"rate": "0"}, implementations=names), tmp_path, ENVIRONMENT)
    found = by_name(done.records)
    assert (found["spoils"].failure, found["spoils"].reason) == ("crash", "an illegal memory access")
    # Plain comes first and has its number of the first time.
    together = [found[name].metric("device_time").samples[0] for name in ("plain", "twin")]  # type: ignore[union-attr]
    assert (together, found["twin"].status, found["twin"].reason) == ([3.0, 1.0], "measured", None)


@pytest.mark.slow
def test_a_case_that_hangs_is_killed_and_the_sweep_goes_on(tmp_path: Path) -> None:
    began = time.monotonic()
    slim = request("hanging", overrides={"rate": "0"}, timeout=1.0)
    found = by_name(sweep.run(slim, tmp_path, ENVIRONMENT).records)
    assert (found["hang"].failure, found["plain"].status) == ("timeout", "measured")
    assert "no result within 1 s" in str(found["hang"].reason)
    assert time.monotonic() - began < 60


def test_who_is_stuck_at_a_step_is_named_and_the_others_are_measured_together(tmp_path: Path) -> None:
    names = ("hang", "plain", "twin")
    slim = request("hanging", overrides={"rate": "0"}, implementations=names, patience=0.5)
    found = by_name(sweep.run(slim, tmp_path, ENVIRONMENT).records)
    why = "hang was at one step for more than 0.5 s, so its process was killed"
    assert (found["hang"].failure, found["hang"].reason) == ("timeout", why)
    for name in ("plain", "twin"):
        assert (found[name].status, found[name].reason) == ("measured", None)
        assert found[name].metric("device_time").samples[0] == 2.0  # type: ignore[union-attr]


def test_an_out_of_memory_says_how_much_was_asked_for(tmp_path: Path) -> None:
    done = sweep.run(request("greedy", "talking"), tmp_path, ENVIRONMENT)
    found = by_name(done.records)
    assert (found["wants_all"].failure, found["wants_all"].requested_bytes) == ("oom", 4 * 10**15)
    assert found["plain"].status == "measured"
    # An out-of-memory costs its process: the next case ran in another.
    pids = {record.metric("host_peak").samples[0] for record in done.records if record.status == "measured"}  # type: ignore[union-attr]
    assert len(pids) == 3


def test_an_exception_fails_its_implementation_alone(tmp_path: Path) -> None:
    found = by_name(sweep.run(request("raising"), tmp_path, ENVIRONMENT).records)
    assert (found["raises"].failure, found["raises"].reason) == ("error", "ValueError: size does not suit me")
    assert (found["plain"].status, found["plain"].reason) == ("measured", None)


@pytest.mark.parametrize(("clock", "processes"), [("clock_for", 1), ("worn_clock_for", 2)])
def test_a_process_in_which_a_capture_broke_off_measures_no_other_case(
    clock: str, processes: int, tmp_path: Path
) -> None:
    sources = replace(SOURCES, clock=f"fake_operations:{clock}")
    cases = {"operations": ("steady",), "implementations": ("plain",), "overrides": {"size": "1,2", "rate": "0"}}
    done = sweep.run(replace(request(), **cases, sources=sources), tmp_path, ENVIRONMENT)
    found = [metric.median for record in done.records if (metric := record.metric("host_peak"))]
    assert len(found) == 2 and len(set(found)) == processes


def test_a_worker_that_cannot_start_says_why() -> None:
    setup = Setup(replace(SOURCES, operations="fake_operations:no_such_name"), "cpu", None, None)
    case = sweep.plan(request("steady"))[0].case
    with Worker(setup) as worker, pytest.raises(WorkerBroken, match=r"did not start: AttributeError.*no_such_name"):
        worker.measure(Task("steady", case, "forward", ("plain",)), 60.0)


# What the outside does to a sweep


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
