"""The accuracy classes of the truncated-DFT kernels, emulated in float64: each stated bound holds and is not loose."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from spectralkernels.convolution.baselines import reference
from spectralkernels.convolution.dft_triton.layout import Layout
from spectralkernels.convolution.dft_triton.matrices import Transform, separable_matrices
from spectralkernels.convolution.dft_triton.precision import PRECISIONS
from spectralkernels.convolution.geometry import conv_band
from spectralkernels.spectra import Band
from spectralkernels.tf32 import round_to_tf32


def relative_error(y: Tensor, expected: Tensor) -> float:
    return float((y - expected).norm() / expected.norm())


def to_bf16(values: Tensor) -> Tensor:
    return values.to(torch.bfloat16).to(values.dtype)


ROUND: dict[str, Callable[[Tensor], Tensor]] = {
    "tf32": lambda values: round_to_tf32(values.float()).double(),
    "fp16": lambda values: values.half().double(),
    "bf16": to_bf16,
}
SPLITS = {"tf32x3": ("tf32", 2), "bf16x3": ("bf16", 2), "bf16x6": ("bf16", 3)}


def pieces(values: Tensor, kind: str, count: int) -> list[Tensor]:
    """values as a sum of `count` numbers of a narrow type."""
    found: list[Tensor] = []
    for _ in range(count):
        found.append(ROUND[kind](values))
        values = values - found[-1]
    return found


def product(a: Tensor, b: Tensor, name: str) -> Tensor:
    """a @ b as tensor cores compute it in the class `name`, but for the order of the sum."""
    if name in SPLITS:
        kind, count = SPLITS[name]
        a_pieces, b_pieces = (pieces(each.float().double(), kind, count) for each in (a, b))
        # The products of pieces that are kept: all but those below the last piece.
        total = sum(a_pieces[i] @ b_pieces[j] for i in range(count) for j in range(count) if i + j < count)
        assert isinstance(total, Tensor)
        return total.float().double()
    return ROUND[name](a) @ ROUND[name](b)


def emulated(x: Tensor, weight: Tensor, band: Band, name: str) -> Tensor:
    """A 2-D forward pass by the separable transforms, every operand rounded as the class rounds it."""

    def matrices(transform: Transform) -> tuple[Tensor, Tensor]:
        blocks = (*transform.lengths, transform.modes_u, transform.modes_v)
        return separable_matrices(transform, blocks, False, torch.float64, False, torch.device("cpu"))

    def analyse(maps: Tensor, transform: Transform) -> Tensor:
        columns, rows = matrices(transform)
        t = product(maps.flatten(0, 1).double(), columns.t(), name).unflatten(2, (2, -1))  # [plane, h, part, v]
        t = t.permute(3, 2, 1, 0).flatten(1, 2)  # [v, (part, h), plane]
        z = product(rows.expand(t.shape[0], -1, -1), t, name)  # [v, (part, u), plane]
        z = z.unflatten(1, (2, -1)).transpose(1, 2)  # [v, u, part, plane]
        return z.unflatten(3, maps.shape[:2]).flatten(0, 1)  # [mode, part, a, b]

    zero, starts = (0, 0), tuple(-before for before, _ in band.pad)
    z = analyse(x, Transform(Layout(band.n, band.kept), zero, band.size, False, True))
    w = analyse(weight, Transform(Layout(band.n, band.kept), starts, band.kernel, False, False)).transpose(2, 3)
    y_re = product(z[:, 0], w[:, 0], name) + product(z[:, 1], w[:, 1], name)
    y_im = product(z[:, 1], w[:, 0], name) - product(z[:, 0], w[:, 1], name)
    inverse = Transform(Layout(band.n, band.kept), zero, band.out, True, True)
    columns, rows = matrices(inverse)
    modes = torch.stack([y_re, y_im], 1).unflatten(0, (inverse.modes_v, inverse.modes_u))  # [v, u, part, b, o]
    modes = modes.flatten(3).transpose(1, 2).flatten(1, 2)  # [v, (part, u), plane]
    g = product(rows.t().expand(len(modes), -1, -1), modes, name).unflatten(1, (2, -1))  # [v, part, h, plane]
    y = product(g.permute(3, 2, 1, 0).flatten(2), columns, name)
    return y.unflatten(0, (len(x), -1))


@pytest.mark.parametrize("name", [*ROUND, *SPLITS])
def test_error_bounds_of_the_classes_hold_and_are_tight(seed: int, name: str) -> None:
    worst = 0.0
    for channels, size, kernel, compression in ((64, (32, 32), 3, 0.5), (16, (19, 37), 7, 0.0), (8, (17, 17), 5, 0.8)):
        band = conv_band(size, (kernel, kernel), compression=compression)
        x, weight = torch.randn(2, channels, *size), torch.randn(8, channels, kernel, kernel)
        error = relative_error(emulated(x, weight, band, name), reference(x, weight, None, band, 1))
        assert error <= PRECISIONS[name].error, (size, error)
        worst = max(worst, error)
    if PRECISIONS[name].error > 3e-6:  # the others are bounded by the order of summation, which is not emulated
        assert worst >= PRECISIONS[name].error / 10


def test_fp16_does_not_overflow_at_the_mean(seed: int) -> None:
    band = conv_band((64, 64), (3, 3), compression=0.5)
    # Positive weights, so that the mean of the output is no sum that cancels.
    x, weight = torch.full((1, 4, 64, 64), 64.0) + torch.randn(1, 4, 64, 64), torch.randn(2, 4, 3, 3).abs() / 6
    assert 64 * 64 * 64 > torch.finfo(torch.float16).max
    error = relative_error(emulated(x, weight, band, "fp16"), reference(x, weight, None, band, 1))
    assert error <= PRECISIONS["fp16"].error


def test_tf32_is_the_nearest_number_of_eleven_bits(seed: int) -> None:
    values = torch.randn(1000) * 10.0 ** torch.randint(-30, 30, (1000,))
    rounded = round_to_tf32(values)
    assert (rounded.view(torch.int32) & 0x1FFF == 0).all()
    assert ((rounded - values).abs() <= values.abs() * 2.0**-11).all()
