"""Masked convolution with a dilation: the kernel with zeros between its taps, frozen, differentiated and compiled."""

from __future__ import annotations

import pytest
import torch
from effort import gradcheck
from torch import Tensor

import spectralkernels as sk
from spectralkernels import masked_conv2d, masks


@pytest.mark.parametrize("listed", [False, True])
def test_dilation_is_a_kernel_with_zeros_between_its_taps(listed: bool, seed: int):
    x = torch.randn(2, 4, 7, 8, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    wide = torch.zeros(6, 2, 5, 4, dtype=torch.float64)
    wide[:, :, ::2, ::3] = weight.detach()
    wide.requires_grad_()
    n = masks.fft_grid((7, 8), (3, 2), dilation=(2, 3))
    assert n == masks.fft_grid((7, 8), (5, 4))
    mask = masks.hermitian(torch.rand(n[0], n[1] // 2 + 1, dtype=torch.float64) * masks.radial(n, 0.4), n)
    modes = masks.mode_list(mask, n, form="cells" if listed else "steps")
    want = masked_conv2d(x, wide, mask, groups=2, impl="torch_fft")
    dx, dw = torch.autograd.grad(want.sin().sum(), (x, wide))
    for impl in ("dft_gemm", "torch_fft", "auto"):
        got = masked_conv2d(x, weight, mask, modes=modes, groups=2, dilation=(2, 3), impl=impl)
        torch.testing.assert_close(got, want)
        found = torch.autograd.grad(got.sin().sum(), (x, weight))
        torch.testing.assert_close(found, (dx, dw[:, :, ::2, ::3]))
    frozen = sk.masked_weight_spectrum(weight.detach(), modes, (7, 8), groups=2, dilation=(2, 3))
    torch.testing.assert_close(masked_conv2d(x, frozen, mask), want)

    def convolve(x: Tensor, weight: Tensor) -> Tensor:
        return masked_conv2d(x[:1, :, :3, :3], weight, mask_of_few, padding=(2, 3), groups=2, dilation=(2, 3))

    mask_of_few = masks.radial(masks.fft_grid((3, 3), (3, 2), padding=(2, 3), dilation=(2, 3)), 0.6)
    assert gradcheck(convolve, (x, weight), fast_mode=True)
    compiled = torch.compile(convolve, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, weight), convolve(x, weight))
    with pytest.raises(sk.RangeError, match="dilation must be left out with a frozen WeightSpectrum"):
        masked_conv2d(x, frozen, mask, dilation=2)
    with pytest.raises(sk.RangeError, match="dilation must be one whole number"):
        masked_conv2d(x, weight, mask, groups=2, dilation=(2, 0))
    told = sk.explain(masked_conv2d, x, weight, mask, dilation=(2, 3), groups=2)
    refused = {other.name: other.reason for other in told.others}
    assert all(reason for name, reason in refused.items() if name.startswith("dft_triton"))
