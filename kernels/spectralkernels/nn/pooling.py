"""Poolings and dropout in the spectrum, as layers: fixed sizes, real strides, learned strides."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from spectralkernels.checks import as_flag, as_number, check_tensor
from spectralkernels.errors import RangeError
from spectralkernels.ops.diff_stride2d import diff_stride2d
from spectralkernels.ops.frequency_dropout2d import frequency_dropout2d
from spectralkernels.ops.spectral_pool2d import spectral_pool2d
from spectralkernels.resampling import check_rule


class SpectralPool2d(nn.Module):
    """Keep the low frequencies of maps: `spectral_pool2d` as a layer, with frequency dropout on the way if wanted.

    stride: one real number >= 1 or (vertical, horizontal); or size: (height, width) of the answer.
    even: what becomes of the frequency M / 2 of an even size: "average", "code", "alias", "drop" or "raw".
    dropout: None, or the least share of the band that is left while training, `lowest` of `FrequencyDropout2d`.
    legacy_scale, compat: as in `spectral_pool2d`.
    """

    def __init__(
        self,
        stride: float | tuple[float, float] | None = None,
        *,
        size: tuple[int, int] | None = None,
        even: str = "average",
        dropout: float | None = None,
        legacy_scale: bool = False,
        compat: bool = False,
    ) -> None:
        super().__init__()
        if (size is None) == (stride is None):
            raise RangeError(f"SpectralPool2d takes either stride or size, got stride={stride}, size={size}")
        if stride is not None:
            _check_strides("stride", stride)
        check_rule(even)
        _check_lowest(0.0 if dropout is None else dropout)
        self.stride, self.size, self.even, self.dropout = stride, size, even, dropout
        self.legacy_scale, self.compat = as_flag("legacy_scale", legacy_scale), as_flag("compat", compat)

    def forward(self, input: Tensor) -> Tensor:
        check_tensor("input", input)
        share = _draw(input, self.dropout) if self.training and self.dropout is not None else None
        options: dict[str, Any] = {"legacy_scale": self.legacy_scale, "compat": self.compat}
        return spectral_pool2d(input, self.size, stride=self.stride, even=self.even, share=share, **options)

    def extra_repr(self) -> str:
        what = f"stride={self.stride}" if self.size is None else f"size={self.size}"
        dropout = "" if self.dropout is None else f", dropout={self.dropout}"
        return f"{what}, even={self.even!r}{dropout}"


class FrequencyDropout2d(nn.Module):
    """A low-pass of maps at a cut-off t (1 + N // 2), t ~ U(lowest, 1), drawn for every batch while training.

    lowest: 0 <= lowest <= 1; `masks.dropout_floor` has the published schedule. The draw is torch's on the device of
    the maps, and nothing is read on the host. In eval() maps pass as they are.
    """

    def __init__(self, lowest: float = 0.3) -> None:
        super().__init__()
        _check_lowest(lowest)
        self.lowest = lowest

    def forward(self, input: Tensor) -> Tensor:
        check_tensor("input", input)
        return frequency_dropout2d(input, _draw(input, self.lowest)) if self.training else input

    def extra_repr(self) -> str:
        return f"lowest={self.lowest}"


class DiffStride2d(nn.Module):
    """Pooling whose strides are parameters: `diff_stride2d` as a layer.

    One layer may serve several branches, which then share its strides, as the two of a residual block do.
    strides: (S_h, S_w) to begin with, >= 1. smoothness, cropping, legacy_scale, compat: as in `diff_stride2d`; with
        cropping the size follows the strides, for which they are read at every call. The parameter may leave its
        range in training; what is used is held within it.
    """

    def __init__(
        self,
        strides: float | tuple[float, float] = 2.0,
        *,
        smoothness: float = 4.0,
        cropping: bool = True,
        legacy_scale: bool = False,
        compat: bool = False,
    ) -> None:
        super().__init__()
        both = _check_strides("strides", strides)
        if not as_number("smoothness", smoothness) > 0.0:
            raise RangeError(f"smoothness must be above 0, got {smoothness}")
        self.strides = nn.Parameter(torch.tensor(both, dtype=torch.float32))
        self.smoothness, self.cropping = smoothness, as_flag("cropping", cropping)
        self.legacy_scale, self.compat = as_flag("legacy_scale", legacy_scale), as_flag("compat", compat)

    def forward(self, input: Tensor) -> Tensor:
        options: dict[str, Any] = {"cropping": self.cropping, "legacy_scale": self.legacy_scale, "compat": self.compat}
        return diff_stride2d(input, self.strides, smoothness=self.smoothness, **options)

    def extra_repr(self) -> str:
        return f"smoothness={self.smoothness}, cropping={self.cropping}"


def _check_strides(name: str, strides: Any) -> tuple[float, float]:
    """(vertical, horizontal); RangeError unless there is one finite number >= 1, or two."""
    both = tuple(strides) if isinstance(strides, (tuple, list)) else (strides, strides)
    steps = tuple(as_number(name, step) for step in both)
    if len(steps) != 2 or not all(1.0 <= step < math.inf for step in steps):
        raise RangeError(f"{name} must be one number >= 1 or two, (vertical, horizontal), got {strides}")
    return steps[0], steps[1]


def _check_lowest(lowest: float) -> None:
    lowest = as_number("the least share of the band", lowest)
    if not 0.0 <= lowest <= 1.0:
        raise RangeError(f"the least share of the band must lie in [0, 1], got {lowest}")


def _draw(x: Tensor, lowest: float) -> Tensor:
    return torch.rand((), device=x.device) * (1.0 - lowest) + lowest
