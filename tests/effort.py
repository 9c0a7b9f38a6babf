"""How much a run tests: `make check` 0, one case of every test; `make test` 1; `make full` 8, more random shapes."""

from __future__ import annotations

import os

EFFORT = int(os.environ.get("SPECTRAL_EFFORT", "1"))


def draws(quick: int) -> range:
    """Numbers of the draws of a test that draws `quick` of them in `make test`."""
    return range(quick * max(1, EFFORT))


def in_a_check(position: int, count: int) -> bool:
    """Whether the case at this position of a test's `count` cases is the one that `make check` runs."""
    return position == count // 2
