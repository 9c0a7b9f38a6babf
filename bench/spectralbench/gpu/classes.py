"""Accuracy classes: which subjects may be compared in speed.

A class follows from what an implementation declares: the largest relative error that it is allowed at a dtype. A
subject is only compared with rivals of its own class or a coarser one, so that no speed is bought with accuracy.
Maps in a half type put everyone in a coarse class, because everyone rounds the answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

from spectralkernels.declare import Operation

CLASSES: Mapping[str, float] = {"fp32": 1e-5, "bf16x3": 1e-4, "tf32": 5e-3, "bf16": 5e-2}
"""Name -> largest tolerance of its members, finest first. fp16 rounds to as many bits as TF32 and is in its class."""

PRODUCTS: Mapping[str, tuple[tuple[str, float], ...]] = {
    "fp32": (("fp32", 1), ("tf32", 3), ("bf16", 6)),
    "bf16x3": (("fp32", 1), ("tf32", 3), ("bf16", 3)),
    "tf32": (("fp32", 1), ("tf32", 1), ("fp16", 1)),
    "bf16": (("fp32", 1), ("tf32", 1), ("fp16", 1), ("bf16", 1)),
}
"""Matrix products that reach a class, and how many of them stand for one: a split operand takes several."""

assert all(fine < coarse for fine, coarse in pairwise(CLASSES.values()))


def accuracy_class(operation: Operation, implementation: str, dtype: str) -> str | None:
    """The class of an implementation at a dtype: the finest whose bound its tolerance keeps; None if it keeps none.

    Raises: RangeError on an unknown implementation.
    """
    subject = operation.subject(implementation)
    allowed = (subject.tolerance or operation.tolerance).relative.get(dtype)
    if allowed is None:
        return None
    return next((name for name, bound in CLASSES.items() if allowed <= bound), None)


def at_least_as_accurate(ours: str | None, theirs: str | None) -> bool:
    """Whether class `ours` is `theirs` or a finer one; False where either is unknown."""
    order = list(CLASSES)
    return ours in order and theirs in order and order.index(str(ours)) <= order.index(str(theirs))
