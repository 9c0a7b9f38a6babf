"""The tests that need a CUDA device, where pytest and the tests are at hand."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

MARK = "mark.cuda"


def run(tests: Path, report: Path, timeout: float) -> dict[str, Any]:
    """Run the tests marked `cuda` below `tests` in a process of their own: JUnit XML to `report`, talk beside it.

    Only files that hold such tests are collected, so that what other files import need not be installed.
    Returns: {"ran": bool, "reason": why not, or what stopped it, "passed", "failed", "skipped": counts,
    "failures": names and messages}.
    """
    missing = unavailable(tests)
    if missing is not None:
        return {"ran": False, "reason": missing}
    files = sorted(str(path) for path in tests.rglob("test_*.py") if MARK in path.read_text(encoding="utf-8"))
    command = [sys.executable, "-m", "pytest", "-v", "-m", "cuda", "-p", "no:cacheprovider"]
    command += [f"--junitxml={report}", *files]
    talk = report.with_suffix(".txt")
    with talk.open("wb") as file:
        process = subprocess.Popen(command, cwd=tests.parent, stdout=file, stderr=file, start_new_session=True)
    try:
        code = process.wait(timeout)
    except subprocess.TimeoutExpired:
        return {"ran": False, "reason": f"stopped after {timeout:.0f} s, the time of the stage; see {talk.name}"}
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if not report.exists():
        return {"ran": False, "reason": f"pytest ended with status {code} and wrote no report; see {talk.name}"}
    return {"ran": True, "reason": None, **counts(report)}


def unavailable(tests: Path) -> str | None:
    """Why the tests cannot run here, or None."""
    if importlib.util.find_spec("pytest") is None:
        return "pytest is not installed"
    return None if tests.is_dir() else f"there is no folder {tests}"


def counts(report: Path) -> dict[str, Any]:
    """How many tests of a JUnit report passed, failed or were skipped, and what the failed ones said."""
    passed = failed = skipped = 0
    failures = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        wrong = [child for child in case if child.tag in ("failure", "error")]
        if wrong:
            failed += 1
            message = re.sub(r"\s+", " ", wrong[0].get("message") or wrong[0].text or "").strip()
            failures.append(f"{case.get('classname')}::{case.get('name')}: {message[:300]}")
        elif any(child.tag == "skipped" for child in case):
            skipped += 1
        else:
            passed += 1
    return {"passed": passed, "failed": failed, "skipped": skipped, "failures": failures}
