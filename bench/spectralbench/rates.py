"""What a time makes of an operation's floor: bytes and flops per second, and the percent of it reached (no torch)."""

from __future__ import annotations

from collections.abc import Mapping

FORWARD_PASSES: Mapping[str, int] = {"forward": 1, "both": 2, "backward": 1}
"""Forward passes that a pass takes at least: a training step reads x, w, dy and writes y, dx, dw, twice the bytes, and
does at least twice the arithmetic."""


RATED = frozenset({"float32", "complex64"})
"""Types that are rated: ceilings are of float32, so that coarser ones have none."""


def achieved(cost: Mapping[str, int], pass_: str, seconds: float) -> tuple[float, float]:
    """Bytes and flops of the floor per second; of the floor, whatever the implementation really moves.

    cost: bytes_read, bytes_written and flops of a forward pass. seconds: of a call, greater than 0.
    """
    times = FORWARD_PASSES[pass_]
    return times * (cost["bytes_read"] + cost["bytes_written"]) / seconds, times * cost["flops"] / seconds


def share(
    cost: Mapping[str, int], pass_: str, seconds: float, bytes_per_second: float, flops_per_second: float
) -> float:
    """The floor's time over `seconds`: 1 is as fast as the ceilings allow, the longer of bytes and flops."""
    moved, computed = achieved(cost, pass_, seconds)
    return max(moved / bytes_per_second, computed / flops_per_second)
