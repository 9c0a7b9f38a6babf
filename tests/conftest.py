"""Which tests a run is of, and fixtures for all: a fresh seed that a failure prints, allocations that start as NaN."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from effort import DRAW, EFFORT, covering, in_a_check
from guarded_interpreter import repair_interpreter

from spectralkernels.launch import HAS_TRITON, forget_plans, interpreted

LEFT_OUT = pytest.StashKey[tuple[int, int]]()


def pytest_configure() -> None:
    """A pytest that a test starts is no worker of this one: pytest-benchmark would measure nothing in it."""
    os.environ.pop("PYTEST_XDIST_WORKER", None)
    if HAS_TRITON and interpreted():
        repair_interpreter()


def pytest_report_header() -> list[str]:
    other = "TRITON_INTERPRET=0" if interpreted() else "TRITON_INTERPRET=1"
    mine = f"kernels under Triton's interpreter: {'only these' if interpreted() else 'another run'} ({other} pytest)"
    part = f"SPECTRAL_DRAW={DRAW} drew the cases of large matrices; SPECTRAL_EFFORT=8 runs all"
    device = [] if torch.cuda.is_available() else ["tests marked cuda: on another machine; torch finds no CUDA device"]
    return [mine, *device, part] if EFFORT <= 1 else [mine, *device]


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Half of the time of a short run under the interpreter would go to importing files that have no test for it."""
    tests = collection_path.suffix == ".py" and collection_path.name.startswith("test_")
    return True if interpreted() and tests and "interpreter" not in collection_path.read_text() else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With TRITON_INTERPRET=1 the run is of the tests marked `interpreter`, otherwise of all others that run here.

    Of those it takes a part that EFFORT decides, where no single test is named.
    """
    ours, others, here = [], [], torch.cuda.is_available()
    for item in items:
        mine = (item.get_closest_marker("interpreter") is not None) == interpreted()
        (ours if mine and (here or item.get_closest_marker("cuda") is None) else others).append(item)
    if interpreted() and not HAS_TRITON:
        for item in ours:
            item.add_marker(pytest.mark.skip(reason="triton is not installed"))
    if EFFORT <= 1 and not any("::" in each for each in config.args):
        chosen = [item for cases in _by_test(ours).values() for item in (_one if EFFORT == 0 else _drawn)(cases)]
        left = set(ours).difference(chosen)
        ours = [item for item in ours if item not in left]
        others += left
        config.stash[LEFT_OUT] = len(left), len(left) + len(ours)
    config.hook.pytest_deselected(items=others)
    items[:] = ours


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    """Modules and tests stay to the end: looking through them takes a third of a second, and every clock collects."""
    gc.collect()
    gc.freeze()


def _by_test(items: list[pytest.Item]) -> dict[str, list[pytest.Item]]:
    by_test: dict[str, list[pytest.Item]] = {}
    for item in items:
        by_test.setdefault(item.nodeid.partition("[")[0], []).append(item)
    return by_test


def _one(cases: list[pytest.Item]) -> list[pytest.Item]:
    """One case of a test that is not slow."""
    return [
        item
        for position, item in enumerate(cases)
        if in_a_check(position, len(cases)) and item.get_closest_marker("slow") is None
    ]


def _drawn(cases: list[pytest.Item]) -> list[pytest.Item]:
    """Every case, or the drawn part of a test that is marked so."""
    mark = cases[0].get_closest_marker("drawn")
    return cases if mark is None else covering(cases, lambda item: _values(item, mark.args), DRAW)


def _values(item: Any, names: tuple[str, ...]) -> list[Hashable]:
    """What the arguments of a case are, these or all; as they print, because not all can be compared."""
    return [(name, repr(item.callspec.params[name])) for name in names or item.callspec.params]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker of pytest-xdist is done: every one collects the same cases."""
    node.config.stash[LEFT_OUT] = node.workeroutput.get("left_out", (0, 0))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(LEFT_OUT, (0, 0))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    left, of = config.stash.get(LEFT_OUT, (0, 0))
    if left:
        terminalreporter.write_line(f"{left} of {of} cases left out at SPECTRAL_EFFORT={EFFORT}; `make full` runs all")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A fresh seed, printed with the captured output of a failure; SPECTRAL_SEED=N replays it."""
    value = int(os.environ.get("SPECTRAL_SEED", random.SystemRandom().randrange(2**31)))
    print(f"SPECTRAL_SEED={value}")
    torch.manual_seed(value)
    return value


@pytest.fixture(autouse=True)
def _plans_of_changed_rules_are_forgotten(request: pytest.FixtureRequest) -> Iterator[None]:
    changed = "monkeypatch" in request.fixturenames
    if changed:
        forget_plans()
    yield
    if changed:
        forget_plans()


@pytest.fixture
def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.empty and its relatives return NaN, so that an output cell that is never written is seen."""

    def poison(name: str) -> None:
        original = getattr(torch, name)

        def filled(*args, **kwargs):
            made = original(*args, **kwargs)
            return made.fill_(float("nan")) if made.is_floating_point() or made.is_complex() else made.fill_(-77)

        monkeypatch.setattr(torch, name, filled)

    for name in ("empty", "empty_like", "empty_strided"):
        poison(name)
