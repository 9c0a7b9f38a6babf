"""Lead and top selection: what the paper's Fig. 24 says, and what symmetry demands."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from effort import gradcheck

import spectralkernels as sk
from spectralkernels.declare import Case, with_seed
from spectralkernels.errors import RangeError
from spectralkernels.ops.spectrum_selection import OPERATION, select


def error(selection: str, compression: float, kind: str, seed: int) -> float:
    """Relative L2 error of the exact operation against the uncompressed convolution."""
    params = {"batch": 1, "channels": 3, "out_channels": 1, "height": 32, "width": 32, "kernel_size": 5, "grid": "seed"}
    chosen = {**params, "selection": selection, "compression": compression, "input": kind}
    case = with_seed(Case("spectrum_selection", tuple(chosen.items()), "float64"), seed)
    inputs = OPERATION.make_inputs(case, "cpu")
    got, want = OPERATION.reference(**inputs), OPERATION.ideal(**inputs)
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("kind", ["pink", "photo"])
def test_at_6_61_percent_lead_loses_more_than_top(kind: str, seed: int):
    lead = [error("lead", 0.05, kind, seed + i) for i in range(8)]
    top = [error("top", 117 / 1770, kind, seed + i) for i in range(8)]
    assert sum(lead) > sum(top)


@pytest.mark.parametrize("selection", ["lead", "top"])
def test_nothing_is_lost_at_zero_and_errors_grow(selection: str, seed: int):
    errors = [error(selection, rate, "pink", seed) for rate in (0.0, 0.3, 0.6, 0.9)]
    assert errors[0] < 1e-12
    assert errors == sorted(errors)


@pytest.mark.parametrize("n", [(8, 8), (7, 6), (5, 9), (1, 4)])
def test_top_keeps_conjugate_pairs_whole(n: tuple[int, int], seed: int):
    spectrum = torch.fft.rfft2(torch.randn(2, 3, *n, dtype=torch.float64))
    kept = select(spectrum.abs(), "top", 0.5, n)
    masked = spectrum * kept
    again = torch.fft.rfft2(torch.fft.irfft2(masked, s=n))
    torch.testing.assert_close(again, masked)
    assert 0.4 < 1.0 - kept.double().mean() <= 0.5


def test_unknown_selection_is_answered():
    with pytest.raises(RangeError, match="unknown selection 'best'; known: lead, top"):
        select(torch.ones(1, 1, 4, 3), "best", 0.5, (4, 4))


@pytest.mark.parametrize("selection", ["lead", "top"])
@pytest.mark.parametrize(("size", "kernel"), [((6, 5), (3, 2)), ((3, 4), (5, 9)), ((1, 7), (1, 3))])
def test_m12_as_an_operator_it_is_conv2d_at_zero_and_has_exact_gradients(
    selection: str, size: tuple[int, int], kernel: tuple[int, int], seed: int
):
    x = torch.randn(2, 3, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 3, *kernel, dtype=torch.float64, requires_grad=True)
    whole = sk.spectrum_selection(x, weight, compression=0.0, selection=selection)
    torch.testing.assert_close(whole, F.conv2d(x, weight, padding="same"))
    lossy = sk.spectrum_selection(x, weight, compression=0.5, selection=selection)
    if selection == "lead":
        torch.testing.assert_close(lossy, sk.band_limited_conv2d(x, weight, compression=0.5, impl="torch_fft"))
    assert lossy.shape == whole.shape and (lossy - whole).abs().max() > 1e-6
    assert gradcheck(
        lambda x, w: sk.spectrum_selection(x, w, compression=0.5, selection=selection), (x, weight), fast_mode=True
    )
    assert sk.spectrum_selection(x[:0], weight, compression=0.5, selection=selection).shape[0] == 0
