"""The operator of the fused convolutions: one launch forward; two launches and a small sum backward.

Saved for backward are the weight and the smaller of x (nothing is written) and its kept spectrum (written by the same
launch); where the weight has no gradient, no activation at all.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from spectralkernels.convolution import flops
from spectralkernels.convolution.composed import bias_gradient
from spectralkernels.convolution.dft_gemm import _conv as by_gemm
from spectralkernels.convolution.dft_triton import composed
from spectralkernels.convolution.dft_triton.layout import Layout, box_layout, layout_of
from spectralkernels.convolution.fused.kept import KeptSums, gradient_of_modes, modes_of
from spectralkernels.convolution.fused.precision import declared
from spectralkernels.convolution.geometry import compute_dtype
from spectralkernels.launch import Launch
from spectralkernels.operators import operator
from spectralkernels.spectra import Band

Ints = Sequence[int]


Convolve = Callable[[Tensor, Tensor, Tensor | None, Tensor, Tensor | None], Launch]
"""From x, weight, bias, y and modes to a launch, see `Form.convolve`."""


class Form(KeptSums, Protocol):
    """One way to transform, for one geometry and accuracy class: of maps, or of series in one stage or in two.

    kept_reals: reals that hold the kept spectrum of a plane. sums_dy: whether `weight_gradient` sums dy for the bias.
    """

    @property
    def kept_reals(self) -> int: ...
    @property
    def sums_dy(self) -> bool: ...
    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, modes: Tensor | None) -> Launch:
        """The launch that fills y [B, C, *out], and modes [B, C, kept_reals] with the kept spectrum of x, if any."""
        ...

    def planned(self, batch: int, channels: int, device: torch.device) -> Convolve:
        """What makes the launches of `convolve` for maps of these sizes."""
        ...

    def map_gradient(self, dy: Tensor, weight: Tensor, dx: Tensor) -> Launch:
        """The launch that fills dx [B, C, *size]: the same kernel with the transposed matrices."""
        ...

    def weight_gradient(
        self, dy: Tensor, x: Tensor | None, modes: Tensor | None, partial: Tensor, bias: Tensor | None
    ) -> Launch:
        """The launch that fills partial, Float32 [partial_sums, C, *taps], and bias [partial_sums, C]; given either of
        x and modes. The sums over their first axis are the gradients."""
        ...

    def partial_sums(self, batch: int, channels: int) -> int:
        """How many partial sums per channel `weight_gradient` writes."""
        ...


def form_of(sides: Sequence[Ints], starts: Ints, n: Ints, kept: Ints, accuracy: str) -> Form:
    """The form that a call takes. sides: of map, output and kernel."""
    size, out, taps = (tuple(side) for side in sides)
    if len(n) == 2:
        from spectralkernels.convolution.fused_depthwise.launches import map_form

        return map_form(size, out, taps, tuple(starts), tuple(n), tuple(kept), accuracy)
    from spectralkernels.convolution.fused_series.launches import series_form

    return series_form(size[0], out[0], taps[0], starts[0], n[0], kept[0], accuracy)


def fused(x: Tensor, weight: Tensor, bias: Tensor | None, band: Band, accuracy: str, kept_reals: int) -> Tensor:
    """Convolve each plane with its own kernel; kept_reals: of the form that the call takes."""
    smaller = kept_reals * declared(accuracy).kept(x.dtype).itemsize < x.shape[2:].numel() * x.itemsize
    # Bytes decide which of the two is saved; without a gradient of the kernel neither is.
    keep = smaller and torch.is_grad_enabled() and weight.requires_grad
    starts = [-before for before, _ in band.pad]
    y, _ = convolve(x, weight, bias, starts, band.n, band.kept, band.out, accuracy, keep)
    return y


def plan(
    x: Tensor, band: Band, *, accuracy: str = "tf32x3", **rest: object
) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """What computes `fused` of these sizes, dtypes and devices where no gradient is wanted."""
    form = form_of((band.size, band.out, band.kernel), [-before for before, _ in band.pad], band.n, band.kept, accuracy)
    shape, dtype, device = (*x.shape[:2], *band.out), x.dtype, x.device
    launch = form.planned(x.shape[0], x.shape[1], device)

    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        y = torch.empty(shape, dtype=dtype, device=device)
        launch(x.contiguous(), weight.contiguous(), None if bias is None else bias.contiguous(), y, None).run()
        return y

    return forward


@operator("fused", dense=True)
def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    starts: Ints,
    n: Ints,
    kept: Ints,
    out: Ints,
    accuracy: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """(y, Z): the convolution, and the kept spectrum of x if `keep`, else nothing."""
    form = form_of((x.shape[2:], out, weight.shape[2:]), starts, n, kept, accuracy)
    y = torch.empty((*x.shape[:2], *out), dtype=x.dtype, device=x.device)
    reals = form.kept_reals if keep else 0
    modes = torch.empty((*x.shape[:2], reals), dtype=declared(accuracy).kept(x.dtype), device=x.device)
    form.convolve(x, weight, bias, y, modes if keep else None).run()
    return y, modes


@convolve.register_fake
def _(
    *, x: Tensor, weight: Tensor, starts: Ints, n: Ints, kept: Ints, out: Ints, accuracy: str, keep: bool
) -> tuple[Tensor, Tensor]:
    reals = 0
    if keep:
        sides: Sequence[Ints] = (x.shape[2:], out, weight.shape[2:])
        if len(n) == 1:
            # Which form a series takes is no formula of a symbolic length.
            sides = [[int(length)] for (length,) in sides]
        reals = form_of(sides, starts, n, kept, accuracy).kept_reals
    modes = x.new_empty(*x.shape[:2], reals, dtype=declared(accuracy).kept(x.dtype))
    return x.new_empty(*x.shape[:2], *out), modes


@convolve.register_composed
def _(
    *, x: Tensor, weight: Tensor, bias: Tensor | None, starts: Ints, n: Ints, kept: Ints, out: Ints
) -> tuple[Tensor, Tensor]:
    y: Tensor = by_gemm(x, weight, bias, starts, x.shape[1], n, kept, out)[0]
    return y, y.new_empty(0)


@operator("fused_backward", dense=True)
def convolve_backward(
    dy: Tensor,
    saved: Tensor,
    weight: Tensor,
    starts: Ints,
    n: Ints,
    kept: Ints,
    size: Ints,
    accuracy: str,
    kept_modes: bool,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dw, db); saved is Z if `kept_modes`, else x. A gradient that is not needed comes back empty.

    Where dw is made of a spectrum of dy that holds its sums, db comes of them, in the accuracy of the class.
    """
    form = form_of((size, dy.shape[2:], weight.shape[2:]), starts, n, kept, accuracy)
    batch, channels = dy.shape[:2]
    dx, dw, db = dy.new_empty(0), weight.new_empty(0), dy.new_empty(0)
    if need_x:
        dx = torch.empty((batch, channels, *size), dtype=dy.dtype, device=dy.device)
        form.map_gradient(dy, weight, dx).run()
    sums_dy = need_bias and need_weight and form.sums_dy
    if need_weight:
        count = form.partial_sums(batch, channels)
        sums = torch.empty((count, channels, *weight.shape[2:]), dtype=torch.float32, device=dy.device)
        x, modes = (None, saved) if kept_modes else (saved, None)
        bias = sums.new_empty(count, channels) if sums_dy else None
        form.weight_gradient(dy, x, modes, sums, bias).run()
        dw = sums.sum(0).unsqueeze(1).to(weight.dtype)
        if bias is not None:
            db = bias.sum(0).to(dy.dtype)
    if need_bias and not sums_dy:
        db = bias_gradient(dy)
    return dx, dw, db


