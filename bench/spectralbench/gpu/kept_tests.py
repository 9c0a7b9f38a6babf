"""A pytest plugin that keeps the result of every test the moment it has one, and leaves out what has one already.

The environment variable SPECTRALBENCH_KEPT_TESTS names the file, one JSON line a test: {"test", "outcome", "why"}.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

FILE = "SPECTRALBENCH_KEPT_TESTS"


def read(path: Path) -> dict[str, dict[str, str]]:
    """The results of a file by test; a line that a kill has torn is left out, so that its test runs again."""
    found: dict[str, dict[str, str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            result = json.loads(line)
        except json.JSONDecodeError:
            continue
        found[result["test"]] = result
    return found


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    """Leave out the tests that have a result."""
    known = read(Path(os.environ[FILE]))
    done = [item for item in items if item.nodeid in known]
    if done:
        config.hook.pytest_deselected(items=done)
        items[:] = [item for item in items if item.nodeid not in known]


def pytest_runtest_logreport(report: Any) -> None:
    """Keep a result; with pytest-xdist only its controller, which hears of every test, does."""
    if "PYTEST_XDIST_WORKER" in os.environ or not (report.when == "call" or report.outcome != "passed"):
        return
    why = re.sub(r"\s+", " ", report.longreprtext).strip()[-300:] if report.outcome == "failed" else ""
    line = json.dumps({"test": report.nodeid, "outcome": report.outcome, "why": why}) + "\n"
    path = Path(os.environ[FILE])
    torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8") as file:
        file.write("\n" * torn + line)
