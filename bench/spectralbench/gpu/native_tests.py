"""The tests that need a CUDA device, where pytest and the tests are at hand: a result is kept per test."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from spectralbench.gpu import kept_tests

MARK = "mark.cuda"
PROCESSES = 8
"""At most so many tests at once: they share one device."""


def run(tests: Path, kept: Path, timeout: float) -> dict[str, Any]:
    """Run the tests marked `cuda` below `tests` that `kept` has no result of, spread over the cores.

    kept: see `kept_tests`; the talk goes beside it. Only files that hold such tests are collected, so that what other
    files import need not be installed.
    Returns: {"ran": whether there are results, "reason": why not, or what stopped it, "passed", "failed", "skipped":
    counts, "failures": names and messages}.
    """
    missing = unavailable(tests)
    if missing is not None:
        return {"ran": False, "reason": missing}
    files = sorted(str(path) for path in tests.rglob("test_*.py") if MARK in path.read_text(encoding="utf-8"))
    command = [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider"]
    command += ["-p", kept_tests.__name__, *_spread(), *files]
    talk = kept.with_suffix(".txt")
    environment = {**os.environ, kept_tests.FILE: str(kept)}
    with talk.open("ab") as file:
        process = subprocess.Popen(
            command, cwd=tests.parent, env=environment, stdout=file, stderr=file, start_new_session=True
        )
    try:
        code = process.wait(timeout)
        # 5: nothing to run, because every test has its result.
        reason = None if code in (0, 1, 5) else f"pytest ended with status {code}; see {talk.name}"
    except subprocess.TimeoutExpired:
        reason = f"stopped after {timeout:.0f} s, the time of the stage; run again for the rest"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    found = kept_tests.read(kept)
    return {"ran": bool(found), "reason": reason or (None if found else "no test is marked cuda"), **_counts(found)}


def unavailable(tests: Path) -> str | None:
    """Why the tests cannot run here, or None."""
    if importlib.util.find_spec("pytest") is None:
        return "pytest is not installed"
    return None if tests.is_dir() else f"there is no folder {tests}"


def _spread() -> list[str]:
    if importlib.util.find_spec("xdist") is None:
        return []
    return ["-n", str(max(1, min(PROCESSES, (os.cpu_count() or 1) // 2)))]


def _counts(found: dict[str, dict[str, str]]) -> dict[str, Any]:
    totals = Counter(result["outcome"] for result in found.values())
    failures = [f"{name}: {result['why']}" for name, result in found.items() if result["outcome"] == "failed"]
    return {**{outcome: totals[outcome] for outcome in ("passed", "failed", "skipped")}, "failures": failures}