@convolve_backward.register_fake
def _(
    *, dy: Tensor, weight: Tensor, size: Ints, need_x: bool, need_weight: bool, need_bias: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dx = dy.new_empty(*dy.shape[:2], *size) if need_x else dy.new_empty(0)
    return dx, weight.new_empty(weight.shape if need_weight else (0,)), dy.new_empty(dy.shape[1] if need_bias else 0)


@convolve_backward.register_composed
def _(
    dy: Tensor,
    saved: Tensor,
    weight: Tensor,
    starts: Ints,
    n: Ints,
    kept: Ints,
    size: Ints,
    accuracy: str,
    kept_modes: bool,
    need_x: bool,
    need_weight: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    layout, z = _layout(n, kept), None
    if need_weight and kept_modes:
        form = form_of((size, dy.shape[2:], weight.shape[2:]), starts, n, kept, accuracy)
        z = modes_of(saved, form, compute_dtype(dy.dtype))
    elif need_weight:
        z = composed.analyse(saved, layout)
    where, needs = (starts, dy.shape[1], layout, size), (need_x, need_weight, False)
    dx, dw, _ = composed.gradients(dy, z, weight, None, *where, needs)
    return dx, dw, bias_gradient(dy) if need_bias else dy.new_empty(0)


def _layout(n: Ints, kept: Ints) -> Layout:
    return layout_of(box_layout(tuple(n), tuple(kept)))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, _, starts, n, kept, out, accuracy, keep = inputs
    ctx.set_materialize_grads(False)
    if not keep:  # else a second derivative finds its way from Z to x
        ctx.mark_non_differentiable(output[1])
    # A frozen weight costs no saved x.
    saved = output[1] if keep or not ctx.needs_input_grad[1] else x
    ctx.save_for_backward(saved, weight)
    ctx.geometry = (starts, n, kept, list(x.shape[2:]), accuracy, keep)
    ctx.maps = (list(x.shape), x.dtype, list(out))


def _differentiate(ctx: Any, dy: Tensor | None, dz: Tensor | None) -> tuple[Tensor | None, ...]:
    need_x, need_weight, need_bias = ctx.needs_input_grad[:3]
    dx = dw = db = None
    if dy is not None:
        dx, dw, db = convolve_backward(dy, *ctx.saved_tensors, *ctx.geometry, need_x, need_weight, need_bias)
    if dz is not None and need_x:
        through_z = _through_modes(ctx, dz)
        dx = through_z if dx is None else dx + through_z
    gradients = (dx if need_x else None, dw if need_weight else None, db if need_bias else None)
    return *gradients, *(None for _ in range(6))


def _through_modes(ctx: Any, dz: Tensor) -> Tensor:
    """The part of dx that comes by way of the saved Z, from the gradient of Z that a second derivative leaves."""
    (starts, n, kept, size, accuracy, _), (shape, dtype, out) = ctx.geometry, ctx.maps
    form = form_of((size, out, ctx.saved_tensors[1].shape[2:]), starts, n, kept, accuracy)
    modes = gradient_of_modes(dz, form, compute_dtype(dtype))
    return composed.from_modes(modes.unflatten(2, shape[:2]), _layout(n, kept), size).to(dtype)


convolve.register_autograd(_differentiate, setup_context=_save)
convolve.register_flops(
    lambda x, weight, bias, starts, n, kept, out, *_: flops.forward(
        x, weight, x.shape[1], out, x.shape[1], flops.by_band(n, kept)
    )
)
convolve_backward.register_flops(
    lambda dy, saved, weight, starts, n, kept, size, accuracy, kept_modes, need_x, need_weight, need_bias: (
        flops.backward(
            dy,
            weight,
            dy.shape[1],
            size,
            dy.shape[1],
            flops.by_band(n, kept),
            need_x,
            need_weight,
            x_again=not kept_modes,
        )
    )
)
