"""What `impl="auto"` looks for where one implementation is faster and another one keeps less: `optimise="memory"`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import get_args

from spectralkernels.checks import kind
from spectralkernels.declare import Aim, Operation
from spectralkernels.errors import RangeError

AIMS: tuple[Aim, ...] = get_args(Aim)


def aimed(operation: Operation) -> Mapping[Aim, Operation]:
    """The operation with `auto` looking for each of what may be asked of it."""
    return {aim: replace(operation, auto=partial(operation.auto, optimise=aim)) for aim in operation.aims}


def checked_aim(optimise: object) -> Aim:
    """RangeError unless it is "time" or "memory"."""
    for aim in AIMS:
        if isinstance(optimise, str) and optimise == aim:
            return aim
    got = repr(optimise) if isinstance(optimise, str) else kind(optimise)
    raise RangeError(f"optimise must be 'time' or 'memory', got {got}")
