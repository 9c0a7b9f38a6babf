"""Resampling at learned strides by torch's products, whose backward pass makes few of its own.

    t = A_h x,   y = t A_w',        A = S diag(m(S)) D of each axis (`resampling`)
    o = dy A_w,  dx = A_h' o,       dL/dS_h = sum_k m'_k <S_k' o, D_k x>,   dL/dS_w = sum_k m'_k <dy S_k, t D_k'>

The slope m' is zero outside the ramp, which holds ceil(R) frequencies at most. So of x and t their products with those
waves are all that is saved, and of o and dy the backward pass makes those with them: beside the four products of a
pooling, [32, 32] -> [24, 24] at R = 4, a third more multiplications, where the gradients to both matrices cost a half
more. Those of columns are part of a product that is made anyway.

What is saved is output too, with gradients of its own, so that torch's products differentiate the backward pass again.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spectralkernels.autocast import as_written
from spectralkernels.constants import constant
from spectralkernels.masks.window import AT_AN_END, ramp_slope, stride_bounds
from spectralkernels.resampling import factors, windowed_matrix

Size = tuple[int, int]


def learned_resample(x: Tensor, strides: Tensor, size: Size, smoothness: float, scale: float) -> Tensor:
    """Maps Real [batch, channel, n_h, n_w] on `size`, under the soft window of strides [2] of the same dtype."""
    y: Tensor = _Learned.apply(x, strides, size, smoothness, scale)[0]
    return y


class _Learned(torch.autograd.Function):
    """(y, the ramp's waves of x by rows, of t by columns)."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, strides: Tensor, size: Size, smoothness: float, scale: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        plane = (x.shape[2], x.shape[3])
        table = _table(plane, size, smoothness, scale, x.dtype, x.device)
        ctx.shape, ctx.facts = x.shape, (plane, size, smoothness, scale)
        edge = table.half / strides.clamp(table.least, table.most)
        window = (edge.index_select(0, table.axis) + table.reach).clamp_(0.0, smoothness).split(size)
        rows, columns = ((s * m) @ d for s, m, d in zip(table.synthesis, window, table.analysis, strict=True))
        waves = edge.long().clamp_(max=table.last).clamp_(min=0).unsqueeze(1) + table.steps  # strides may be NaN
        planes = x.flatten(0, 1)
        t = _from_left(rows, planes)
        both = t @ torch.cat([columns, _waves(table.analyses[1], waves[1])]).t()
        y = x.new_empty(*x.shape[:2], *size)  # no view, so that it may be changed in place
        y.view(planes.shape[0], *size).copy_(both[..., : size[1]])
        of_columns = both[..., size[1] :].contiguous()
        of_rows = _from_left(_waves(table.analyses[0], waves[0]), planes)
        ctx.save_for_backward(strides, edge, waves, rows, columns, of_rows, of_columns)
        return y, of_rows, of_columns

    @staticmethod
    def backward(
        ctx: Any, dy: Tensor | None, d_rows: Tensor | None, d_columns: Tensor | None
    ) -> tuple[Tensor | None, Tensor, None, None, None]:
        strides, edge, waves, rows, columns, of_rows, of_columns = ctx.saved_tensors
        plane, size, smoothness, scale = ctx.facts
        table = _table(plane, size, smoothness, scale, strides.dtype, strides.device)
        with as_written(strides.device.type):
            if torch.is_grad_enabled():
                rows, columns, slope = _differentiable(strides, waves, plane, size, smoothness, scale)
            else:
                from_middle = (edge.unsqueeze(1) - waves + smoothness / 2).abs_()
                slope = (from_middle < table.sloped) * (edge.square() * table.steepness).unsqueeze(1)
            o = dx = None
            of_strides = [slope.new_zeros(2 * slope.shape[1])] * 2
            if dy is not None:
                both = dy.reshape(of_rows.shape[0], *size) @ torch.cat(
                    [columns, _waves(table.syntheses[1], waves[1]).t()], dim=1
                )
                o = both[..., : plane[1]]
                of_strides[1] = (both[..., plane[1] :] * of_columns).sum((0, 1))
            if d_columns is not None:
                further = d_columns @ _waves(table.analyses[1], waves[1])
                o = further if o is None else o + further
            if o is not None:
                of_strides[0] = (_from_left(_waves(table.syntheses[0], waves[0]), o) * of_rows).sum((0, 2))
                dx = _from_left(rows.t(), o) if ctx.needs_input_grad[0] else None
            if d_rows is not None and ctx.needs_input_grad[0]:
                further = _from_left(_waves(table.analyses[0], waves[0]).t(), d_rows)
                dx = further if dx is None else dx + further
            along = torch.stack(of_strides).view(*slope.shape, 2).sum(2)
            return None if dx is None else dx.view(ctx.shape), (along * slope).sum(1), None, None, None


class _Table(NamedTuple):
    """What every call of one geometry has in common; vectors of two are of rows and columns.

    half, least, most: N / 2, and between what S is held. axis, reach: of all m_h + m_w waves, and R - |k|.
    synthesis, analysis: S [m, m] and D / R [m, n] of each axis; scale is part of the first D and of the first S below.
    syntheses, analyses: by frequency, cosine and sine, [F, 2, m] and [F, 2, n], with zeros where there is no wave.
    last, steps: the greatest frequency below a ramp, and what is added to it. sloped, steepness: see `ramp_slope`.
    """

    half: Tensor
    least: Tensor
    most: Tensor
    axis: Tensor
    reach: Tensor
    synthesis: tuple[Tensor, Tensor]
    analysis: tuple[Tensor, Tensor]
    syntheses: tuple[Tensor, Tensor]
    analyses: tuple[Tensor, Tensor]
    last: Tensor
    steps: Tensor
    sloped: Tensor
    steepness: Tensor


@constant
def _table(
    plane: Size, size: Size, smoothness: float, scale: float, dtype: torch.dtype, device: torch.device
) -> _Table:
    many = min(math.ceil(smoothness), max(size) // 2)
    scales = (scale, 1.0)
    made = [factors(n, m, "drop", torch.float64, device) for n, m in zip(plane, size, strict=True)]

    def of_two(*values: float) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    def pair(tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
        first, second = (each.to(dtype).contiguous() for each in tensors)
        return first, second

    bounds = [stride_bounds(n, smoothness) for n in plane]
    return _Table(
        half=of_two(*(n / 2 for n in plane)),
        least=of_two(*(least for least, _ in bounds)),
        most=of_two(*(most for _, most in bounds)),
        axis=torch.tensor([0] * size[0] + [1] * size[1], device=device),
        reach=torch.cat([smoothness - k for _, _, k in made]).to(dtype),
        synthesis=pair([s for s, _, _ in made]),
        analysis=pair([d * (by / smoothness) for (_, d, _), by in zip(made, scales, strict=True)]),
        syntheses=pair([_by_frequency(s.t() * by, many) for (s, _, _), by in zip(made, scales, strict=True)]),
        analyses=pair([_by_frequency(d, many) for _, d, _ in made]),
        last=torch.tensor([m // 2 for m in size], device=device),
        steps=torch.arange(1, many + 1, device=device),
        sloped=of_two(*(smoothness / 2 - AT_AN_END * n for n in plane)).unsqueeze(1),
        steepness=of_two(*(-2.0 / (smoothness * n) for n in plane)),
    )


def _by_frequency(waves: Tensor, many: int) -> Tensor:
    """Waves [m, samples], cosines from 0 and then sines from 1, as [m // 2 + 1 + many, 2, samples]."""
    m, samples = waves.shape
    table = waves.new_zeros(m // 2 + 1 + many, 2, samples)
    table[: m // 2 + 1, 0] = waves[: m // 2 + 1]
    table[1 : (m + 1) // 2, 1] = waves[m // 2 + 1 :]
    return table


def _waves(table: Tensor, frequencies: Tensor) -> Tensor:
    return table.index_select(0, frequencies).flatten(0, 1)


def _differentiable(
    strides: Tensor, waves: Tensor, plane: Size, size: Size, smoothness: float, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Both matrices and the slopes [2, waves], as functions of the strides."""
    sides = list(enumerate(zip(plane, size, strict=True)))
    rows, columns = (
        windowed_matrix(n, m, "drop", None, strides, axis, smoothness, strides.dtype, strides.device)
        for axis, (n, m) in sides
    )
    slopes = [ramp_slope(waves[axis], n, strides[axis], smoothness) for axis, (n, _) in sides]
    return rows * scale, columns, torch.stack(slopes)


def _from_left(matrix: Tensor, planes: Tensor) -> Tensor:
    return torch.bmm(matrix.expand(planes.shape[0], -1, -1), planes)
