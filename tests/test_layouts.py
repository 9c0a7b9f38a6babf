"""One sample without a batch, and maps in channels_last: taken and given as torch.nn.functional.conv2d does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

import spectralkernels as sk
from spectralkernels.layouts import is_channels_last
from spectralkernels.ops import load_operation

LAST = torch.channels_last
W, B = torch.randn(6, 4, 3, 3), torch.randn(6)
A, F = torch.randn(2, 2, 2), torch.randn(2, 3, 2, 3, 3)
MASK = sk.masks.radial((10, 9), 0.5).float()
ELSEWHERE = ("torch_fft_compile", "fft_conv_pytorch", "direct_bf16")


def on_the_cpu(name: str) -> list[str]:
    found = load_operation(name).implementations
    return [one.name for one in found if one.available("cpu") is None and not one.frozen and one.name not in ELSEWHERE]


def band_limited(impl: str, weight: Tensor = W, **options: Any) -> Callable[[Tensor], Tensor]:
    compression = 0.0 if impl.startswith(("direct", "torch_fft_fast")) and impl != "direct_lowpass" else 0.5
    chosen = {"compression": compression, "grid": (12, 11), **options}
    return lambda x: sk.band_limited_conv2d(x, weight, B, **chosen, impl=impl)


def masked(impl: str) -> Callable[[Tensor], Tensor]:
    mask = torch.ones_like(MASK) if impl == "direct" else MASK
    return lambda x: sk.masked_conv2d(x, W, mask, B, impl=impl)


def shifted(impl: str) -> Callable[[Tensor], Tensor]:
    return lambda x: sk.dc_shift(x, impl=impl)


CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    **{f"conv-{impl}": band_limited(impl) for impl in ("auto", *on_the_cpu("band_limited_conv2d"))},
    "conv-frozen": lambda x: sk.band_limited_conv2d(x, sk.weight_spectrum(W, (9, 8))),
    **{f"strided-{impl}": band_limited(impl, stride=2, grid=12) for impl in ("auto", *on_the_cpu("strided_conv2d"))},
    **{f"masked-{impl}": masked(impl) for impl in ("auto", *on_the_cpu("masked_conv2d"))},
    "pool": lambda x: sk.spectral_pool2d(x, (5, 4)),
    "pool-torch_fft": lambda x: sk.spectral_pool2d(x, (5, 4), impl="torch_fft"),
    "dropout": lambda x: sk.frequency_dropout2d(x, 0.5),
    "diff_stride": lambda x: sk.diff_stride2d(x, torch.tensor([1.5, 2.0]), smoothness=2.0, size=(6, 5)),
    "ph_conv": lambda x: sk.ph_conv2d(x, A, F, B),
    "filter": lambda x: sk.spectral_filter_conv2d(x, W.flatten(2), B, kernel_size=3, form="hermitian"),
    "energy": lambda x: sk.energy_selection2d(x, 0.5),
    "selection": lambda x: sk.spectrum_selection(x, W, compression=0.5),
    **{f"dc_shift-{impl}": shifted(impl) for impl in ("auto", *on_the_cpu("dc_shift"))},
}
LAYERS = {
    "BandLimitedConv2d": lambda: sk.nn.BandLimitedConv2d(4, 6, 3, padding=1, compression=0.5),
    "circular": lambda: sk.nn.BandLimitedConv2d(4, 6, 3, padding=1, padding_mode="circular"),
    "MaskedConv2d": lambda: sk.nn.MaskedConv2d(4, 6, 3, padding=1, mask=lambda n: sk.masks.radial(n, 0.5)),
    "SpectralConv2d": lambda: sk.nn.SpectralConv2d(4, 6, 3),
    "SpectralPool2d": lambda: sk.nn.SpectralPool2d(2.0),
    "FrequencyDropout2d": lambda: sk.nn.FrequencyDropout2d(),
    "DiffStride2d": lambda: sk.nn.DiffStride2d(2.0, smoothness=2.0),
    "PHConv2d": lambda: sk.nn.PHConv2d(4, 6, 3, n=2),
}
NEVER_PLAIN = ("conv-direct_channels_last",)


@pytest.mark.parametrize("name", CALLS)
def test_the_layout_of_the_answer_is_that_of_the_maps(name: str, seed: int):
    call, x = CALLS[name], torch.randn(2, 4, 9, 8)
    want = call(x)
    assert want.is_contiguous() or name in NEVER_PLAIN
    y = call(x.to(memory_format=LAST))
    assert is_channels_last(y)
    torch.testing.assert_close(y, want)
    for odd in (x.transpose(2, 3).contiguous().transpose(2, 3), x[:, :1].expand(x.shape)):
        y = call(odd)
        assert y.is_contiguous() or name in NEVER_PLAIN
        torch.testing.assert_close(y, call(odd.contiguous()))


@pytest.mark.parametrize("name", CALLS)
def test_a_sample_without_a_batch(name: str, seed: int):
    x = torch.randn(2, 4, 9, 8)
    torch.testing.assert_close(CALLS[name](x[0]), CALLS[name](x)[0])


@pytest.mark.parametrize("name", [name for name in CALLS if name != "masked-direct"])  # which reads the mask
def test_fake_tensors_have_the_strides_of_real_ones(name: str, seed: int):
    call, x = CALLS[name], torch.randn(2, 4, 9, 8)
    for given in (x, x.to(memory_format=LAST), x[0]):
        real = call(given)
        mode = FakeTensorMode(allow_non_fake_inputs=True)
        with mode:
            fake = call(mode.from_tensor(given))
        assert (fake.shape, fake.stride(), fake.dtype) == (real.shape, real.stride(), real.dtype)


@pytest.mark.parametrize("compression", [0.0, 0.5])
def test_meta_tensors_have_the_layout_of_conv2d(compression: float):
    for given in (torch.empty(2, 4, 9, 8), torch.empty(2, 4, 9, 8).to(memory_format=LAST), torch.empty(4, 9, 8)):
        y = sk.band_limited_conv2d(given.to("meta"), W.to("meta"), compression=compression)
        real = sk.band_limited_conv2d(given, W, compression=compression)
        assert (y.device.type, y.shape, y.stride()) == ("meta", real.shape, real.stride())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name: str, training: bool, seed: int):
    layer, x = LAYERS[name]().train(training), torch.randn(2, 4, 12, 8)

    def run(x: Tensor) -> Tensor:
        torch.manual_seed(seed)
        return layer(x)

    with torch.set_grad_enabled(training):
        want = run(x)
        assert want.is_contiguous()
        torch.testing.assert_close(run(x[0]), run(x[:1])[0])
        assert is_channels_last(run(x.to(memory_format=LAST)))
        torch.testing.assert_close(run(x.to(memory_format=LAST)), want)
        if isinstance(layer, torch.nn.Conv2d):  # a kernel in channels_last: the same for what is kept of it
            assert is_channels_last(layer.to(memory_format=LAST)(x))


def test_a_kernel_in_channels_last_leads_as_in_conv2d(seed: int):
    x, weight = torch.randn(2, 4, 9, 8), W.to(memory_format=LAST)
    want = torch.nn.functional.conv2d(x, weight, B, padding=1)
    assert is_channels_last(want)
    for impl in on_the_cpu("band_limited_conv2d"):
        y = band_limited(impl, weight, compression=0.0)(x)
        assert y.stride() == want.stride()
        torch.testing.assert_close(y, want, rtol=1e-3, atol=1e-4)


def test_gradients_do_not_depend_on_the_layout(seed: int):
    x, dy = torch.randn(2, 4, 9, 8, dtype=torch.float64), torch.randn(2, 6, 9, 8, dtype=torch.float64)
    found = []
    for layout in (torch.contiguous_format, LAST):
        leaves = [each.to(memory_format=layout).requires_grad_() for each in (x, W.double())]
        y = sk.band_limited_conv2d(*leaves, compression=0.5)
        found.append(torch.autograd.grad(y, leaves, dy.to(memory_format=layout)))
    for plain, last in zip(*found, strict=True):
        torch.testing.assert_close(plain, last)


def test_one_channel_is_in_channels_last_where_it_was_converted():
    """A map of one channel is contiguous in both layouts; its strides say which."""
    plain = torch.randn(2, 1, 5, 4)
    assert not is_channels_last(plain)
    assert is_channels_last(plain.to(memory_format=LAST))
    assert not is_channels_last(torch.randn(2, 1, 1, 1))
    assert not is_channels_last(torch.randn(2, 3, 1, 1))
    assert not is_channels_last(torch.randn(1, 5, 4))


def test_series(seed: int):
    x, w = torch.randn(2, 4, 9), torch.randn(6, 4, 3)
    for impl in ("auto", "dft_gemm", "torch_fft", "direct_lowpass"):
        y = sk.band_limited_conv1d(x, w, B, compression=0.5, impl=impl)
        assert y.is_contiguous()
        torch.testing.assert_close(sk.band_limited_conv1d(x[1], w, B, compression=0.5, impl=impl), y[1])
    layer = sk.nn.BandLimitedConv1d(4, 6, 3, compression=0.5).eval()
    with torch.no_grad():
        torch.testing.assert_close(layer(x[1]), layer(x)[1])
