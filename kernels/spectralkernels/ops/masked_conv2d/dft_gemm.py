"""Masked convolution as matrix products over the listed modes only (one custom operator, exact backward).

    Z = D x,  W = D w,  P = Z conj(W)        [F, 2, B, O], D the truncated DFT of the mode list
    y = E (m P) + b                          m one weight per mode, or per mode and sample

    dm_f = sum Re(conj(E^T dy) P),  dP = m E^T dy,  dZ = dP W,  dW = conj(dP) Z

Backward saves the mask, the weight, and Z if the weight or the mask has a gradient; it redoes the transform of the
weight, and P where the mask has a gradient. A frozen weight comes as W.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from spectralkernels.autocast import as_written
from spectralkernels.constants import Recalled, constant, out_of_inference
from spectralkernels.convolution import composed, flops
from spectralkernels.convolution.geometry import WeightSpectrum, compute_dtype, dilation_of
from spectralkernels.convolution.linear_maps import (
    Transform,
    analyse,
    product,
    product_transposed,
    synthesise,
    weight_gradient,
    weight_product,
    weight_product_transposed,
)
from spectralkernels.dft import listed_dft, stepped_dft, too_large
from spectralkernels.modes import ModeList
from spectralkernels.operators import by_chain, operator
from spectralkernels.ops.masked_conv2d.reading import cells_of, weights_of
from spectralkernels.spectra import Band
from spectralkernels.stages import unseen

Ints = Sequence[int]


def dft_gemm(
    x: Tensor,
    weight: Tensor | WeightSpectrum,
    mask: Tensor,
    bias: Tensor | None,
    band: Band,
    modes: ModeList,
    groups: int,
) -> Tensor:
    """x [B, C, H, W], weight [O, C / groups, K_h, K_w] or its spectrum, mask [N_h, N_w // 2 + 1] or [B, 1, ...],
    bias [O] | None -> [B, O, *out]."""
    taps = _taps(band, weight.shape[2:] if isinstance(weight, Tensor) else band.kernel)
    out_channels = weight.shape[0] if isinstance(weight, Tensor) else weight.out_channels
    values = weight if isinstance(weight, Tensor) else weight.modes
    layout = [number for pair in (modes.cells or modes.steps) for number in pair]
    where = (taps, out_channels, groups, band.n, layout, bool(modes.cells), band.out)
    y, _ = _conv(x, values, mask, bias, *where)
    return y


def plan(
    x: Tensor,
    weight: Tensor | WeightSpectrum,
    mask: Tensor,
    bias: Tensor | None,
    band: Band,
    modes: ModeList,
    groups: int,
) -> Callable[[Tensor, Any, Tensor, Tensor | None], Tensor]:
    """What computes `dft_gemm` of these sizes, dtypes and devices, of any mask, where no gradient is wanted."""
    out, dtype = band.out, compute_dtype(x.dtype)
    of_x = Recalled(*_arguments(x, modes, (0, 0), band.size))
    of_y = Recalled(*_arguments(x, modes, (0, 0), out, inverse=True))
    cells, mean = Recalled(cells_of, modes, modes, mask.device), mask.dtype
    transform, inverse = unseen(analyse, synthesise)
    if isinstance(weight, WeightSpectrum):
        outputs = weight.out_channels
        (with_modes,) = unseen(product)

        def multiply(z: Tensor, weight: Any, batch: int) -> Tensor:
            return with_modes(z, weight.modes, outputs, batch, groups)
    else:
        of_weight = Recalled(*_arguments(x, modes, _taps(band, weight.shape[2:]), weight.shape[2:]))
        (with_weight,) = unseen(weight_product)

        def multiply(z: Tensor, weight: Any, batch: int) -> Tensor:
            return with_weight(z, weight, of_weight(), batch, groups)

    def run(x: Tensor, weight: Any, mask: Tensor, bias: Tensor | None) -> Tensor:
        y = multiply(transform(x, of_x()), weight, x.shape[0])
        y *= weights_of(mask, cells(), mean, dtype).t()[:, None, :, None]
        return inverse(y, of_y(), out, bias).to(x.dtype)

    return run


def freeze_weight(weight: Tensor, band: Band, modes: ModeList, groups: int) -> WeightSpectrum:
    """Transform a weight [O, C / groups, K_h, K_w] at the listed modes for repeated use with frozen values."""
    taps = _taps(band, weight.shape[2:])
    with out_of_inference(), torch.no_grad(), as_written(weight.device.type):
        w = analyse(weight, _transform(weight, modes, taps, weight.shape[2:]))
    return WeightSpectrum(w, band, weight.shape[0], weight.shape[1], groups, modes)


def prepare_frozen(
    x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None, band: Band, modes: ModeList, groups: int
) -> dict[str, Any]:
    """The inputs of `dft_gemm` with the weight transformed outside the clock."""
    frozen = freeze_weight(weight, band, modes, groups)
    return {"x": x, "weight": frozen, "mask": mask, "bias": bias, "band": band, "modes": modes, "groups": groups}


def needs_spectrum(weight: Tensor | WeightSpectrum, **rest: Any) -> str | None:
    if isinstance(weight, WeightSpectrum):
        return None
    return "it takes a frozen weight; pass masked_weight_spectrum(weight, ...) instead of the weight"


def fits_matrices(x: Tensor, band: Band, modes: ModeList, **rest: Any) -> str | None:
    """The reason why the transforms of the listed modes are not made as matrices, or None; see `dft.too_large`."""
    sides, cells = (band.size, band.kernel, band.out), len(modes.cells) or None
    return too_large(band.n, modes.kept, sides, compute_dtype(x.dtype).itemsize, cells)


@constant
def flat_indices(modes: ModeList, device: torch.device) -> Tensor:
    """Where the listed modes lie in a flattened half spectrum, Int64 [F]."""
    columns = modes.n[1] // 2 + 1
    return torch.tensor([u * columns + v for u, v in modes.indices], device=device)


# --- the operators --------------------------------------------------------------------------------------------------


@operator("masked_conv2d")
def _conv(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    taps: Ints,
    out_channels: int,
    groups: int,
    n: Ints,
    layout: Ints,
    listed: bool,
    out: Ints,
) -> tuple[Tensor, Tensor]:
    """(y, Z): the convolution, and the listed spectrum of x that backward reuses.

    weight: Real [O, C / groups, K_h, K_w], or the modes [F, 2, O * C / groups] of a frozen one. taps: see `_taps`.
    """
    modes = _mode_list(tuple(n), tuple(layout), listed)
    z = analyse(x, _transform(x, modes, (0, 0), x.shape[2:]))
    y = _product(z, weight, taps, out_channels, x.shape[0], groups, modes)
    y *= _values(mask, modes, y)
    return synthesise(y, _transform(y, modes, (0, 0), out, inverse=True), out, bias).to(x.dtype), z


@_conv.register_fake
def _(*, x: Tensor, out_channels: int, n: Ints, layout: Ints, listed: bool, out: Ints) -> tuple[Tensor, Tensor]:
    modes = _mode_list(tuple(n), tuple(layout), listed).count
    z = x.new_empty((modes, 2, x.shape[0] * x.shape[1]), dtype=compute_dtype(x.dtype))
    return x.new_empty((x.shape[0], out_channels, *out)), z


@operator("masked_conv2d_backward")
def _conv_backward(
    dy: Tensor,
    z: Tensor | None,
    weight: Tensor,
    mask: Tensor,
    taps: Ints,
    groups: int,
    n: Ints,
    layout: Ints,
    listed: bool,
    shape: Ints,
    need: Ints,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dw, dmask): the transposed maps; `need` says which, and a gradient that is not needed comes back empty.

    z may be None where dx alone is needed. shape: channels, height and width of x.
    """
    need_x, need_weight, need_mask = need
    modes, size = _mode_list(tuple(n), tuple(layout), listed), shape[1:]
    g = analyse(dy, _transform(dy, modes, (0, 0), dy.shape[2:], inverse=True)).unflatten(2, dy.shape[:2])
    dx, dw, dmask = dy.new_empty(0), weight.new_empty(0), mask.new_empty(0)
    if need_mask:
        assert z is not None
        dmask = _mask_gradient(g, _product(z, weight, taps, dy.shape[1], dy.shape[0], groups, modes), mask, modes)
    g *= _values(mask, modes, g)
    if need_x:
        if weight.dim() == 3:
            dz = product_transposed(g, weight, groups)
        else:
            dz = weight_product_transposed(g, weight, _transform(dy, modes, taps, weight.shape[2:]), groups)
        dx = synthesise(dz, _transform(dy, modes, (0, 0), size), size).to(dy.dtype)
    if need_weight:
        assert z is not None
        dw = weight_gradient(g, z, weight, _transform(dy, modes, taps, weight.shape[2:]), groups)
    return dx, dw, dmask


@_conv_backward.register_fake
def _(*, dy: Tensor, weight: Tensor, mask: Tensor, shape: Ints, need: Ints) -> tuple[Tensor, Tensor, Tensor]:
    dx = dy.new_empty((dy.shape[0], *shape) if need[0] else (0,))
    dw = weight.new_empty(weight.shape if need[1] else (0,))
    return dx, dw, mask.new_empty(mask.shape if need[2] else (0,))


@_conv.register_composed
def _(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None,
    taps: Ints,
    out_channels: int,
    groups: int,
    n: Ints,
    layout: Ints,
    listed: bool,
    out: Ints,
) -> tuple[Tensor, Tensor]:
    modes = _mode_list(tuple(n), tuple(layout), listed)
    transforms = _transforms(x, weight, taps, modes, x.shape[2:], out)
    return composed.convolve(x, weight, bias, transforms, groups, out, _values(mask, modes, x), out_channels)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, mask, _, taps, _, groups, n, layout, listed, _ = inputs
    # Z is a second output, so that a second derivative finds its way from Z to x.
    ctx.set_materialize_grads(False)
    z = output[1] if ctx.needs_input_grad[1] or ctx.needs_input_grad[2] else None
    ctx.save_for_backward(z, weight, mask)
    ctx.geometry = (taps, groups, n, layout, listed, list(x.shape[1:]))


def _differentiate(ctx: Any, dy: Tensor | None, dz: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy is None or dz is not None or by_chain():
        return *_composed_backward(ctx, dy, dz), *(None,) * 7
    need = [int(each) for each in ctx.needs_input_grad[:3]]
    dx, dw, dmask = _conv_backward(dy, *ctx.saved_tensors, *ctx.geometry, need)
    db = composed.bias_gradient(dy) if ctx.needs_input_grad[3] else None
    gradients = (dx if need[0] else None, dw if need[1] else None, dmask if need[2] else None, db)
    return *gradients, None, None, None, None, None, None, None


def _composed_backward(ctx: Any, dy: Tensor | None, dz: Tensor | None) -> tuple[Tensor | None, ...]:
    """(dx, dw, dmask, db) as torch's own operations, which can be differentiated again; dz: the gradient of Z."""
    (z, weight, mask), (taps, groups, n, layout, listed, (channels, *size)) = ctx.saved_tensors, ctx.geometry
    modes, given = _mode_list(tuple(n), tuple(layout), listed), dz if dy is None else dy
    if given is None:
        return (None,) * 4
    out = size if dy is None else dy.shape[2:]
    transforms = _transforms(given, weight, taps, modes, size, out)
    batch = given.shape[2] // channels if dy is None else dy.shape[0]
    need_x, need_weight, need_mask, need_bias = ctx.needs_input_grad[:4]
    dx, dw, db, dm = composed.gradients(
        dy, dz, z, weight, transforms, groups, (batch, channels, *size), (need_x, need_weight, need_bias, need_mask),
        _values(mask, modes, given),
    )  # fmt: skip
    return dx, dw, None if dm is None else _at_modes(dm, mask, modes), db


_conv.register_autograd(_differentiate, setup_context=_save)


@_conv.register_flops
def _(
    *, x: Tensor, weight: Tensor, out_channels: int, groups: int, n: Ints, layout: Ints, listed: bool, out: Ints
) -> int:
    kernel = weight if weight.dim() == 4 else None
    return flops.forward(x, kernel, out_channels, out, groups, _counted(n, layout, listed))


@_conv_backward.register_flops
def _(*, dy: Tensor, weight: Tensor, groups: int, n: Ints, layout: Ints, listed: bool, shape: Ints, need: Ints) -> int:
    """With a gradient of the mask, the product is made again."""
    kernel, transform = weight if weight.dim() == 4 else None, _counted(n, layout, listed)
    found = flops.backward(dy, kernel, shape[0], shape[1:], groups, transform, bool(need[0]), bool(need[1]))
    if need[2]:
        of_weight = 0 if kernel is None else kernel.shape[0] * kernel.shape[1] * transform.of(kernel.shape[2:])
        found += of_weight + 8 * dy.shape[0] * dy.shape[1] * (shape[0] // groups) * transform.modes
    return found


def _counted(n: Ints, layout: Ints, listed: bool) -> flops.TransformCost:
    modes = _mode_list(tuple(n), tuple(layout), listed)
    return flops.by_matrix(len(modes)) if listed else flops.by_steps(n, modes.steps)


# --- masks and transforms -------------------------------------------------------------------------------------------


def _mode_list(n: tuple[int, ...], layout: tuple[int, ...], listed: bool) -> ModeList:
    pairs = tuple(zip(layout[::2], layout[1::2], strict=True))
    return ModeList((n[0], n[1]), cells=pairs) if listed else ModeList((n[0], n[1]), steps=pairs)


def _transforms(
    like: Tensor, weight: Tensor, taps: Ints, modes: ModeList, size: Ints, out: Ints
) -> composed.ChainTransforms:
    """Of x, of the weight (None: it comes as its modes), and the transpose of the inverse onto y."""
    of_weight = None if weight.dim() == 3 else _transform(like, modes, taps, weight.shape[2:])
    return _transform(like, modes, (0, 0), size), of_weight, _transform(like, modes, (0, 0), out, inverse=True)


def _product(
    z: Tensor, weight: Tensor, taps: Ints, out_channels: int, batch: int, groups: int, modes: ModeList
) -> Tensor:
    """P = Z conj(W): [F, 2, B, O], a tensor of its own."""
    if weight.dim() == 3:
        return product(z, weight, out_channels, batch, groups)
    return weight_product(z, weight, _transform(z, modes, taps, weight.shape[2:]), batch, groups)


def _values(mask: Tensor, modes: ModeList, like: Tensor) -> Tensor:
    """The mask at the listed modes, to broadcast over [F, 2, B, O]."""
    where, dtype = flat_indices(modes, mask.device), compute_dtype(like.dtype)
    if mask.dim() == 2:
        return mask.flatten()[where].to(dtype).view(-1, 1, 1, 1)
    return mask.flatten(1)[:, where].t().to(dtype)[:, None, :, None]  # mask [B, 1, ...]


def _mask_gradient(g: Tensor, y: Tensor, mask: Tensor, modes: ModeList) -> Tensor:
    """sum Re(conj(g) y) at the listed modes, in the shape of the mask, zero elsewhere; overwrites y."""
    return _at_modes(y.mul_(g).sum(dim=(1, 3)).t(), mask, modes)


def _at_modes(cells: Tensor, mask: Tensor, modes: ModeList) -> Tensor:
    """Values [B, F] of the listed modes in the shape of the mask, summed over the batch if it has one for all."""
    if mask.dim() == 2:
        cells = cells.sum(0, keepdim=True)
    flat = mask.new_zeros(cells.shape[0], mask.shape[-2] * mask.shape[-1])
    return flat.index_copy(1, flat_indices(modes, mask.device), cells.to(mask.dtype)).view(mask.shape)


def _taps(band: Band, kernel: Ints) -> list[int]:
    """Where the taps of a kernel lie: the place of the first on each axis, then their distance on each."""
    return [*(-before for before, _ in band.pad), *dilation_of(band, kernel)]


def _transform(like: Tensor, modes: ModeList, taps: Ints, lengths: Ints, inverse: bool = False) -> Transform:
    """taps: the first place on each axis, and distances where they are not 1; see `_taps`."""
    make, *arguments = _arguments(like, modes, taps, lengths, inverse)
    return make(*arguments)


def _arguments(like: Tensor, modes: ModeList, taps: Ints, lengths: Ints, inverse: bool = False) -> tuple[Any, ...]:
    """What makes a transform, and what of."""
    spacing = tuple(taps[2:]) or None
    where = (tuple(taps[:2]), tuple(lengths), inverse, compute_dtype(like.dtype), like.device, spacing)
    return (listed_dft, modes.n, modes.cells, *where) if modes.cells else (stepped_dft, modes.n, modes.steps, *where)
