"""Kept from samples and from what stays: Python's collector of garbage, which looks through all that is alive."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

_WITNESS = [object()]
"""What the collector looks through unless somebody froze it. A count of what is frozen says less: Python 3.12 sets its
own immortal objects aside, hundreds of them, whenever it collects."""


def others_froze() -> bool:
    """Whether somebody called `gc.freeze` after this module was imported, and has not let go."""
    return bool(gc.get_freeze_count()) and not any(one is _WITNESS for one in gc.get_objects())


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
    if others_froze():
        yield  # and they will let it go
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
