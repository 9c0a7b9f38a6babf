"""The separable transforms by quadrants, alone, against torch.fft in float64; and how they round to tf32."""

from __future__ import annotations

import pytest
import torch
from guarded_interpreter import guarded, interpreter, relative_error
from torch import Tensor

pytest.importorskip("triton")

import triton
import triton.language as tl

from spectralkernels.convolution.dft_triton.kernels.quadrants import to_tf32
from spectralkernels.convolution.dft_triton.layout import Layout
from spectralkernels.convolution.dft_triton.matrices import Transform, quadrant_matrices
from spectralkernels.convolution.dft_triton.precision import PRECISIONS
from spectralkernels.tf32 import round_to_tf32

__all__ = ["guarded"]

ERRORS = {"tf32x3": 1e-6, "tf32": 1.2e-3}
SHAPES = {
    # pixels, circle, kept: a block of everything; an even circle with all of its rows, its last row alone in two
    # blocks of rows; one row and one column; more than one block of pixels each way.
    "one block": ((17, 19), (18, 21), (7, 7)),
    "row n / 2": ((18, 20), (20, 22), (11, 12)),
    "two blocks of rows": ((66, 5), (66, 7), (34, 3)),
    "the mean": ((31, 9), (33, 11), (1, 1)),
    "blocks of pixels": ((35, 70), (37, 71), (3, 4)),
}


def circle(layout: Layout) -> list[int]:
    """Rows of a half spectrum in the order of the kernels."""
    half = layout.modes_u // 2 + 1
    return [*range(half), *range(layout.n[0] - (layout.modes_u - half), layout.n[0])]


@interpreter
@pytest.mark.parametrize("name", ERRORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_transforms_are_those_of_torch_fft(seed: int, guarded: None, shape: str, name: str) -> None:
    from spectralkernels.convolution.dft_triton.launches import transforms

    size, n, kept = SHAPES[shape]
    layout, precision = Layout(n, kept), PRECISIONS[name]
    rows = circle(layout)
    assert len(rows) == layout.modes_u
    x, gate, bias = torch.randn(3, 3, *size), torch.randn(3, 3, *size), torch.randn(3)
    z = torch.empty(layout.modes_v, layout.modes_u, 2, 9)
    saved = torch.empty(z.shape, dtype=torch.float16)
    # Channels and samples exchanged on the way in.
    order = transforms.Planes(9, 3, 3, 9, 1, 3)
    there = Transform(layout, (0, 0), size, False, True)
    launch = transforms.analyse_launch(x, gate, z, there, order, precision, saved)
    assert launch.kernel.fn.__name__ == "analyse_quadrants_kernel"
    launch.run()
    maps = (x.double() * (gate > 0)).transpose(0, 1).flatten(0, 1)
    want = torch.fft.rfft2(maps, s=n, norm="ortho")[:, rows, : kept[1]]
    want = torch.view_as_real(want).permute(2, 1, 3, 0)
    assert relative_error(z, want) <= ERRORS[name]
    assert relative_error(saved.float(), want) <= ERRORS[name] + 3e-4

    modes, y = torch.randn(z.shape), torch.empty(3, 3, *size)
    back = Transform(layout, (0, 0), size, True, True)
    launch = transforms.synthesise_launch(modes, bias, y, back, 9, True, precision)
    assert launch.kernel.fn.__name__ == "synthesise_quadrants_kernel"
    launch.run()
    full = torch.zeros(9, n[0], n[1] // 2 + 1, dtype=torch.complex128)
    full[:, rows, : kept[1]] = torch.view_as_complex(modes.double().permute(3, 1, 0, 2).contiguous())
    want = torch.fft.irfft2(hermitian(full, n[1]), s=n, norm="ortho")[:, : size[0], : size[1]].unflatten(0, (3, 3))
    want = (want + bias.double()[:, None, None]).relu()
    assert relative_error(y, want) <= ERRORS[name]


def hermitian(spectrum: Tensor, columns: int) -> Tensor:
    """The spectrum with the columns that are their own mirror made Hermitian, as the real part of a sum makes them."""
    for v in {0, columns // 2} if columns % 2 == 0 else {0}:
        column = spectrum[:, :, v]
        spectrum[:, :, v] = (column + column.flip(1).roll(1, 1).conj()) / 2
    return spectrum


@triton.jit
def round_kernel(x_ptr, y_ptr, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(y_ptr + at, to_tf32(tl.load(x_ptr + at)))


@interpreter
def test_numbers_are_rounded_to_tf32_without_bias(seed: int) -> None:
    def rounded(values: Tensor) -> Tensor:
        found = torch.empty_like(values)
        round_kernel[(1,)](values, found, SIZE=len(values))
        return found

    values = torch.exp(40 * torch.rand(2**18) - 20) * (torch.randint(0, 2, (2**18,)) * 2 - 1)
    found, nearest = rounded(values), round_to_tf32(values)
    assert (found.view(torch.int32) & 0x1FFF == 0).all()
    errors, best = ((each - values).double() / values for each in (found, nearest))
    assert errors.abs().max() <= 1.4 * 2.0**-11
    assert errors.square().mean().sqrt() <= 1.07 * best.square().mean().sqrt()
    # Cutting would leave 0.7.
    assert errors.mean().abs() <= 0.01 * 2.0**-11
    assert torch.equal(rounded(nearest), nearest)
    odd = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1.0, -3.0, 2.0**-126])
    assert torch.equal(rounded(odd).nan_to_num(nan=7.0), odd.nan_to_num(nan=7.0))
    all_ones = torch.tensor([0x7FFFFFFF, -1], dtype=torch.int32).view(torch.float32)
    assert rounded(all_ones).isnan().all()


def test_matrices_hold_each_number_once(seed: int) -> None:
    """What their order and padding leave is the transform itself."""
    transform = Transform(Layout((12, 11), (5, 4)), (-1, 0), (10, 9), False, False)
    where = (transform, (16, 16, 8, 8), False, torch.float64, False, torch.device("cpu"))
    columns, rows = quadrant_matrices(*where)
    assert columns.shape == (16, 16) and rows.shape == (16, 16)
    h, u = torch.arange(-1, 9).double(), torch.arange(5).double()
    order = torch.tensor([8 * (i // 8) + 2 * (i % 4) + i % 8 // 4 for i in range(16)])
    plain = torch.zeros_like(rows)
    plain[:, order] = rows
    angles = 2 * torch.pi * torch.outer(u, h) / 12
    torch.testing.assert_close(plain[:5, :10], angles.cos())
    torch.testing.assert_close(plain[8:13, :10].abs(), angles.sin().abs())
    assert plain[5:8].abs().sum() == plain[13:].abs().sum() == plain[:, 10:].abs().sum() == 0
