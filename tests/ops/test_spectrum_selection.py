"""Lead and top selection: what the paper's Fig. 24 says, and what symmetry demands."""

from __future__ import annotations

import pytest
import torch

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
