"""The transforms and products under the convolutions: pieces and wholes, complex arithmetic, memory."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import spectralkernels as sk
from spectralkernels import masks
from spectralkernels.convolution import linear_maps
from spectralkernels.convolution.geometry import conv_band
from spectralkernels.convolution.modal import correlate, multiply, multiply_transposed
from spectralkernels.dft import FEW_PIXELS, FEW_TERM_ROWS, ListedDFT, SteppedDFT, listed_dft, stepped_dft
from spectralkernels.ops.masked_conv2d.profiles import make_mask
from spectralkernels.spectra import step_cells

STEPS = ((2, 4), (1, 0), (2, 2))


def transforms(lengths: tuple[int, int], inverse: bool) -> list[SteppedDFT | ListedDFT]:
    """The same modes of a 9 x 10 circle, as a staircase (dense if there are few pixels) and as a list."""
    where = ((-2, -1), lengths, inverse, torch.float64, torch.device("cpu"))
    return [stepped_dft((9, 10), STEPS, *where), listed_dft((9, 10), step_cells(9, STEPS), *where)]


def complex_modes(planes: Tensor, steps: tuple[tuple[int, int], ...]) -> Tensor:
    """[F, 2, planes] by a sum over a full DFT matrix."""
    u, v = torch.tensor(step_cells(9, steps), dtype=torch.float64).t()
    rows = torch.arange(planes.shape[1], dtype=torch.float64) - 2
    columns = torch.arange(planes.shape[2], dtype=torch.float64) - 1
    turn = 2 * torch.pi * (u[:, None, None] * rows[:, None] / 9 + v[:, None, None] * columns / 10)
    found = torch.einsum("fhw,phw->fp", torch.polar(torch.ones_like(turn), -turn), planes.to(torch.complex128))
    return torch.stack([found.real, found.imag], dim=1)


@pytest.mark.parametrize("lengths", [(3, 3), (4, 4), (2, 8), (5, 7), (9, 10), (11, 1), (1, 1)])
@pytest.mark.parametrize("most", [1, 3, 8, 11, 1000])
def test_pieces_are_the_whole(lengths: tuple[int, int], most: int, poisoned: None, seed: int):
    planes = torch.randn(6, *lengths, dtype=torch.float64)
    stepped, listed = transforms(lengths, inverse=False)
    assert isinstance(stepped, ListedDFT) == (lengths[0] * lengths[1] <= FEW_PIXELS)
    want = complex_modes(planes, STEPS)
    other = torch.randn_like(want)
    for transform in (stepped, listed):
        torch.testing.assert_close(transform.analyse(planes), want)
        found = torch.full_like(want, float("nan"))  # pieces may overlap
        for where, piece in transform.stream(planes, most):
            assert 0 <= where.start < where.stop <= transform.modes == len(want)
            assert len(piece) <= max(1.5 * most, 7, FEW_TERM_ROWS // 2)  # a column of 7 modes, a batch
            found[where] = piece
        torch.testing.assert_close(found, want)
        whole = transform.synthesise(other)
        torch.testing.assert_close((whole * planes).sum(), (want * other).sum())
        torch.testing.assert_close(transform.gather(lambda where: other[where], 6, most), whole)


def test_a_few_pixels_keep_the_accuracy_of_one_rounding(seed: int):
    """Batches of rows and what is left of them, in float32 against float64, at every number of modes modulo 8."""
    for modes in range(1, 20):
        cells = tuple((i % 9, i % 6) for i in range(modes))
        where = ((-1, -1), (3, 3), False)
        planes = torch.randn(50, 3, 3, dtype=torch.float64)
        exact = listed_dft((9, 10), cells, *where, torch.float64, torch.device("cpu")).analyse(planes)
        single = listed_dft((9, 10), cells, *where, torch.float32, torch.device("cpu"))
        got = torch.full_like(exact, float("nan"))
        for where, piece in single.stream(planes.float(), 5):
            got[where] = piece.double()
        assert float((got - exact).norm() / exact.norm()) < 2e-7


@pytest.mark.parametrize(("groups", "per_group", "out_per_group"), [(1, 5, 3), (2, 3, 2), (3, 1, 1), (2, 1, 3)])
def test_products_are_complex_products(groups: int, per_group: int, out_per_group: int, poisoned: None, seed: int):
    modes, batch, out_channels = 4, 3, groups * out_per_group
    z, w, g = (
        torch.randn(modes, 2, *sides, dtype=torch.float64)
        for sides in ((batch, groups * per_group), (out_channels, per_group), (batch, out_channels))
    )

    def whole(planar: Tensor) -> Tensor:
        return torch.complex(planar[:, 0], planar[:, 1])

    def parts(values: Tensor) -> Tensor:
        return torch.stack([values.real, values.imag], dim=1)

    z_groups = whole(z).unflatten(2, (groups, -1))
    w_groups, g_groups = whole(w).unflatten(1, (groups, -1)), whole(g).unflatten(2, (groups, -1))
    pieces = [(where, w[where].flatten(2)) for where in (slice(0, 2), slice(2, 3), slice(1, 4))]
    out = torch.empty(modes, 2, batch, out_channels, dtype=torch.float64)
    multiply(z.flatten(2), z.shape[3], pieces, groups, out)
    torch.testing.assert_close(out, parts(torch.einsum("fbgc,fgoc->fbgo", z_groups, w_groups.conj()).flatten(2)))
    out = torch.empty_like(z)
    multiply_transposed(g, pieces, groups, out)
    torch.testing.assert_close(out, parts(torch.einsum("fbgo,fgoc->fbgc", g_groups, w_groups).flatten(2)))
    out = torch.empty_like(w)
    correlate(g, z, groups, out)
    torch.testing.assert_close(out, parts(torch.einsum("fbgo,fbgc->fgoc", g_groups.conj(), z_groups).flatten(1, 2)))


@pytest.mark.parametrize("piece_bytes", [1, 700, 5000, 1 << 30])
def test_the_size_of_a_piece_changes_nothing(piece_bytes: int, monkeypatch: pytest.MonkeyPatch, seed: int):
    """Values and gradients of both convolutions, K below and above the dense form, one group and several."""
    draw = random.Random(seed)
    for kernel, groups in (((3, 3), 1), ((5, 4), 2), ((6, 7), 1), ((3, 2), 4)):
        side = (draw.choice((6, 7)), draw.choice((5, 8)))
        x = torch.randn(2, 4, *side, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(8, 4 // groups, *kernel, dtype=torch.float64, requires_grad=True)
        n = masks.fft_grid(side, kernel)
        for mask in (None, make_mask("radial", 0.4, n, 2, 0), make_mask("scattered", 0.6, n, 2, 0)):

            def run(impl: str, mask: Tensor | None = mask, groups: int = groups, x=x, weight=weight) -> list[Tensor]:
                if mask is None:
                    y = sk.band_limited_conv2d(x, weight, compression=0.4, groups=groups, impl=impl)
                else:
                    y = sk.masked_conv2d(x, weight, mask, groups=groups, impl=impl)
                return [y, *torch.autograd.grad(y.cos().sum(), (x, weight))]

            monkeypatch.setattr(linear_maps, "PIECE_BYTES", piece_bytes)
            for got, want in zip(run("dft_gemm"), run("torch_fft"), strict=True):
                torch.testing.assert_close(got, want)


class Largest(TorchDispatchMode):
    """The largest storage that any operator made."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        found = func(*args, **(kwargs or {}))
        if not name.startswith("spectralkernels"):
            made = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
            self.nbytes = max([self.nbytes, *(leaf.untyped_storage().nbytes() for leaf in made)])
        return found


