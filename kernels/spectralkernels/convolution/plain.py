"""The options of a library convolution, for operations whose kernel is made from other parameters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from spectralkernels.checks import as_integers, check_choice, check_sizes, checked_steps
from spectralkernels.convolution.geometry import reach
from spectralkernels.errors import RangeError, ShapeError

Padding = Literal["same", "valid"] | int | tuple[int, int]


def checked_options(stride: Any, padding: Any, dilation: Any) -> dict[str, Any]:
    """Stride, padding and dilation as torch.nn.functional.conv2d takes them."""
    stride, dilation = checked_steps("stride", stride, 2), _pair("dilation", dilation, least=1)
    if not isinstance(padding, str):
        return {"stride": stride, "padding": _pair("padding", padding, least=0), "dilation": dilation}
    check_choice("padding", padding, ("same", "valid"))
    if padding == "same" and stride != (1, 1):
        raise RangeError(f"padding must be 'valid' or numbers where there is a stride, got 'same' and stride={stride}")
    return {"stride": stride, "padding": padding, "dilation": dilation}


def check_kernel_fits(size: Sequence[int], kernel: Sequence[int], stride: Any, padding: Any, dilation: Any) -> None:
    """Raise where no output is left; stride, padding, dilation: of `checked_options`."""
    zeros = (0, 0) if isinstance(padding, str) else padding
    far = list(reach(kernel, dilation))
    padded = [side + 2 * zero for side, zero in zip(size, zeros, strict=True)]
    if padding != "same" and any(taps > side for taps, side in zip(far, padded, strict=True)):
        raise ShapeError(f"a kernel that reaches over {far} is larger than the padded map {padded}; pad more")


def _pair(name: str, value: Any, least: int) -> tuple[int, ...]:
    pair = as_integers(name, value if isinstance(value, (tuple, list)) else (value, value), (2,))
    if min(pair) < least:
        raise RangeError(f"{name} must be at least {least}, got {value}")
    check_sizes(name, pair, value)
    return pair
