"""Names for the stages of an operation (pad, transform, crop, multiply, restore, inverse), seen by torch.profiler only.

A stage costs one question while nothing profiles (0.1 us), and is not there under torch.compile.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch

PREFIX = "stage: "
"""How the name of a stage begins in a trace."""

_Arguments = ParamSpec("_Arguments")
_Made = TypeVar("_Made")
_NOTHING = nullcontext()


def stage(name: str) -> AbstractContextManager[Any]:
    """A context that a running torch.profiler records under `PREFIX` + name, and nothing else notices."""
    return torch.profiler.record_function(PREFIX + name) if _profiled() else _NOTHING


def staged(name: str) -> Callable[[Callable[_Arguments, _Made]], Callable[_Arguments, _Made]]:
    """Decorator: every call of the function is the stage `name`."""

    def decorate(function: Callable[_Arguments, _Made]) -> Callable[_Arguments, _Made]:
        @wraps(function)
        def call(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> _Made:
            with stage(name):
                return function(*args, **kwargs)

        return call

    return decorate


def unseen(*functions: Callable[..., _Made]) -> tuple[Callable[..., _Made], ...]:
    """Functions of stages without them, for a caller who knows that nothing profiles."""
    return tuple(function.__wrapped__ for function in functions)  # type: ignore[attr-defined]


def _profiled() -> bool:
    return not torch.compiler.is_compiling() and torch._C._autograd._profiler_enabled()
