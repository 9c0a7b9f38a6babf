"""How many random shapes a test draws: a quick number in `make test`, eight times that in `make full`."""

from __future__ import annotations

import os

EFFORT = int(os.environ.get("SPECTRAL_EFFORT", "1"))


def draws(quick: int) -> range:
    """Numbers of the draws of a test that draws `quick` of them in `make test`."""
    return range(quick * EFFORT)
