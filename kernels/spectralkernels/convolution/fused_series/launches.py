"""Which launches a call makes, by the form of its transform, and which of them are watched."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from spectralkernels.constants import planned
from spectralkernels.convolution.fused.kept import Sums
from spectralkernels.convolution.fused.operators import Convolve
from spectralkernels.convolution.fused.precision import PRECISIONS, Precision
from spectralkernels.convolution.fused.precision import precision as precision_of
from spectralkernels.convolution.fused_series.dense import launches as dense
from spectralkernels.convolution.fused_series.geometry import Form, SeriesGeometry, Whole, chosen_form
from spectralkernels.convolution.fused_series.two_level import launches as two_level
from spectralkernels.convolution.fused_series.two_level.matrices import kept_sums
from spectralkernels.launch import Launch, NamedLaunch


@dataclass(frozen=True, slots=True)
class SeriesForm:
    """A transform of series in one stage or two, see `fused.operators.Form`."""

    geometry: SeriesGeometry
    form: Form
    precision: Precision
    sums_dy = False

    @property
    def kept_reals(self) -> int:
        return self.form.kept_reals

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, modes: Tensor | None) -> Launch:
        return convolve_launch(x, weight, bias, y, modes, self.geometry, self.form, self.precision)

    def planned(self, batch: int, channels: int, device: torch.device) -> Convolve:
        if isinstance(self.form, Whole):
            return dense.planned(batch, channels, self.geometry, self.form, self.precision, device)
        return two_level.planned(batch, channels, self.geometry, self.form, self.precision, device)

    def map_gradient(self, dy: Tensor, weight: Tensor, dx: Tensor) -> Launch:
        return convolve_launch(dy, weight, None, dx, None, self.geometry, self.form, self.precision, reflected=True)

    def weight_gradient(
        self, dy: Tensor, x: Tensor | None, modes: Tensor | None, partial: Tensor, bias: Tensor | None
    ) -> Launch:
        assert bias is None, "these kernels do not sum dy"
        return weight_gradient_launch(dy, x, modes, partial, self.geometry, self.form, self.precision)

    def partial_sums(self, batch: int, channels: int) -> int:
        return partial_sums(batch, channels, self.form)

    def kept_sums(self) -> list[tuple[Sums, Sums]]:
        if isinstance(self.form, Whole):
            root = math.sqrt(self.geometry.n)
            return [(((2 * f, root),), ((2 * f + 1, root),)) for f in range(self.geometry.kept)]
        return kept_sums(self.geometry, self.form)


@planned
def series_form(size: int, out: int, taps: int, start: int, n: int, kept: int, accuracy: str) -> SeriesForm:
    """The form of a geometry and an accuracy class for which `supports` has found one."""
    geometry, chosen = SeriesGeometry(size, out, taps, start, n, kept), precision_of(accuracy)
    return SeriesForm(geometry, chosen_form(geometry, chosen), chosen)


def convolve_launch(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    modes: Tensor | None,
    geometry: SeriesGeometry,
    form: Form,
    precision: Precision,
    reflected: bool = False,
) -> Launch:
    """The launch that fills `y`, and `modes` with the kept spectrum of x.

    x: Real [batch, channel, size], y: Real [batch, channel, out], weight: Real [channel, 1, taps], bias:
    Real [channel] or None, modes: Real [batch, channel, kept_reals] or None; all contiguous.
    reflected: x and y are dy and dx: series and output are exchanged and the kernel's spectrum is not conjugated.
    """
    if isinstance(form, Whole):
        return dense.convolve_launch(x, weight, bias, y, modes, geometry, form, precision, reflected)
    return two_level.convolve_launch(x, weight, bias, y, modes, geometry, form, precision, reflected)


def weight_gradient_launch(
    dy: Tensor,
    x: Tensor | None,
    modes: Tensor | None,
    partial: Tensor,
    geometry: SeriesGeometry,
    form: Form,
    precision: Precision,
) -> Launch:
    """The launch that fills `partial`, Float32 [partial_sums, channel, taps], whose sum is the gradient.

    Exactly one of x (series) and modes (their kept spectrum) is given.
    """
    if isinstance(form, Whole):
        return dense.weight_gradient_launch(dy, x, modes, partial, geometry, form, precision)
    return two_level.weight_gradient_launch(dy, x, modes, partial, geometry, form, precision)


def partial_sums(batch: int, channels: int, form: Form) -> int:
    """How many partial sums per channel the kernel of `weight_gradient_launch` writes."""
    if isinstance(form, Whole):
        return dense.partial_sums(batch, channels, form)
    return two_level.partial_sums(batch, channels, form)


def _watched(kind: str, geometry: SeriesGeometry, name: str, maps: torch.dtype) -> NamedLaunch:
    """A forward pass, or a gradient with respect to x or weight, of 8 series in each of 768 channels."""

    def call() -> None:
        planned = PRECISIONS[name]
        form = chosen_form(geometry, planned)
        x = torch.empty(8, 768, geometry.size, dtype=maps, device="meta")
        y = torch.empty(8, 768, geometry.out, dtype=maps, device="meta")
        weight = torch.empty(768, 1, geometry.taps, dtype=maps, device="meta")
        if kind == "forward":
            convolve_launch(
                x, weight, torch.empty(768, dtype=maps, device="meta"), y, None, geometry, form, planned
            ).run()
        elif kind == "dx":
            convolve_launch(y, weight, None, x, None, geometry, form, planned, reflected=True).run()
        else:
            sums = torch.empty(partial_sums(8, 768, form), 768, geometry.taps, device="meta")
            weight_gradient_launch(y, x, None, sums, geometry, form, planned).run()

    return NamedLaunch(f"{kind} {name} B8 C768 L{geometry.size} K{geometry.taps} N{geometry.n}", call)


_SHORT = SeriesGeometry(270, 270, 5, -2, 272, 68)
_THOUSAND = SeriesGeometry(1024, 1024, 5, -2, 1029, 257)
_ALIGNED = SeriesGeometry(1024, 1024, 31, -15, 1088, 272)
_LONG = SeriesGeometry(4096, 4096, 31, -15, 4160, 1040)

FINGERPRINTS = (
    _watched("forward", _SHORT, "bf16", torch.bfloat16),
    _watched("forward", _THOUSAND, "bf16", torch.bfloat16),
    _watched("forward", _THOUSAND, "tf32x3", torch.float32),
    _watched("forward", _ALIGNED, "bf16", torch.bfloat16),
    _watched("dw", _ALIGNED, "bf16", torch.bfloat16),
    _watched("forward", _LONG, "bf16", torch.bfloat16),
    _watched("dx", _LONG, "bf16", torch.bfloat16),
    _watched("dw", _LONG, "bf16", torch.bfloat16),
    _watched("forward", _LONG, "tf32", torch.float32),
)
"""Half of the spectrum dropped, on circles of 7-smooth size and of a multiple of 64."""
