"""Kept from samples and from what stays: Python's collector of garbage, which looks through all that is alive."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collect now and then not until the end: in a sample it costs time, in a capture it may free another graph."""
    gc.collect()
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def short_collections() -> Iterator[None]:
    """Set aside what is older: modules alone make a collection last 0.1 s, and a history is millions of objects."""
    if gc.get_freeze_count():
        yield  # somebody else has, and will let it go
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