@pytest.mark.parametrize("kernel", [3, 5])
def test_the_spectrum_of_a_weight_is_never_whole(kernel: int, seed: int):
    """128 x 128 channels on 16 x 16: 20 to 24 MB of modes forward and backward, in pieces of about 3 MB."""
    x, weight = torch.randn(1, 128, 16, 16), torch.randn(128, 128, kernel, kernel)
    band = conv_band((16, 16), (kernel, kernel), compression=0.0)
    whole = 2 * 4 * band.modes * 128 * 128
    assert whole > 4 * linear_maps.PIECE_BYTES
    steps = ((band.kept[1], band.kept[0]),)
    where = (False, torch.float32, torch.device("cpu"))
    of_weight = stepped_dft(band.n, steps, (-1, -1), (kernel, kernel), *where)
    of_x = stepped_dft(band.n, steps, (0, 0), (16, 16), *where)
    z = linear_maps.analyse(x, of_x)
    with Largest() as largest:
        y = linear_maps.weight_product(z, weight, of_weight, 1, 1)
        linear_maps.weight_product_transposed(y, weight, of_weight, 1)
        linear_maps.weight_gradient(y, z, weight, of_weight, 1)
    # A separable transform holds the kernel's rows of every kept column.
    assert largest.nbytes <= max(1.5 * linear_maps.PIECE_BYTES, 2 * 4 * band.kept[1] * kernel * 128 * 128)
    assert largest.nbytes < whole / 2
    assert of_weight.modes == band.modes
