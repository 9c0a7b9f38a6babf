"""`explain` says what a call would run and why, and computes nothing."""

from __future__ import annotations

import re

import pytest
import torch

import spectralkernels as sk
from spectralkernels.convolution.dft_native import build
from spectralkernels.ops import load_operations


@pytest.fixture(autouse=True)
def nothing_built(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `auto` takes must not depend on what an earlier run compiled."""
    monkeypatch.setattr(build, "READY", False)


def maps(kernel_size: int, groups: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """Of 64 channels and 32 x 32 pixels, without memory."""
    x = torch.empty(8, 64, 32, 32)
    return x, torch.empty(64, 64 // groups, kernel_size, kernel_size)


def test_it_names_the_choice_its_reason_and_everybody_else():
    found = sk.explain(sk.band_limited_conv2d, *maps(7), compression=0.5)
    assert (found.operation, found.asked, found.chosen, found.refused) == (
        "band_limited_conv2d",
        "auto",
        "dft_gemm",
        None,
    )
    assert re.fullmatch(r"it has the least estimated time on a CPU: [\d.e-]+ s, \w+ [\d.e-]+ s", found.because)
    reasons = {other.name: other.reason for other in found.others}
    names = {known.name for known in load_operations()["band_limited_conv2d"].implementations}
    assert reasons.keys() == names - {"dft_gemm"}
    assert reasons["torch_fft"] is None
    assert reasons["direct"] is not None


def test_the_reason_follows_the_shapes():
    direct = sk.explain(sk.band_limited_conv2d, *maps(3))
    assert direct.chosen.startswith("direct")
    assert sk.explain(sk.band_limited_conv2d, *maps(15)).chosen == "dft_gemm"
    long = sk.explain(sk.band_limited_conv1d, torch.empty(2, 4, 2048), torch.empty(4, 1, 31), groups=4, compression=0.5)
    assert (long.chosen, "s, torch_fft" in long.because) == ("direct_lowpass", True)


def test_a_named_implementation_that_cannot_run_is_explained_and_not_raised():
    found = sk.explain(sk.band_limited_conv2d, *maps(7), compression=0.5, impl="direct")
    assert (found.asked, found.chosen) == ("direct", "direct")
    assert found.refused is not None
    assert str(found).splitlines()[0] == f"band_limited_conv2d: direct cannot run: {found.refused}"


def test_as_text_it_has_a_line_for_each():
    text = str(sk.explain(sk.band_limited_conv2d, *maps(7), compression=0.5))
    assert text.startswith("band_limited_conv2d: dft_gemm runs: it has the least estimated time")
    assert "\n  torch_fft " in text
    assert "could run" in text


def test_every_operation_can_be_explained():
    x_hat = torch.fft.rfft2(torch.randn(2, 3, 8, 8), norm="ortho")
    sparse = sk.threshold_spectrum(x_hat, 0.5)
    w_hat = torch.randn(4, 3, 8, 5, dtype=torch.complex64)
    mask = torch.ones(9, 5, dtype=torch.bool)
    calls = [
        (sk.masked_multiply, x_hat, w_hat),
        (sk.threshold_spectrum, x_hat, 0.5),
        (sk.sparse_multiply, sparse, w_hat),
        (sk.masked_conv2d, torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3), mask),
        (sk.band_limited_conv1d, torch.randn(2, 3, 8), torch.randn(4, 3, 3)),
    ]
    for function, *arguments in calls:
        found = sk.explain(function, *arguments)
        assert found.operation == function.__name__
        assert found.because
        assert found.refused is None


def test_wrong_arguments_are_refused_as_in_the_call():
    with pytest.raises(sk.ShapeError, match="x must have 4 dimensions"):
        sk.explain(sk.band_limited_conv2d, torch.empty(3), torch.empty(3))
    with pytest.raises(sk.RangeError, match="no implementation 'nobody'"):
        sk.explain(sk.band_limited_conv2d, *maps(3), impl="nobody")


@pytest.mark.parametrize("function", [torch.relu, sk.masks.radial, sk.implementations])
def test_what_is_no_operation_is_refused(function):
    with pytest.raises(sk.DtypeError, match="function must be an operation"):
        sk.explain(function, (4, 4))


def test_a_type_error_of_the_call_itself_comes_through():
    with pytest.raises(TypeError, match="nonsense"):
        sk.explain(sk.band_limited_conv2d, *maps(3), nonsense=1)
