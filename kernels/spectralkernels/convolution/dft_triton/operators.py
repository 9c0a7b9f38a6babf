"""The custom operators of `dft_triton`: a convolution with a weight to learn, and one with a frozen weight.

What a backward pass saves, with F modes, float32 maps and the default choices:

    8 F B C bytes          Z, the kept spectrum of x, if the weight or the mask has a gradient (4 F B C in a half class,
                           or with saved_map="bf16" in any)
    4 |K| O C / g bytes    the weight itself, whose spectrum is made again
    8 F O C / g bytes      with saved_weight="spectrum" besides: one launch less in backward
    4 B O |out| bytes      y, where a relu follows; and the mask, where there is one
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from spectralkernels.convolution import flops
from spectralkernels.convolution.composed import bias_gradient
from spectralkernels.convolution.dft_triton import composed
from spectralkernels.convolution.dft_triton.layout import layout_of
from spectralkernels.convolution.dft_triton.precision import PRECISIONS
from spectralkernels.convolution.geometry import compute_dtype
from spectralkernels.operators import operator

Ints = Sequence[int]


def saved_dtype(precision: str, saved_map: str) -> torch.dtype:
    """What Z is saved as; a half class already stores halves."""
    storage = PRECISIONS[precision].storage
    return torch.bfloat16 if saved_map == "bf16" and storage == torch.float32 else storage


@operator("dft_triton_conv", dense=True)
def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    starts: Ints,
    groups: int,
    layout: str,
    out: Ints,
    precision: str,
    relu: bool,
    saved_map: str,
    saved_weight: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """(y, Z, W): the convolution and the spectra that backward reuses; W is empty unless it is to be saved.

    layout: see `layout.layout_of`. mask: [N_h, N_w // 2 + 1] or [B, 1, N_h, N_w // 2 + 1], or None.
    """
    from spectralkernels.convolution.dft_triton import chain

    geometry = chain.ChainGeometry(layout_of(layout), tuple(starts), groups, precision)
    planes, dtype = x.shape[0] * x.shape[1], saved_dtype(precision, saved_map)
    saved = chain.spectrum(planes, geometry, x.device, dtype)
    # A spectrum that is saved in another dtype is computed in the workspace.
    z, kept = (saved, None) if dtype == geometry.numbers.storage else (None, saved)
    w = chain.spectrum(weight.shape[0] * weight.shape[1], geometry, x.device) if saved_weight == "spectrum" else None
    where = (mask, weight.shape[0], geometry, tuple(out), relu)
    y = chain.forward(x, weight, bias, *where, z=z, kept=kept, w=w)
    return y, saved, saved.new_empty(0, dtype=geometry.numbers.storage) if w is None else w


@convolve.register_fake
def _(
    *, x: Tensor, weight: Tensor, layout: str, out: Ints, precision: str, saved_map: str, saved_weight: str
) -> tuple[Tensor, Tensor, Tensor]:
    modes = layout_of(layout)
    shape = (modes.modes_v, modes.modes_u, 2)
    z = x.new_empty((*shape, x.shape[0] * x.shape[1]), dtype=saved_dtype(precision, saved_map))
    w = (*shape, weight.shape[0] * weight.shape[1]) if saved_weight == "spectrum" else (0,)
    y = x.new_empty((x.shape[0], weight.shape[0], *out))
    return y, z, x.new_empty(w, dtype=PRECISIONS[precision].storage)


@convolve.register_composed
def _(
    *,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor | None,
    starts: Ints,
    groups: int,
    layout: str,
    out: Ints,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    where = (starts, weight.shape[0], groups, layout_of(layout), out, relu)
    y = composed.convolve(x, weight, bias, mask, *where)
    return y, y.new_empty(0), y.new_empty(0)


@operator("dft_triton_conv_backward", dense=True)
def convolve_backward(
    dy: Tensor,
    gate: Tensor | None,
    z: Tensor | None,
    weight: Tensor,
    w: Tensor,
    mask: Tensor | None,
    starts: Ints,
    groups: int,
    layout: str,
    size: Ints,
    precision: str,
    need: Ints,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dx, dw, db, dmask): the transposed maps; `need` says which, and a gradient not needed comes back empty.

    z: None where neither the weight nor the mask needs a gradient.
    """
    from spectralkernels.convolution.dft_triton import chain

    geometry = chain.ChainGeometry(layout_of(layout), tuple(starts), groups, precision)
    needs = chain.Needs(*map(bool, need))
    kept = w if w.numel() else None
    found = chain.backward(dy, gate, z, weight, kept, mask, geometry, tuple(size), needs)
    return *found[:3], found[3] if mask is None else found[3].to(mask.dtype)


@convolve_backward.register_fake
def _(
    *, dy: Tensor, weight: Tensor, mask: Tensor | None, groups: int, size: Ints, need: Ints
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    need_x, need_weight, need_bias, need_mask = need
    dx = dy.new_empty((dy.shape[0], weight.shape[1] * groups, *size) if need_x else (0,))
    dw = weight.new_empty(weight.shape if need_weight else (0,))
    db = weight.new_empty((dy.shape[1] if need_bias else 0,))
    dmask = dy.new_empty(0) if mask is None else mask.new_empty(mask.shape if need_mask else (0,))
    return dx, dw, db, dmask


@convolve_backward.register_composed
def _(
    *,
    dy: Tensor,
    gate: Tensor | None,
    z: Tensor | None,
    weight: Tensor,
    mask: Tensor | None,
    starts: Ints,
    groups: int,
    layout: str,
    size: Ints,
    need: Ints,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    modes, (need_x, need_weight, need_bias, need_mask) = layout_of(layout), map(bool, need)
    dy = _gated(dy, gate)
    if z is not None:
        z = z.flatten(0, 1).to(compute_dtype(dy.dtype)) * composed.saved_scale(modes)
    needs = (need_x, need_weight, need_mask)
    dx, dw, dmask = composed.gradients(dy, z, weight, mask, starts, groups, modes, size, needs)
    return dx, dw, _bias_gradient(dy, need_bias).to(weight.dtype), dmask


def _gated(dy: Tensor, gate: Tensor | None) -> Tensor:
    return dy if gate is None else torch.where(gate > 0, dy, 0)


def _bias_gradient(dy: Tensor, needed: bool) -> Tensor:
    return bias_gradient(dy) if needed else dy.new_empty(0)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, _, mask, starts, groups, layout, _, precision, relu, *_ = inputs
    y, z, w = output
    # Z is differentiable, so that a second derivative finds its way from Z to x.
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(w)
    reused = ctx.needs_input_grad[1] or ctx.needs_input_grad[3]
    ctx.save_for_backward(y if relu else None, z if reused else None, weight, w, mask)
    ctx.geometry = (starts, groups, layout, list(x.shape[2:]), precision)
    ctx.maps = (list(x.shape), x.dtype)


def _differentiate(ctx: Any, dy: Tensor | None, dz: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    need = [int(each) for each in ctx.needs_input_grad[:4]]
    gradients: list[Tensor | None] = [None] * 4
    if dy is not None:
        found = convolve_backward(dy, *ctx.saved_tensors, *ctx.geometry, need)
        gradients = [each if wanted else None for each, wanted in zip(found, need, strict=True)]
    if dz is not None and need[0]:
        layout, (shape, dtype) = layout_of(ctx.geometry[2]), ctx.maps
        # The gradient of Z that a second derivative leaves, back through the transform of x.
        modes = dz.flatten(0, 1).to(compute_dtype(dtype)).unflatten(2, shape[:2]) / composed.saved_scale(layout)
        through_z = composed.from_modes(modes, layout, shape[2:]).to(dtype)
        gradients[0] = through_z if gradients[0] is None else gradients[0] + through_z
    return *gradients, *(None,) * 8


convolve.register_autograd(_differentiate, setup_context=_remember)

# --- frozen weights -------------------------------------------------------------------------------------------------


@operator("dft_triton_apply", dense=True)
def apply(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    out_channels: int,
    groups: int,
    layout: str,
    out: Ints,
    precision: str,
    relu: bool,
) -> Tensor:
    """The convolution with the spectrum [V, U, 2, O C / g] of a frozen weight: one launch less, and Z is not saved."""
    from spectralkernels.convolution.dft_triton import chain

    geometry = chain.ChainGeometry(layout_of(layout), (), groups, precision)
    where = (None, out_channels, geometry, tuple(out), relu)
    return chain.forward(x, None, bias, *where, w=w, frozen=True)


@apply.register_fake
def _(*, x: Tensor, out_channels: int, out: Ints) -> Tensor:
    return x.new_empty((x.shape[0], out_channels, *out))


@apply.register_composed
def _(
    *, x: Tensor, w: Tensor, bias: Tensor | None, out_channels: int, groups: int, layout: str, out: Ints, relu: bool
) -> Tensor:
    return composed.convolve(x, w, bias, None, None, out_channels, groups, layout_of(layout), out, relu)


@operator("dft_triton_apply_backward", dense=True)
def apply_backward(
    dy: Tensor,
    gate: Tensor | None,
    w: Tensor,
    channels: int,
    groups: int,
    layout: str,
    size: Ints,
    precision: str,
    need_x: bool,
    need_bias: bool,
) -> tuple[Tensor, Tensor]:
    """(dx, db); a gradient not needed comes back empty."""
    from spectralkernels.convolution.dft_triton import chain

    geometry = chain.ChainGeometry(layout_of(layout), (), groups, precision)
    needs = (need_x, need_bias)
    return chain.frozen_backward(dy, gate, w, channels, geometry, tuple(size), needs)


@apply_backward.register_fake
def _(*, dy: Tensor, channels: int, size: Ints, need_x: bool, need_bias: bool) -> tuple[Tensor, Tensor]:
    dx = dy.new_empty((dy.shape[0], channels, *size) if need_x else (0,))
    return dx, dy.new_empty((dy.shape[1] if need_bias else 0,))


@apply_backward.register_composed
def _(
    *, dy: Tensor, gate: Tensor | None, w: Tensor, groups: int, layout: str, size: Ints, need_x: bool, need_bias: bool
) -> tuple[Tensor, Tensor]:
    dy = _gated(dy, gate)
    needs = (need_x, False, False)
    dx, _, _ = composed.gradients(dy, None, w, None, None, groups, layout_of(layout), size, needs)
    return dx, _bias_gradient(dy, need_bias)


def _remember_frozen(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, w, _, _, groups, layout, _, precision, relu = inputs
    ctx.save_for_backward(output if relu else None, w)
    ctx.geometry = (x.shape[1], groups, layout, list(x.shape[2:]), precision)


def _differentiate_frozen(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    need_x, _, need_bias = ctx.needs_input_grad[:3]
    dx, db = apply_backward(dy, *ctx.saved_tensors, *ctx.geometry, need_x, need_bias)
    return dx if need_x else None, None, db if need_bias else None, *(None,) * 6


apply.register_autograd(_differentiate_frozen, setup_context=_remember_frozen)

# --- what they cost -------------------------------------------------------------------------------------------------


def _transform(layout: str) -> flops.TransformCost:
    modes = layout_of(layout)
    if modes.cells or len(modes.n) == 1:
        return flops.by_matrix(modes.modes_v * modes.modes_u)
    return flops.by_steps(modes.n, ((modes.kept[1], modes.kept[0]),))


convolve.register_flops(
    lambda x, weight, bias, mask, starts, groups, layout, out, *_: flops.forward(
        x, weight, weight.shape[0], out, groups, _transform(layout)
    )
)
convolve_backward.register_flops(
    lambda dy, gate, z, weight, w, mask, starts, groups, layout, size, precision, need: flops.backward(
        dy,
        weight,
        weight.shape[1] * groups,
        size,
        groups,
        _transform(layout),
        bool(need[0]),
        bool(need[1]),
        weight_again=w.numel() == 0,
    )
)
apply.register_flops(
    lambda x, w, bias, out_channels, groups, layout, out, *_: flops.forward(
        x, None, out_channels, out, groups, _transform(layout)
    )
)
apply_backward.register_flops(
    lambda dy, gate, w, channels, groups, layout, size, precision, need_x, need_bias: flops.backward(
        dy, None, channels, size, groups, _transform(layout), need_x
    )
)
