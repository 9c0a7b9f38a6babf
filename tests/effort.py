"""How much a run tests: `make check` 0, one case of every test; `make test` 1; `make full` 8, more random shapes."""

from __future__ import annotations

import os
from typing import Any

import torch

EFFORT = int(os.environ.get("SPECTRAL_EFFORT", "1"))


def draws(quick: int) -> range:
    """Numbers of the draws of a test that draws `quick` of them in `make test`."""
    return range(quick * max(1, EFFORT))


def in_a_check(position: int, count: int) -> bool:
    """Whether the case at this position of a test's `count` cases is the one that `make check` runs."""
    return position == count // 2


def opcheck(operator: Any, arguments: tuple[Any, ...], *, symbols: bool = EFFORT > 1) -> dict[str, str]:
    """torch's own checks of a registered operator.

    symbols: trace it with sizes as symbols, which takes most of the time and which outputs whose size depends on data
    need. The tests of dynamic tracing compile public calls with such sizes in every run.
    """
    traced = "test_aot_dispatch_dynamic" if symbols else "test_aot_dispatch_static"
    checks = ["test_schema", "test_autograd_registration", "test_faketensor", traced]
    return torch.library.opcheck(operator, arguments, test_utils=checks)
