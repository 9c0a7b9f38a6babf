"""Which tests a run is of, and fixtures for all: a fresh seed that a failure prints, allocations that start as NaN."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest
import torch
from effort import EFFORT, in_a_check
from guarded_interpreter import repair_interpreter

from spectralkernels.launch import HAS_TRITON, forget_plans, interpreted


def pytest_configure() -> None:
    """A pytest that a test starts is no worker of this one: pytest-benchmark would measure nothing in it."""
    os.environ.pop("PYTEST_XDIST_WORKER", None)
    if HAS_TRITON and interpreted():
        repair_interpreter()


def pytest_report_header() -> str:
    other = "TRITON_INTERPRET=0" if interpreted() else "TRITON_INTERPRET=1"
    return f"kernels under Triton's interpreter: {'only these' if interpreted() else 'another run'} ({other} pytest)"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With TRITON_INTERPRET=1 the run is of the tests marked `interpreter`, otherwise of all others."""
    ours, others = [], []
    for item in items:
        (ours if (item.get_closest_marker("interpreter") is not None) == interpreted() else others).append(item)
    if interpreted() and not HAS_TRITON:
        for item in ours:
            item.add_marker(pytest.mark.skip(reason="triton is not installed"))
    if EFFORT == 0:
        ours, left = _a_part(ours)
        others += left
    config.hook.pytest_deselected(items=others)
    items[:] = ours


def _a_part(items: list[pytest.Item]) -> tuple[list[pytest.Item], list[pytest.Item]]:
    """(one case of every test that is not slow, the rest)."""
    by_test: dict[str, list[pytest.Item]] = {}
    for item in items:
        by_test.setdefault(item.nodeid.partition("[")[0], []).append(item)
    chosen = {
        item
        for cases in by_test.values()
        for position, item in enumerate(cases)
        if in_a_check(position, len(cases)) and item.get_closest_marker("slow") is None
    }
    return [item for item in items if item in chosen], [item for item in items if item not in chosen]


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """A fresh seed, printed with the captured output of a failure; SPECTRAL_SEED=N replays it."""
    value = int(os.environ.get("SPECTRAL_SEED", random.SystemRandom().randrange(2**31)))
    print(f"SPECTRAL_SEED={value}")
    torch.manual_seed(value)
    return value


@pytest.fixture(autouse=True)
def _plans_of_changed_rules_are_forgotten(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "monkeypatch" in request.fixturenames:
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
