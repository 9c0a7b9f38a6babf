"""pytest-benchmark: a real run in a clone, with a fake clock, so that every number is known."""

from __future__ import annotations

import json
import re
import shutil
import statistics
import subprocess
from pathlib import Path
from typing import Any

import pytest
from planted_clone import ROOT, Clone, make_clone

from spectralbench.environment import machine_name

SUITE = "bench/pytest_spectral"
RIGHT = "doubling and not wrong"


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    pytest.importorskip("pytest_benchmark")
    made = make_clone(tmp_path_factory.mktemp("pytest"))
    shutil.copy(ROOT / "tests/bench/fake_clock.py", made.path)
    return made


def run(clone: Clone, *arguments: str, slower: float = 1.0, **variables: str) -> subprocess.CompletedProcess[str]:
    options = ("-p", "fake_clock", "-p", "no:cacheprovider", "-rs", SUITE, *arguments)
    return clone.run("pytest", *options, FAKE_CLOCK_FACTOR=str(slower), **variables)


@pytest.fixture(scope="module")
def saved(clone: Clone) -> dict[str, Any]:
    """What pytest-benchmark saved of the planted operation, by test name."""
    done = run(clone, "-k", RIGHT, "--benchmark-save=base", "--benchmark-save-data")
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (clone.path / ".benchmarks").rglob("*_base.json")
    stored = json.loads(path.read_text(), parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    return {
        "stdout": done.stdout,
        "machine_info": stored["machine_info"],
        **{b["name"]: b for b in stored["benchmarks"]},
    }


@pytest.mark.slow
def test_names_and_groups_are_readable(saved: dict[str, Any]) -> None:
    found = saved["test_operation[doubling-twin-forward-float32-size=64,scale=1.0]"]
    assert found["group"] == "doubling size=64 scale=1"
    assert found["params"]["implementation"] == "twin"
    assert "UNSERIALIZABLE" not in json.dumps(found)


@pytest.mark.slow
def test_reported_times_are_exactly_the_samples_of_the_core(saved: dict[str, Any]) -> None:
    """pytest-benchmark subtracts two readings of its timer; with a start of zero nothing is lost."""
    found = saved["test_operation[doubling-product-forward-float32-size=64,scale=1.0]"]["stats"]
    times = {float(text) for text in found["data"]}
    assert len(times) == 3
    assert found["rounds"] == len(found["data"]) >= 5
    assert found["iterations"] == 1
    assert max(times) - min(times) == pytest.approx(1e-4)  # as fake_clock has it
    assert found["median"] == statistics.median(found["data"])


@pytest.mark.slow
def test_memory_and_errors_are_in_extra_info(saved: dict[str, Any]) -> None:
    found = saved["test_operation[doubling-product-forward-float32-size=64,scale=1.0]"]["extra_info"]
    assert found["approximation_error"] == pytest.approx(0.2)
    assert 0 <= found["rounding_error"] < 1e-6
    assert found["units"]["device_time"] == "second"
    assert "device_time" not in found
    assert all(isinstance(reason, str) for reason in found["unavailable"].values())


@pytest.mark.slow
def test_memory_and_errors_have_a_table(saved: dict[str, Any]) -> None:
    _, table = saved["stdout"].split("spectralbench: doubling, memory and errors")
    header, *rows = table.splitlines()[1:6]
    assert header.split()[:2] == ["case", "implementation"]
    assert "rounding_error" in header
    assert [re.split(" {2,}", row)[:2] for row in rows] == [
        [case, name]
        for case in ("doubling size=64 scale=1", "doubling size=1024 scale=1")
        for name in ("product", "twin")
    ]


@pytest.mark.slow
def test_machine_is_saved(saved: dict[str, Any]) -> None:
    assert saved["machine_info"]["spectral_machine"] == machine_name()


@pytest.mark.slow
def test_compare_fail_catches_a_slower_run_and_passes_an_equal_one(clone: Clone, saved: dict[str, Any]) -> None:
    compare = ("-k", RIGHT, "--benchmark-compare=*_base", "--benchmark-compare-fail=median:5%")
    assert run(clone, *compare).returncode == 0
    slower = run(clone, *compare, slower=1.2)
    assert slower.returncode != 0
    assert "Performance has regressed" in slower.stdout + slower.stderr


@pytest.mark.slow
def test_compare_fail_refuses_another_machine(clone: Clone, saved: dict[str, Any]) -> None:
    compare = ("-k", RIGHT, "--benchmark-compare=*_base", "--benchmark-compare-fail=median:5%")
    done = run(clone, *compare, SPECTRALBENCH_MACHINE="cpu-other-64c")
    assert done.returncode == 4
    assert "needs a run saved on this machine (cpu-other-64c)" in done.stdout + done.stderr


@pytest.mark.slow
def test_failed_fails_with_the_reason_and_skipped_skips_with_it(clone: Clone) -> None:
    done = run(clone, "-k", "doubling_wrong", "--spectral-profile", "quick")
    assert done.returncode == 1
    assert "wrong: the answer has relative L2 error" in done.stdout
    assert "no GPU here" in done.stdout
    assert "1 failed, 1 passed, 1 skipped" in done.stdout


@pytest.mark.slow
def test_implementations_can_be_chosen(clone: Clone) -> None:
    done = run(clone, "--spectral-impl", "twin", "-k", "doubling", "--collect-only", "-q")
    assert done.returncode == 0, done.stdout
    assert "doubling-twin-" in done.stdout
    assert "product" not in done.stdout


def test_an_unknown_implementation_is_answered_with_the_known_ones(clone: Clone) -> None:
    done = run(clone, "--spectral-impl", "nope")
    assert done.returncode == 4
    assert "unknown implementation 'nope'; known: " in done.stdout + done.stderr


def test_the_suite_is_outside_testpaths() -> None:
    testpaths = (ROOT / "pyproject.toml").read_text().split("testpaths")[1].splitlines()[0]
    assert "bench" not in testpaths
    assert Path(ROOT / SUITE).is_dir()
