"""Measuring processes that fork from one which has imported torch; a module of its own, since children import it."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

FORKED = multiprocessing.get_context("forkserver")
FORKED.set_forkserver_preload(["spectralbench.measure", "spectralbench.ceilings", "spectralkernels.ops"])


def in_environment(values: dict[str, str], target: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    """What a spawned process finds by itself."""
    os.environ.clear()
    os.environ.update(values)
    target(*arguments)


def forked(*, target: Callable[..., None], args: tuple[Any, ...], **options: Any) -> Any:
    return FORKED.Process(target=in_environment, args=(dict(os.environ), target, args), **options)


STAND_IN = SimpleNamespace(
    get_context=lambda method: SimpleNamespace(Pipe=FORKED.Pipe, Process=forked),
    parent_process=multiprocessing.parent_process,
)
"""Of `multiprocessing`, for those who start processes."""
