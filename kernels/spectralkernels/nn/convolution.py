"""Twins of torch.nn.Conv1d and Conv2d that convolve in a band, or under a mask, of the spectrum.

They are subclasses: the same arguments, parameters, initialisation, hooks and `state_dict`, so that weights go back and
forth, and with compression 0 (a mask of ones) the same answer. `convert` gives the layers of a model these classes.

In eval(), with a weight that needs no gradient (`torch.no_grad()`, or `requires_grad_(False)`), a layer keeps the
spectrum of its weight for the last size of map that it met; see `frozen` for when that is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from spectralkernels.checks import check_compression, check_tensor, kind
from spectralkernels.constants import out_of_inference, traced
from spectralkernels.convolution.geometry import GridChoice, Padding, WeightSpectrum, check_grid_choice
from spectralkernels.dispatch import Explanation
from spectralkernels.errors import DtypeError, RangeError
from spectralkernels.explain import explain
from spectralkernels.layouts import as_given, batched
from spectralkernels.masks import ModeList, fft_grid, hermitian, mode_list
from spectralkernels.nn.frozen import KeptSpectrum, has_use, kept_or_made, may_keep
from spectralkernels.ops import load_operation
from spectralkernels.ops.band_limited_conv1d import band_limited_conv1d
from spectralkernels.ops.band_limited_conv2d import band_limited_conv2d, weight_spectrum
from spectralkernels.ops.masked_conv2d import masked_conv2d, masked_weight_spectrum


def check_call(layer: type[_BandLimited], compression: float, grid: GridChoice, impl: str) -> None:
    """Raise on what a band-limited layer would refuse at every call."""
    check_compression(compression)
    check_grid_choice(grid)
    names = [each.name for name in layer.operations for each in load_operation(name).implementations]
    if not isinstance(impl, str) or impl not in ("auto", *names):
        raise RangeError(f"impl must be 'auto' or one of {', '.join(dict.fromkeys(names))}, got {kind(impl)}")


MaskRule = Callable[[tuple[int, int]], Tensor]


class _Spectral(_ConvNd):
    """What the twins share: padding as torch pads, and the spectrum kept for a frozen weight."""

    grid: GridChoice
    impl: str
    _kept: KeptSpectrum | None = None

    def _padded(self, x: Tensor) -> tuple[Tensor, Padding]:
        """x, and the zeros that the operation adds: none where the values around x are not zeros."""
        batched(x, "[batch, channel, length]" if len(self.kernel_size) == 1 else "[batch, channel, height, width]")
        if self.padding_mode == "zeros":
            padding: Any = self.padding  # torch's annotation does not say which strings
            return x, padding
        return F.pad(x, self._reversed_padding_repeated_twice, mode=self.padding_mode), "valid"

    def _weight_for(
        self, x: Tensor, geometry: Hashable, make: Callable[[], WeightSpectrum | None]
    ) -> Tensor | WeightSpectrum:
        """The weight, or its spectrum where that may be kept and `make` has a use for it."""
        weight = self.weight
        if not isinstance(self.impl, str) or self.impl != "auto" or not may_keep(weight, x, self.training):
            return weight
        # Threads may share a layer: nobody reads what another has just put there.
        self._kept = kept = kept_or_made(self._kept, weight, geometry, make)
        return weight if kept.spectrum is None else kept.spectrum

    def train(self, mode: bool = True) -> Self:
        """As in torch.nn.Module; forgets the spectrum of the weight."""
        self._kept = None
        return super().train(mode)

    # torch swaps no tensor that somebody refers to weakly, see torch.__future__.set_swap_module_params_on_conversion.
    def _apply(self, *conversion: Any, **options: Any) -> Self:
        self._kept = None
        return super()._apply(*conversion, **options)

    def _load_from_state_dict(self, *state: Any, **options: Any) -> None:
        self._kept = None
        super()._load_from_state_dict(*state, **options)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_kept", "_listed")}


class _BandLimited(_Spectral):
    """A convolution that drops a fraction of the spectrum; `compression` may be changed at any time."""

    operation: Callable[..., Tensor]
    operations: tuple[str, ...]  # that one, and the one for strides and dilations

    def __init__(
        self, *conv: Any, compression: float = 0.0, grid: GridChoice = "tight", impl: str = "auto", **named: Any
    ) -> None:
        super().__init__(*conv, **named)
        check_call(type(self), compression, grid, impl)
        self.compression, self.grid, self.impl = compression, grid, impl

    def forward(self, input: Tensor) -> Tensor:
        x, geometry = self._geometry(input)

        def make() -> WeightSpectrum | None:
            # Whoever is faster with the weight itself keeps it.
            use = has_use(self.explain(input))
            return weight_spectrum(self.weight, tuple(x.shape[-len(self.stride) :]), **geometry) if use else None

        # A spectrum has no stride and no dilation.
        whole = all(step == 1 for step in (*self.stride, *self.dilation))
        weight = self._weight_for(x, (tuple(x.shape), *geometry.values()), make) if whole else self.weight
        y = self.operation(x, weight, self.bias, **geometry, **self._steps(), impl=self.impl)
        return as_given(y, y, input, self.weight)  # a padded map and a kept spectrum do not tell

    def explain(self, input: Tensor) -> Explanation:
        """What runs for maps like these with the weight as a tensor, and why: see `sk.explain`."""
        x, geometry = self._geometry(input)
        return explain(self.operation, x, self.weight, self.bias, **geometry, **self._steps(), impl=self.impl)

    def _steps(self) -> dict[str, tuple[int, ...]]:
        return {"stride": tuple(self.stride), "dilation": tuple(self.dilation)}

    def _geometry(self, x: Tensor) -> tuple[Tensor, dict[str, Any]]:
        x, padding = self._padded(x)
        return x, {"compression": self.compression, "padding": padding, "groups": self.groups, "grid": self.grid}

    def extra_repr(self) -> str:
        grid = "" if self.grid == "tight" else f", grid={self.grid!r}"
        impl = "" if self.impl == "auto" else f", impl={self.impl!r}"
        return f"{super().extra_repr()}, compression={self.compression}{grid}{impl}"


class BandLimitedConv2d(_BandLimited, nn.Conv2d):
    """torch.nn.Conv2d without the high frequencies of map and kernel: `band_limited_conv2d` as a layer.

    BandLimitedConv2d(in_channels, out_channels, kernel_size, ..., compression=0.5): every argument of torch.nn.Conv2d,
    by position or by name, and besides
    compression: fraction of half-spectrum coefficients to drop, 0 <= c < 1. grid, impl: as in `band_limited_conv2d`.
    With a `padding_mode` other than zeros the map is padded first, and the band is that of the padded map.
    Input: Real [batch, channel, height, width], or one sample. Output: [batch, out_channel, out_height, out_width].
    Raises: RangeError on a bad compression.
    """

    operation = staticmethod(band_limited_conv2d)
    operations = ("band_limited_conv2d", "strided_conv2d")


class BandLimitedConv1d(_BandLimited, nn.Conv1d):
    """torch.nn.Conv1d without the high frequencies of series and kernel: `band_limited_conv1d` as a layer.

    Arguments, errors and padding as in `BandLimitedConv2d`, one axis instead of two, and besides
    causal: put all zeros before the series, as many as make the output as long. At compression 0 no output then sees
        what comes after it; a band limit rings to both sides.
    Input: Real [batch, channel, length]. Output: [batch, out_channel, out_length].
    Raises: RangeError if causal and a padding is given too.
    """

    operation = staticmethod(band_limited_conv1d)
    operations = ("band_limited_conv1d", "strided_conv1d")
    causal = False

    def __init__(self, *conv: Any, causal: bool = False, **named: Any) -> None:
        super().__init__(*conv, **named)
        if not isinstance(causal, bool):
            raise DtypeError(f"causal must be True or False, got {kind(causal)}")
        if causal and (self.padding != (0,) or self.padding_mode != "zeros"):
            raise RangeError(
                f"causal=True pads by itself, with zeros; leave out padding={self.padding} and "
                f"padding_mode={self.padding_mode!r}"
            )
        self.causal = causal

    def _padded(self, x: Tensor) -> tuple[Tensor, Padding]:
        return (x, "causal") if self.causal else super()._padded(x)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, causal=True" if self.causal else super().extra_repr()


class MaskedConv2d(_Spectral, nn.Conv2d):
    """torch.nn.Conv2d under a mask of the half spectrum: `masked_conv2d` as a layer.

    MaskedConv2d(in_channels, out_channels, kernel_size, ..., mask=mask): every argument of torch.nn.Conv2d, and besides
    mask: Bool or Float [N_h, N_w // 2 + 1] on the grid of the maps (`masks.fft_grid`), held as a buffer that
        `state_dict` leaves out; or a function from the grid (N_h, N_w) to such a mask, called once for each new grid,
        such as `functools.partial(masks.radial, fraction=0.5)`. For a mask that changes from call to call, or that is
        trained, call `masked_conv2d`.
    grid, impl: as in `masked_conv2d`.
    With a stride every sample is computed, and every s-th given.
    Raises: at the call ShapeError if the mask does not fit.
    """

    mask: Tensor | None
    _listed: tuple[object, Hashable, Tensor, ModeList] | None = None

    def __init__(
        self, *conv: Any, mask: Tensor | MaskRule, grid: GridChoice = "tight", impl: str = "auto", **named: Any
    ) -> None:
        super().__init__(*conv, **named)
        self.grid, self.impl = grid, impl
        if not isinstance(mask, Tensor) and not callable(mask):
            raise DtypeError(f"mask must be a tensor or a function from the grid to one, got {kind(mask)}")
        if isinstance(mask, Tensor):
            check_tensor("mask", mask)
        self.rule = None if isinstance(mask, Tensor) else mask
        self.register_buffer("mask", mask if isinstance(mask, Tensor) else None, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        x, padding = self._padded(input)
        size, kernel = (x.shape[-2], x.shape[-1]), (self.weight.shape[2], self.weight.shape[3])
        dilation = (self.dilation[0], self.dilation[1])
        n = fft_grid(size, kernel, padding=padding, grid=self.grid, dilation=dilation)
        mask, modes = self._mask_on(n, x.device)
        geometry: dict[str, Any] = {"padding": padding, "grid": self.grid, "groups": self.groups}

        def make() -> WeightSpectrum | None:
            call = {"modes": modes, "dilation": dilation, **geometry}
            if modes is None or not has_use(explain(masked_conv2d, x, self.weight, mask, **call)):
                return None
            return masked_weight_spectrum(self.weight, modes, size, dilation=dilation, **geometry)

        weight = self._weight_for(x, (tuple(x.shape), modes, dilation, *geometry.values()), make)
        geometry["dilation"] = None if isinstance(weight, WeightSpectrum) else dilation  # a spectrum has its own
        stride = (self.stride[0], self.stride[1])
        y = masked_conv2d(x, weight, mask, self.bias, modes=modes, stride=stride, **geometry, impl=self.impl)
        return as_given(y, y, input, self.weight)

    def _mask_on(self, n: tuple[int, int], device: torch.device) -> tuple[Tensor, ModeList | None]:
        """The mask on a grid, and its modes: listed once for each grid, mask and device, and never while tracing."""
        given, source = self.mask, self.rule if self.mask is None else self.mask
        if traced() or (given is not None and torch._C._functorch.is_functorch_wrapped_tensor(given)):
            return (self._call_rule(n).to(device) if given is None else given), None
        key: Hashable = (n, device, None if given is None else (given.data_ptr(), given._version))
        listed = self._listed
        if listed is None or listed[0] is not source or listed[1] != key:
            with out_of_inference():
                mask = hermitian(self._call_rule(n).to(device) if given is None else given, n)
            self._listed = listed = (source, key, mask, mode_list(mask, n))
        return listed[2:]

    def _call_rule(self, n: tuple[int, int]) -> Tensor:
        assert self.rule is not None  # where there is no mask there is a rule
        mask = self.rule(n)
        check_tensor("what the function mask returns", mask)
        return mask

    def extra_repr(self) -> str:
        mask = self.rule if self.mask is None else list(self.mask.shape)
        return f"{super().extra_repr()}, mask={mask}"
